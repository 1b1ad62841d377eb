"""`make demo` goes on where it was broken off, whenever that was, and compares finished runs only."""

import os
import shutil
import sys
from pathlib import Path

import processes
import pytest

TREE = Path(__file__).parents[1]

# stands for the command: notes its arguments; a training leaves a configuration, unless it dies before
COMMAND = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *{dies_in}*) {leaves} exit 130;;
  "train --preset"*) mkdir -p "$5"; touch "$5/config.json";;
esac
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed"),
]


@pytest.fixture
def demo(tmp_path):
    """Runs `make demo` with a command that dies in the training named, before or after its folder is a run."""

    def run(dies_in: str = "no training", leaves: str = "") -> tuple[int, list[str]]:
        log, command = tmp_path / "log", tmp_path / "bin" / "spikegpt"
        command.parent.mkdir(exist_ok=True)
        command.write_text(COMMAND.format(log=log, dies_in=f'"{dies_in}"', leaves=leaves))
        command.chmod(0o755)
        log.write_text("")
        words = ["make", "-C", TREE, "-o", ".venv/base", "demo", f"BIN={command.parent}", f"RUNS={tmp_path}"]
        # not the words of a make that runs the tests
        apart = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        status = processes.run(words, env=apart).returncode
        return status, log.read_text().replace(f"{tmp_path}/", "").splitlines()

    return run


SPIKING = "train --preset tiny --out demo-spiking"
TWIN = "train --preset tiny --out demo-twin --spiking none"
PUBLISHED = "train --preset tiny --out demo-published --spiking output"
END = ["generate demo-spiking The  --max-tokens 300", "compare demo-spiking demo-published demo-twin"]


def test_the_demo_trains_three_models_and_compares_them(demo):
    assert demo() == (0, [SPIKING, TWIN, PUBLISHED, *END])


def test_broken_off_within_a_training_it_compares_nothing_and_resumes(demo):
    status, calls = demo("demo-twin", 'mkdir -p "$5"; touch "$5/config.json";')
    assert status != 0 and calls == [SPIKING, TWIN]
    assert demo() == (0, ["train --resume demo-spiking", "train --resume demo-twin", PUBLISHED, *END])


def test_broken_off_before_the_folder_is_a_run_it_trains_anew(demo):
    status, calls = demo("demo-spiking", 'mkdir -p "$5";')
    assert status != 0 and calls == [SPIKING]
    assert demo() == (0, [SPIKING, TWIN, PUBLISHED, *END])


def test_the_demo_says_how_long_it_takes_before_it_is_silent(tmp_path):
    text = processes.run(["make", "-n", "-C", TREE, "-W", "pyproject.toml", "demo"]).stdout
    assert text.index("half a minute to some minutes") < text.index("pip install")
    assert text.index("a minute or two each") < text.index("train --preset")


def test_the_folders_of_a_demo_are_none_of_lints_business(tmp_path):
    """Which takes a folder in the tree for a package of ours: the tests have modules of such names."""
    for part in ("pyproject.toml", "tests"):
        copy = shutil.copytree if (TREE / part).is_dir() else shutil.copy
        copy(TREE / part, tmp_path / part)
    for module in (TREE / "tests" / "helpers").glob("*.py"):
        (tmp_path / module.stem).mkdir()
    done = processes.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--select", "I", tmp_path])
    assert done.returncode == 0, done.stdout
