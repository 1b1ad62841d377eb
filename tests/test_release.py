"""A release: built as source and as wheel without a network, installed into an empty environment, where it works."""

import os
import shutil
import site
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import processes
import pytest
from command_line import spikegpt
from runs import MODEL

from spikegpt.checkpoint import save_model
from spikegpt.checkpoint.files import write_manifest
from spikegpt.cli.completion import completion_script
from spikegpt.cli.parsing import UsageError
from spikegpt.cli.verbs import VERBS
from spikegpt.common.version import __version__
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.model import SpikeGPT

TREE = Path(__file__).parents[1]
BUILD = "import os, sys; from setuptools import build_meta as b; os.chdir(sys.argv[1]); print(b.build_{}(sys.argv[2]))"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((TREE / "pyproject.toml").read_text())
    assert "version" not in project["project"] and project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "spikegpt.common.version.__version__"


def test_version_says_which_kernels_run():
    said = spikegpt("--version").stdout.splitlines()
    assert said[:2] == [__version__, "kernels on cpu: numba"] and said[2].startswith("kernels on cuda: ")


def test_a_shell_completes_verbs_and_the_flags_of_each():
    script = completion_script(["bash"], VERBS)
    assert f'-W "{" ".join(VERBS)} help version"' in script
    (train,) = (line for line in script.splitlines() if line.strip().startswith("train)"))
    assert {"--preset", "--config", "--log-with", "--adam-eps"} <= set(train.split('"')[1].split())
    assert completion_script(["zsh"], VERBS).endswith(script)
    with pytest.raises(UsageError, match="name your shell, bash or zsh"):
        completion_script(["fish"], VERBS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.slow
def test_bash_takes_the_script():
    asks = 'COMP_WORDS=(spikegpt raster --ne); COMP_CWORD=2; _spikegpt; echo "${COMPREPLY[*]}"'
    done = processes.run(["bash", "-c", f"{completion_script(['bash'], VERBS)}\n{asks}"])
    assert (done.stdout, done.stderr) == ("--neurons\n", "")


def save_small(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_model(folder, SpikeGPT(MODEL), ByteTokenizer())
    write_manifest(folder)


def built(kind: str, tree: Path, out: Path) -> Path:
    """Return the sdist or wheel of `tree`, made by setuptools as pip calls it, with what is installed here."""
    done = processes.run([sys.executable, "-c", BUILD.format(kind), tree, out])
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def packed_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def lend_compiled(ours: Path, theirs: Path) -> None:
    """Give a copy of a package the kernels that were compiled of ours: from equal sources they need not be again."""
    for source in ours.rglob("*.py"):
        # by size and date numba knows what a kernel was compiled of
        shutil.copystat(source, theirs / source.relative_to(ours))
    for kernel in ours.rglob("__pycache__/*.nb?"):
        (theirs / kernel.relative_to(ours).parent).mkdir(exist_ok=True)
        shutil.copy(kernel, theirs / kernel.relative_to(ours))


@pytest.mark.slow
def test_a_wheel_of_the_source_release_works_in_an_environment_of_its_own(tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(TREE, tree, ignore=shutil.ignore_patterns(".*", "*.egg-info", "build", "runs", "tests", "results"))
    # stands for those that come along, which a tree may lack
    save_small(tree / "spikegpt" / "shipped" / "made")
    packed = built("sdist", tree, tmp_path)
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    wheel = built("wheel", source, tmp_path)
    assert source.name == f"spikegpt-{__version__}" and wheel.name.startswith(f"spikegpt-{__version__}-py3")
    modules = {
        path.relative_to(TREE).as_posix() for top in ("spikegpt", "neuromorphic") for path in (TREE / top).rglob("*.py")
    }
    sources, names = {f"spikegpt/cuda/{path.name}" for path in (TREE / "cuda").glob("*.cu*")}, packed_in(wheel)
    assert sources and not (sources | modules) - names
    # NVIDIA's own packages live in a namespace of that name
    assert not [name for name in names if name.startswith("cuda/")] and "spikegpt/cuda/__init__.py" not in names
    home = tmp_path / "home"
    venv.create(home)
    python = home / "bin" / "python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    assert processes.run([sys.executable, *install]).returncode == 0
    # what it needs is here already; a path in such a file brings modules, and none of the packages' own
    inside = next(home.glob("lib/python*/site-packages"))
    (inside / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    lend_compiled(TREE / "spikegpt", inside / "spikegpt")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def run(*words):
        done = processes.run([home / "bin" / "spikegpt", *words], env=env, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = processes.run([python, "-c", "import spikegpt; print(spikegpt.__file__)"], env=env, cwd=tmp_path).stdout
    assert where.startswith(str(home)) and run("--version").startswith(__version__)
    run(
        "train",
        "--n-layer",
        "1",
        "--n-embd",
        "16",
        "--steps",
        "2",
        "--eval-tokens",
        "200",
        "--out",
        "a",
        "--cache",
        "c",
    )
    assert "made  " in run("list") and str(home) in run("info", "made")
    run("measure", "a", "--tokens", "200", "--cache", "c")
    run("raster", "a", "It was")
    assert (tmp_path / "spikes.png").exists() and (tmp_path / "a" / "report" / "comparison.tex").exists()
