"""Decoding with event-driven products: the model's forward pass, each product of spikes reading the rows that fired.

For a GPU, where one kernel does such a product; for any mixer and any neurons, because only the products are exchanged.
"""

import copy

import torch
from torch import Tensor, nn

from ..kernels import event_matvec
from ..model.mixers import Rows, weights_of
from ..model.network import SpikeGPT
from ..model.state import State
from .graphs import ForwardStep, capture_of


class EventProduct(nn.Module):
    """The matrix product of `linear` with spikes: its weights by rows, float32, bfloat16, or int8 with scales.

    A model in half precision keeps its rows in bfloat16.
    """

    rows: Tensor
    scale: Tensor | None
    inputs_read: Tensor

    def __init__(self, linear: nn.Linear | Rows, weights: str):
        super().__init__()
        rows = linear.weight.detach().t().contiguous()
        if weights == "int8":
            scale = (rows.float().abs().amax(dim=0) / 127).clamp(min=1e-30)
            self.register_buffer("rows", (rows.float() / scale).round().to(torch.int8))
            self.register_buffer("scale", scale)
        else:
            in_short = weights == "bfloat16" or rows.dtype in (torch.bfloat16, torch.float16)
            self.register_buffer("rows", rows.to(torch.bfloat16 if in_short else torch.float32))
            self.register_buffer("scale", None)
        self.register_buffer("inputs_read", torch.zeros((), dtype=torch.int64, device=rows.device))

    def forward(self, spikes: Tensor) -> Tensor:
        """Return (B, T, out) of spikes (B, T, in)."""
        flat = spikes.flatten(0, -2)
        self.inputs_read.add_(flat.count_nonzero())
        return event_matvec(flat.contiguous(), self.rows, self.scale).unflatten(0, spikes.shape[:-1])


class EventDecoder:
    """Reads one token of each text by `model`, its products of spikes event-driven, other weights shared with it."""

    def __init__(self, model: SpikeGPT, weights: str):
        # parameters are not copied, only the modules that hold them
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self._model = copy.deepcopy(model, shared).eval()
        self._products: dict[str, list[EventProduct]] = {}
        for name, placed in self._model.sites().items():
            if placed.products:
                self._products[name] = [EventProduct(product, weights) for product in placed.products]
                for attribute, product in zip(placed.site.products, self._products[name], strict=True):
                    # a parameter may give way to a module, but not under its name
                    delattr(placed.owner, attribute)
                    setattr(placed.owner, attribute, product)
        self._weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
        products = (product for placed in model.sites().values() for product in placed.products)
        self._weights += sum(weights_of(product) for product in products if isinstance(product, Rows))
        self._forward, self._tokens_read = ForwardStep(self._model, capture_of(model)), 0

    def take(self, state: State) -> None:
        self._forward.take(state)

    def give(self) -> State:
        return self._forward.give()

    def step(self, tokens: Tensor) -> Tensor:
        """Return the logits (texts, vocab_size) after one more token of each text, (texts,)."""
        self._tokens_read += len(tokens)
        return self._forward.step(tokens)

    def spike_counts(self) -> dict[str, int]:
        """Return layer of neurons that products read -> how many of them fired, over all tokens."""
        # all readers of a layer count the same
        return {name: int(products[0].inputs_read) for name, products in self._products.items()}

    def sharings(self) -> list[str]:
        """Return no way for threads to share a token: the GPU does it."""
        return []

    def density(self) -> float:
        """Return the share of the weights that was read per token, real inputs read whole; 1 before any token was."""
        if not self._tokens_read:
            return 1.0
        products = [product for products in self._products.values() for product in products]
        dense = self._weights - sum(product.rows.numel() for product in products)
        read = sum(int(product.inputs_read) * product.rows.shape[1] for product in products)
        return dense / self._weights + read / self._weights / self._tokens_read
