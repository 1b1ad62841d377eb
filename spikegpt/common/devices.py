"""The device that a name means on this machine. torch is imported when a name is looked up, so that help needs none."""

import re
from typing import TYPE_CHECKING

from .errors import SpikegptError

if TYPE_CHECKING:
    import torch


def find_device(name: "str | torch.device" = "auto") -> "torch.device":
    """Return the device `name`: auto (the GPU where there is one, else the CPU), cpu, cuda, or cuda:N.

    A torch.device of another kind is returned as it is: whoever made one knows of it.

    Raises:
        SpikegptError: no device has this name, or it is not here; what is here is named.
    """
    import torch

    if isinstance(name, torch.device):
        if name.type != "cuda":
            return name
        name = str(name)
    check_name(name)
    here = available_devices()
    if name == "auto":
        return torch.device("cuda" if len(here) > 1 else "cpu")
    if name.startswith("cuda") and len(here) == 1:
        why = "this torch was built without CUDA" if torch.version.cuda is None else "no GPU was found"
        raise SpikegptError(f"{name}: {why}; available: {', '.join(here)}")
    if name != "cuda" and name not in here:
        raise SpikegptError(f"{name}: there is no such GPU; available: {', '.join(here)}")
    return torch.device(name)


def check_name(name: object) -> None:
    """Raise SpikegptError unless `name` is one that a device may have, here or elsewhere."""
    if not isinstance(name, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name):
        here = ", ".join(available_devices())
        raise SpikegptError(f"device {name!r} is unknown; known: auto, cpu, cuda, cuda:N; available: {here}")


def available_devices() -> list[str]:
    """Return cpu, and cuda:N for each GPU that torch can use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cpu", *(f"cuda:{index}" for index in range(count))]


def finish(device: "torch.device") -> None:
    """Wait until everything that was begun on `device` is done; a clock may be read then."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
