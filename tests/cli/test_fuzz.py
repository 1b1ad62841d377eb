"""Odd command lines, seeded: each is done or refused in one line. More of them: pytest tests/cli --fuzz 1000."""

import pytest

from benchmarks.command_lines import try_all


@pytest.mark.slow
def test_an_odd_command_line_is_done_or_refused_in_one_line(tmp_path, request):
    verdicts, faults = try_all(tmp_path, request.config.getoption("--fuzz"), seed=1)
    assert not faults, "\n".join(faults)
    assert verdicts["done"] > 0 and verdicts["refused"] > verdicts["done"]
