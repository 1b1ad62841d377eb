"""Which numbers of a tensor are text and which are padding."""

from typing import Any

from torch import Tensor

from .provenance import Origin, Provenance


class Padding:
    """`mask` (B, T) is False at padding, or None; `padding_included` names operators that could not tell it."""

    def __init__(self) -> None:
        self.provenance = Provenance()
        self.mask: Tensor | None = None
        self.padding_included: dict[str, int] = {}
        self._padding_noted = False

    def _live(self, tensor: Tensor) -> Tensor | None:
        """Return the mask in the shape that indexes the front of `tensor`, or None.

        Where the length of the text stands at a second place, as in scores of (B, heads, T, T), nothing says which of
        them is the text.
        """
        if self.mask is None:
            return None
        T = self.mask.shape[1]
        if tensor.shape[:2] == self.mask.shape and T not in tensor.shape[2:]:
            return self.mask
        is_flat = tensor.dim() and tensor.shape[0] == self.mask.numel() and T not in tensor.shape[1:]
        return self.mask.flatten() if is_flat else None

    def _live_elements(self, operator: str, tensor: Tensor) -> int:
        if self.mask is None or self.provenance.of(tensor) is Origin.WEIGHT:
            return tensor.numel()
        live = self._live(tensor)
        if live is None:
            self.note_padding(operator)
            return tensor.numel()
        return int(live.sum()) * tensor.shape[live.dim() :].numel()

    def _only_live(self, leaf: Any) -> Any:
        """(B, T, ...) becomes (1, live tokens, ...)."""
        live = self._live(leaf) if isinstance(leaf, Tensor) and self.provenance.of(leaf) is not Origin.WEIGHT else None
        return leaf if live is None else leaf[live].unsqueeze(0)

    def note_padding(self, operator: str) -> None:
        """Say that this call of `operator` could not tell padding from text."""
        if self.mask is not None and not self._padding_noted:
            self._padding_noted = True
            self.padding_included[operator] = self.padding_included.get(operator, 0) + 1
