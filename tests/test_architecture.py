"""The rules of the house: who may import whom, and what importing may do.

The table is the one of docs/architecture.md, and is read from there.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import processes
import pytest

TREE = Path(__file__).parents[1]

PAGE = TREE / "docs" / "architecture.md"


def read_table() -> dict[str, set[str]]:
    """Wing -> wings that it may import from; a file within a wing may import its own wing, without a cycle."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.*)\|$", PAGE.read_text(), re.MULTILINE)
    return {wing: set(re.findall(r"`([\w.]+)`", others)) for wing, others in rows}


TABLE = read_table()
OF_COUNTING = "neuromorphic."
WINGS = {wing: others for wing, others in TABLE.items() if not wing.startswith(OF_COUNTING)}
COUNTING_WINGS = {
    wing.removeprefix(OF_COUNTING): {other.removeprefix(OF_COUNTING) for other in others}
    for wing, others in TABLE.items()
    if wing.startswith(OF_COUNTING)
}
KNOWS_NEUROMORPHIC = "measure"
# the package's own window, its command, and the door that users of Hugging Face know: each only points to a wing
WINDOWS = ("__init__", "__main__", "huggingface")


def modules_of(package: str) -> dict[str, Path]:
    """Dotted name within the package -> file; a package's `__init__` goes by the name of its folder."""
    paths = (TREE / package).rglob("*.py")
    names = {path: ".".join(path.relative_to(TREE / package).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name not in WINDOWS}


SPIKEGPT, NEUROMORPHIC = modules_of("spikegpt"), modules_of("neuromorphic")


def walk(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those that only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield node
            yield from walk(node)


def imports_of(package: str, own: str, path: Path) -> Iterator[str]:
    """Modules of the same package that `path` imports, anywhere in it, and not for type checkers only."""
    modules = SPIKEGPT if package == "spikegpt" else NEUROMORPHIC
    parts = own.split(".") if path.name == "__init__.py" else own.split(".")[:-1]
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level <= len(parts) + 1, f"{own} reaches out of its package"
                base = [*parts[: len(parts) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == package:
                base = node.module.split(".")[1:]
            else:
                continue
            target = ".".join(filter(None, base))
            for alias in node.names:
                name = f"{target}.{alias.name}".strip(".")
                yield name if name in modules else target
        elif isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.split(".")[0] == package)


def allowed(own: str, target: str, wings: dict[str, set[str]]) -> bool:
    wing = own.split(".")[0]
    may = wings.get(own, wings[wing]) | {wing}
    return any(target == name or target.startswith(f"{name}.") for name in may)


@pytest.mark.parametrize("own", sorted(SPIKEGPT))
def test_a_module_imports_only_from_the_wings_it_may(own):
    wrong = {target for target in imports_of("spikegpt", own, SPIKEGPT[own]) if not allowed(own, target, WINGS)}
    assert not wrong, f"{own} imports {wrong}"


@pytest.mark.parametrize("own", sorted(NEUROMORPHIC))
def test_counting_imports_nothing_of_the_models_and_points_down(own):
    path = NEUROMORPHIC[own]
    wrong = {target for target in imports_of("neuromorphic", own, path) if not allowed(own, target, COUNTING_WINGS)}
    assert not wrong, f"{own} imports {wrong}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            outside = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert outside.split(".")[0] in {"torch", "numpy", "numba", "matplotlib", *sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("package", "modules"), [("spikegpt", SPIKEGPT), ("neuromorphic", NEUROMORPHIC)], ids=["spikegpt", "neuromorphic"]
)
def test_no_cycle(package, modules):
    """A wing's `__init__` counts as all of the wing that it imports; a file imports its neighbours, not its window."""
    waiting = {own: set(imports_of(package, own, path)) & set(modules) for own, path in modules.items()}
    while waiting:
        free = {own for own, targets in waiting.items() if not targets}
        assert free, f"these import each other: {sorted(waiting)}"
        waiting = {own: targets - free for own, targets in waiting.items() if own not in free}


def test_the_table_names_every_wing_and_no_other():
    assert {wing for wing in WINGS if "." not in wing} == {name.split(".")[0] for name in SPIKEGPT}
    assert COUNTING_WINGS.keys() == {name.split(".")[0] for name in NEUROMORPHIC}
    named = set(TABLE).union(*TABLE.values())
    known = {*SPIKEGPT, *(f"{OF_COUNTING}{name}" for name in NEUROMORPHIC)}
    assert named <= known, f"no module is called {named - known}"


def test_the_reference_imports_torch_only():
    for path in (TREE / "spikegpt" / "kernels").rglob("reference.py"):
        tree = ast.parse(path.read_text())
        imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level}
        assert imports | sources <= {"math", "torch"}, path


@pytest.mark.parametrize("own", sorted(SPIKEGPT))
def test_no_module_reads_the_environment_or_measures(own):
    text = SPIKEGPT[own].read_text()
    assert "os.environ" not in text and "getenv" not in text
    assert "neuromorphic" not in text or own.split(".")[0] in (KNOWS_NEUROMORPHIC, "cli")


def test_no_line_of_the_cuda_sources_is_too_long():
    """Comments too, which clang-format leaves as they are."""
    sources = [path for path in (TREE / "cuda").iterdir() if path.suffix in (".cu", ".cuh")]
    assert sources
    long = [f"{path.name}:{n}" for path in sources for n, line in enumerate(path.open(), 1) if len(line) > 121]
    assert not long


def test_cuda_is_not_a_python_package():
    assert not (TREE / "cuda" / "__init__.py").exists()


@pytest.mark.slow
def test_importing_everything_compiles_nothing_and_prints_nothing():
    names = [f"spikegpt.{name}" for name in SPIKEGPT]
    code = (
        f"import importlib, sys; [importlib.import_module(n) for n in {names}]; "
        "from spikegpt.kernels.lif import cpu as k; "
        "import numba.core.dispatcher as d; "
        "assert all(not x.signatures for x in vars(k).values() if isinstance(x, d.Dispatcher)); "
        "assert 'spikingjelly' not in sys.modules and 'cupy' not in sys.modules and 'snntorch' not in sys.modules"
    )
    done = processes.run([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_only_the_command_reads_the_environment_and_only_for_how_threads_wait():
    text = (TREE / "spikegpt" / "__main__.py").read_text()
    assert text.count("environ") == 2 and "os.environ.update(WAITING)" in text


def test_tests_start_processes_with_patience_only():
    """By helpers/processes.py, which waits where a busy machine has no room for one more."""
    impatient = re.compile(r"subprocess\.(run|Popen|call|check_\w+)\(|os\.(fork|system)\(")
    paths = set((TREE / "tests").rglob("*.py")) - {TREE / "tests" / "helpers" / "processes.py"}
    assert [path.name for path in paths if impatient.search(path.read_text())] == []


def test_every_name_in_the_shop_window_is_there():
    import spikegpt

    assert all(getattr(spikegpt, name) is not None for name in spikegpt.__all__)
