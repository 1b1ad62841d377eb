"""The rules of the house: who may import whom, and what importing may do."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

TREE = Path(__file__).parent.parent
PACKAGE = TREE / "spikegpt"

# lower imports nothing from higher; modules on one line do not import each other unless the line below says so
LAYERS = [
    {"errors", "config", "kernels.reference", "kernels.backends", "kernels.wkv_checks"},
    {"files", "hub", "stop_signals", "options", "progress", "cutting", "kernels.numba_cpu", "kernels.numba_decode", "kernels.cupy_cuda"},
    {"text", "jsonl", "download", "binidx"},
    {"safetensors_file", "kernels.numba_lif", "kernels.numba_integer_lif", "kernels.numba_wkv", "kernels.numba_event_wkv"},
    {"kernels.cuda_lif", "kernels.cuda_integer_lif", "kernels.cuda_wkv", "kernels.cuda_event_wkv", "kernels.cuda_event_matvec"},
    {"kernels.lif_door", "kernels.integer_lif_door", "kernels.wkv_door", "kernels.event_wkv_door", "kernels.event_matvec_door"},
    {"kernels", "tokenizer", "sources"},
    {"neuron", "encoding", "hub_datasets"},
    {"examples"},
    {"token_file", "corpora"},
    {"pretokenised"},
    {"data"},
    {"model"},
    {"engine"},
    {"checkpoint", "generate", "optimizer", "runlog", "sampler", "scoring"},
    {"evaluate", "convert", "harness", "losses"},
    {"train", "doctor", "huggingface", "last_word", "classify"},
    {"foreign"},
    {"compare"},
    {"__main__"},
]
COUNTING_LAYERS = [
    {"counts", "storages"},
    {"operands", "rules", "prices"},
    {"products"},
    {"recorder"},
    {"counter", "published", "firing"},
    {"energy", "measurement"},
    {"formats", "derived"},
    {"canvas", "tables"},
    {"figures", "html"},
    {"report"},
]
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


COUNTING_MODULES = sorted(path for path in (TREE / "neuromorphic").glob("*.py") if path.name != "__init__.py")


def imported_modules(path: Path) -> set[str]:
    """Modules of ours that `path` imports, anywhere in it."""
    package = module_name(path).split(".")[:-1] if path.name != "__init__.py" else module_name(path).split(".")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            target = [*base, *(node.module.split(".") if node.module else [])]
            if node.module is None or ".".join(target) == "kernels":
                names = [".".join([*target, alias.name]) for alias in node.names]
                found |= {name if name in LEVEL else ".".join(target) for name in names} - {""}
            else:
                found.add(".".join(target))
    return found


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_down_only(path):
    own = module_name(path)
    higher = {name for name in imported_modules(path) if LEVEL[name] >= LEVEL[own]}
    assert not higher, f"{own} imports {higher}"


@pytest.mark.parametrize("path", COUNTING_MODULES, ids=lambda path: path.stem)
def test_counting_imports_nothing_of_the_models_and_points_down(path):
    level = {module: level for level, layer in enumerate(COUNTING_LAYERS) for module in layer}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            assert all(level[name] < level[path.stem] for name in names), f"{path.stem} imports {names}"
        elif isinstance(node, ast.ImportFrom | ast.Import):
            outside = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert outside.split(".")[0] in {"torch", "numpy", "matplotlib", *sys.stdlib_module_names}


def test_the_reference_imports_torch_only():
    tree = ast.parse((PACKAGE / "kernels" / "reference.py").read_text())
    imports = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    sources = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imports | sources <= {"math", "torch"}


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_module_reads_the_environment_or_measures(path):
    text = path.read_text()
    assert "os.environ" not in text and "getenv" not in text
    assert "neuromorphic" not in text or module_name(path) in ("compare", "__main__")


def test_cuda_is_not_a_python_package():
    assert not (TREE / "cuda" / "__init__.py").exists()


def test_importing_everything_compiles_nothing_and_prints_nothing():
    names = [f"spikegpt.{module_name(path)}" for path in MODULES if path.name != "__main__.py"]
    code = (
        f"import importlib, sys; [importlib.import_module(n) for n in {names}]; import spikegpt.kernels.numba_lif as k; "
        "import numba.core.dispatcher as d; "
        "assert all(not x.signatures for x in vars(k).values() if isinstance(x, d.Dispatcher)); "
        "assert 'spikingjelly' not in sys.modules and 'cupy' not in sys.modules and 'snntorch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_name_in_the_shop_window_is_there():
    import spikegpt

    assert all(getattr(spikegpt, name) is not None for name in spikegpt.__all__)
