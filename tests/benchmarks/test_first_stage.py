"""Every benchmark that trains: what its command trains first, in full, is a configuration. --quick may have its own."""

import importlib
import sys

import pytest
import sweep


class Enough(Exception):
    """Stands for the trainings."""


@pytest.mark.parametrize("name", ["tax", "recipe", "low_bit", "family", "neurons", "context", "perspectives"])
def test_the_full_command_begins_with_whole_configurations(name, tmp_path, monkeypatch):
    module, asked = importlib.import_module(name), []

    def note(out, configurations, *_):
        asked.append(configurations)
        raise Enough

    monkeypatch.setattr(module, "trained", note)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--runs", str(tmp_path)])
    with pytest.raises(Enough):
        module.main()
    assert asked[0]
    for configuration in asked[0].values():
        sweep.check(configuration)
        # levers of recipe.py halve or double the batch
        assert configuration["steps"] >= 100
        assert configuration["batch_size"] * configuration["ctx_len"] in (1024, 2048, 4096)
