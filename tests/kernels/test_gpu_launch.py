"""The way to the GPU, as far as it can be walked without one: sources, launches, packages, and what an error says."""

import importlib
import re
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from spikegpt.kernels import backends, gpu, lif

TREE = Path(__file__).parents[2]
SOURCES = sorted(path.stem for path in (TREE / "cuda").glob("*.cu"))


@pytest.mark.parametrize("source", SOURCES)
def test_threads_share_nothing(source):
    # what lets the tests run them one after the other, in any order
    text = gpu.read_source(source)
    assert not re.search(r"__sync|__shfl|__ballot|__any|__all|atomic|__match|__activemask", text)


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_one_text_that_asks_for_no_other_file(source):
    text = gpu.read_source(source)
    assert "#include" not in text and text.count("typedef unsigned int word;") == 1
    assert re.search(r'extern "C" __global__ void', text)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", gpu.ELEMENTS, ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_a_source_compiles_without_a_warning_and_keeps_its_registers(source, dtype, pytestconfig):
    """For the oldest target and the newest; for those between as well with --whole, as benchmarks/cuda_compile.py."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="pip install cuda-bindings nvidia-cuda-nvrtc")
    cuda_compile = importlib.import_module("benchmarks.cuda_compile")
    oldest, *between, newest = cuda_compile.TARGETS
    for target in (oldest, newest, *(between if pytestconfig.getoption("whole") else ())):
        size, log = cuda_compile.compile_job((source, dtype, target))
        assert size > 0 and "warning" not in log, log
        kernels = cuda_compile.read_log(log)
        assert kernels and not [name for name, (_, spilled, stack, _) in kernels.items() if spilled or stack]


class FakeCupy(types.ModuleType):
    """Notes what is compiled and launched."""

    def __init__(self):
        super().__init__("cupy")
        self.launched, self.compiled = [], []
        context = type("Context", (), {"__enter__": lambda s: s, "__exit__": lambda s, *_: None})
        stream = types.SimpleNamespace(
            from_external=lambda stream: self.launched.append(("stream", stream)) or context()
        )
        self.cuda = types.SimpleNamespace(Device=lambda index: context(), Stream=stream)

    def RawModule(self, **options):
        self.compiled.append(options)
        get = lambda kernel: lambda grid, block, arguments: self.launched.append((kernel, grid, block, arguments))  # noqa: E731
        return types.SimpleNamespace(get_function=get)


@pytest.fixture
def fake_cupy(monkeypatch):
    fake = FakeCupy()
    monkeypatch.setattr(gpu, "import_cupy", lambda: fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    for cached in (gpu._kernel, gpu._module):
        cached.cache_clear()
    yield fake
    for cached in (gpu._kernel, gpu._module):
        cached.cache_clear()


def test_a_launch_passes_addresses_and_exact_types_on_torchs_stream(fake_cupy):
    tensor = torch.zeros(3)
    gpu.launch("lif", "lif_forward", torch.bfloat16, (130, 4), tensor, None, 7, True, 0.5)
    (_, stream), (kernel, grid, block, arguments) = fake_cupy.launched
    assert (stream, kernel, grid, block) == ("stream of cpu", "lif_forward", (3, 4), (gpu.THREADS,))
    assert arguments == (tensor.data_ptr(), 0, 7, 1, 0.5)
    assert [type(value) for value in arguments] == [np.uintp, np.uintp, np.int32, np.int32, np.float32]


def test_a_source_is_compiled_once_per_element_type(fake_cupy):
    for dtype in (torch.bfloat16, torch.bfloat16, torch.float16):
        for kernel in ("lif_forward", "lif_backward"):
            gpu.launch("lif", kernel, dtype, 1, torch.zeros(1))
    assert [options["options"] for options in fake_cupy.compiled] == [("-DELEMENT=1",), ("-DELEMENT=2",)]


def test_cupy_for_another_cuda_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpu, "installed_cupy", lambda: {"cupy-cuda12x": "14.0.0"})
    with pytest.raises(
        RuntimeError, match=r"CUDA 13.0, CuPy is cupy-cuda12x: pip uninstall cupy-cuda12x; pip install cupy-cuda13x"
    ):
        gpu.import_cupy.__wrapped__()


@pytest.mark.parametrize(
    "version, package", [("12.8", "cupy-cuda12x"), ("13.0", "cupy-cuda13x"), (None, "cupy-cuda13x")]
)
def test_the_package_to_install_follows_torchs_cuda(monkeypatch, version, package):
    monkeypatch.setattr(torch.version, "cuda", version)
    assert backends.what_to_install("cupy") == package


def on_a_gpu() -> torch.Tensor:
    # a real CUDA tensor needs a GPU; the choice looks at device and dtype only
    return types.SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)


def test_a_gpu_without_cupy_warns_once_and_says_what_to_install(monkeypatch):
    monkeypatch.setitem(backends._installed, "cupy", False)
    backends._warn_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="cupy is missing.*pip install cupy-cuda"):
        assert backends.choose_backend("auto", "lif", on_a_gpu()) == "reference"
    with pytest.raises(ModuleNotFoundError, match="pip install cupy-cuda"):
        backends.choose_backend("cupy", "lif", on_a_gpu())


def test_a_gpu_with_cupy_uses_it(monkeypatch):
    monkeypatch.setitem(backends._installed, "cupy", True)
    assert backends.choose_backend("auto", "lif", on_a_gpu()) == "cupy"


def test_cupy_cannot_serve_a_cpu_tensor():
    with pytest.raises(ValueError, match="'cupy' cannot serve a tensor on 'cpu'"):
        lif(torch.zeros(1, 1, 1), backend="cupy")
