"""Which implementation serves a tensor: one table, and the rule for falling back.

A backend asked for by name runs or raises. Only a missing package makes `auto` fall back to the reference,
with one warning that says what to install.
"""

import functools
import importlib
import importlib.util
import warnings
from types import ModuleType

import torch

BACKENDS = ("auto", "reference", "numba", "cupy")

# device of the tensor -> fast backend; dtypes outside FAST_DTYPES and devices outside the table use the reference
# a meta tensor has no numbers: the operator's fake implementation gives the shapes
FAST_BACKEND = {"cpu": "numba", "cuda": "cupy", "meta": "numba"}
FAST_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PACKAGE = {"numba": "numba", "cupy": "cupy"}
# looked up once: finding a package costs more than a small kernel
_installed = {backend: importlib.util.find_spec(package) is not None for backend, package in PACKAGE.items()}


def choose_backend(backend: str, operation: str, tensor: torch.Tensor) -> str:
    """Return "numba", "cupy" or "reference" for `tensor`.

    Raises:
        ValueError: unknown backend, or one that cannot serve this device or dtype.
        ModuleNotFoundError: a backend asked for by name lacks its package.
    """
    if backend not in BACKENDS:
        raise ValueError(f"{operation}: backend is {backend!r}; known: {', '.join(BACKENDS)}")
    if backend == "reference":
        return backend
    fast = FAST_BACKEND.get(tensor.device.type)
    if backend == "auto":
        if fast is None:
            _warn_once(
                f"{operation}: no fast kernel for device {tensor.device.type!r}; using the slow plain-torch reference"
            )
            return "reference"
        if tensor.dtype not in FAST_DTYPES:
            return "reference"
        if not is_installed(fast):
            _warn_once(
                f"{operation}: {PACKAGE[fast]} is missing, using the slow reference; "
                f"pip install {what_to_install(fast)}"
            )
            return "reference"
        return fast
    if backend != fast:
        raise ValueError(
            f"{operation}: backend {backend!r} cannot serve a tensor on {tensor.device.type!r}; use backend='auto'"
        )
    if tensor.dtype not in FAST_DTYPES:
        raise ValueError(
            f"{operation}: backend {backend!r} takes float32, bfloat16 or float16, got {tensor.dtype}; "
            "use backend='reference'"
        )
    if not is_installed(backend):
        raise ModuleNotFoundError(
            f"{operation}: backend {backend!r} was asked for; pip install {what_to_install(backend)}"
        )
    return backend


def choose_training_backend(backend: str, operation: str, *tensors: torch.Tensor) -> str:
    """Return "numba" or "reference" for an operation whose fast version is worth it in training on a CPU, and is only
    there: "auto" means it where a gradient is asked for.

    Raises:
        ValueError, ModuleNotFoundError: as `choose_backend`.
    """
    is_trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if backend == "auto" and not (is_trained and all(tensor.is_cpu for tensor in tensors)):
        return "reference"
    if backend == "cupy":
        raise ValueError(f"{operation}: there is no kernel for a GPU; use backend='auto'")
    return choose_backend(backend, operation, tensors[0])


def fast_kernels(operation: str, tensor: torch.Tensor) -> ModuleType:
    """Return the module of the fast kernels of `operation` for the device of `tensor`.

    Imported only now, because each needs a package that the other's machine may lack.
    """
    return importlib.import_module(f".{operation}.{'gpu' if tensor.is_cuda else 'cpu'}", __package__)


def is_installed(backend: str) -> bool:
    """Return whether the package behind `backend` can be imported; imports nothing."""
    return _installed[backend]


def what_to_install(backend: str) -> str:
    """Return pip's name of the package behind `backend`: CuPy has one for each major version of CUDA."""
    version = torch.version.cuda or "13"
    return f"cupy-cuda{version.split('.')[0]}x" if backend == "cupy" else PACKAGE[backend]


def kernel_for(device: str) -> str:
    """Return what computes on cpu or cuda, in words."""
    backend = FAST_BACKEND[device]
    if is_installed(backend):
        return backend
    return f"reference (slow); pip install {what_to_install(backend)} for the fast one"


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
