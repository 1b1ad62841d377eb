"""The compiled token steps of the engine on the CPU: a file per generation, built from the parts that all share."""

import importlib
from types import ModuleType

# mixer -> module beside this one with its token step: `pack`, `share`, `products`, `take`, `of_texts`, `give`,
# `decode`. A mixer without one is decoded by the model's own forward pass
TOKEN_STEPS = {"rwkv4": "rwkv4", "rwkv5": "rwkv6", "rwkv6": "rwkv6", "rwkv7": "rwkv7"}


def token_step(mixer: str) -> ModuleType:
    """Return the module with the token step of `mixer`; imported only now, for it needs numba."""
    return importlib.import_module(f".{TOKEN_STEPS[mixer]}", __package__)
