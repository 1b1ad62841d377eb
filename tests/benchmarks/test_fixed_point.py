"""Every target that fixed_point.py compares is one, and its widths are those of its name."""

import pytest

from benchmarks.fixed_point import TARGETS, named


@pytest.mark.parametrize("name", TARGETS)
def test_targets_have_the_widths_that_they_are_called_by(name):
    target = named(name)
    assert name.startswith(target.name)
    for words, width in (("weights", target.weight_bits), ("states", target.state_bits), ("2^", target.table_bits)):
        assert words not in name or name.endswith(f"{words}{width}" if words == "2^" else f"{words} {width}")
