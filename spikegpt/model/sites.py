"""Sites by the patterns of their names, for whoever looks at some of a model's neurons or changes them."""

import fnmatch
from collections.abc import Sequence

from ..common.errors import SpikegptError
from .network import SpikeGPT


def matching_sites(model: SpikeGPT, patterns: str | Sequence[str]) -> list[str]:
    """Return the names of the sites that one of `patterns` fits, in the order in which they fire.

    "*" stands for any part of a name: "blocks.0.*", "*.ffn.key_neuron".

    Raises:
        SpikegptError: a pattern fits none.
    """
    known = list(model.sites())
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            there = f"the first are {', '.join(known[:8])}" if known else "the model is dense and has none"
            raise SpikegptError(f"no site of neurons is called {pattern!r}; {there}")
    return [name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
