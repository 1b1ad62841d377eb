"""The proof that a module is a neuron as the network needs one: read at once or token by token, it spikes the same."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

# libraries of neurons -> what makes one of theirs fit
_ADAPTERS = {"snntorch": "SnnTorchNeuron", "spikingjelly": "SpikingJellyNeuron"}
_TOKENS = 4


def library_of(module: object) -> str:
    """Return the package that the class of `module` comes from."""
    return type(module).__module__.partition(".")[0]


def check_neuron(neuron: Any, channels: int) -> None:
    """Raise ValueError unless `neuron` maps (current (B, T, C), state) to (spikes (B, T, C), state) without loss.

    What it carries must reach the next token through the state that it returns, and no token may see a later one. It is
    tried on a few random currents; one that draws at random is taken at its word.
    """
    name = type(neuron).__name__
    if not isinstance(neuron, nn.Module):
        raise ValueError(f"the neuron factory returned {neuron!r:.80}, want a module such as LIF(site.channels)")
    adapter = _ADAPTERS.get(library_of(neuron))
    if adapter is not None:
        raise ValueError(
            f"{name} of {library_of(neuron)} carries no state from token to token by itself: "
            f"let the factory return {adapter}({name}(...))"
        )
    example = next(neuron.parameters(), torch.zeros(()))
    if example.is_meta or torch.get_default_device().type == "meta":
        return
    generator = torch.Generator().manual_seed(0)
    current, other = 2 * torch.randn(2, 2, _TOKENS, channels, generator=generator).to(example)
    was_training = neuron.training
    with torch.no_grad(), torch.random.fork_rng():
        neuron.eval()
        _try(neuron, current, other)
        neuron.train(was_training)


def _try(neuron: nn.Module, current: Tensor, other: Tensor) -> None:
    name, want = type(neuron).__name__, "a neuron returns (spikes (B, T, C), state)"
    whole, state = _called(neuron, current, None, want)
    if not isinstance(whole, Tensor) or whole.shape != current.shape:
        found = tuple(whole.shape) if isinstance(whole, Tensor) else type(whole).__name__
        raise ValueError(f"{name} made {found} of a current {tuple(current.shape)}; {want}")
    for part in tree_leaves(state):
        if isinstance(part, Tensor) and (part.dim() == 0 or len(part) != len(current)):
            raise ValueError(
                f"{name} carries a state {tuple(part.shape)} after {len(current)} texts; the texts come first, "
                "as in (B, C)"
            )
    _called(neuron, other, None, want)
    if not torch.allclose(_called(neuron, current, None, want)[0], whole, atol=1e-4):
        raise ValueError(
            f"{name} spikes otherwise when the same text begins anew: it keeps what it carries inside; "
            "return it as the state, and begin with what a text begins with where the state is None"
        )
    is_random = not torch.equal(_called(neuron, current, None, want, seed=1)[0], whole)
    pieces, state = [], None
    for token in current.split(1, dim=1):
        piece, state = _called(neuron, token, state, want)
        pieces.append(piece)
        # another text in between, as in a batch or a server: what is kept inside is lost
        _called(neuron, other, None, want)
    if not is_random and not torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-4):
        raise ValueError(
            f"{name} spikes otherwise token by token than on the text at once: it lets a token see later ones, or what "
            "it carries is not in the state that it returns"
        )


def _called(neuron: nn.Module, current: Tensor, state: Any, want: str, seed: int = 0) -> tuple[Any, Any]:
    """What `neuron` makes of a current; with the same seed it draws the same."""
    torch.manual_seed(seed)
    try:
        spikes, after = neuron(current, state)
    except (TypeError, RuntimeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{type(neuron).__name__} cannot be called with (current {tuple(current.shape)}, state): {error}; {want}"
        ) from error
    return spikes, after
