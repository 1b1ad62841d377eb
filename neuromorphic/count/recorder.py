"""What one operator cost: the recorder is told of every operator with its operands, and adds the counts to a site.

It knows nothing of hooks and dispatch; `counter.py` tells it what ran, and where.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_map

from . import products, rules
from .counts import KINDS, QUANTITIES, Counts, Site
from .storages import StorageSet, storage_key
from .weights import WeightUse


class CountError(ValueError):
    """The counter was asked for something it cannot do; the message says what to do."""


class Recorder:
    """Counts by site.

    `weights` holds what is prepared once: parameters, and what depends on nothing else. `buffers` may be weights or
    state: they are weights where they enter a product. `mask` (B, T) is False at padding, or None.
    """

    def __init__(self):
        self.sites: dict[Site, Counts] = {}
        self.kinds: dict[str, str] = {}
        self.weights, self.buffers = StorageSet(), StorageSet()
        self.mask: Tensor | None = None
        self.padding_included: dict[str, int] = {}
        self.state_elements: dict[tuple[str, str], int] = {}
        self.call_tokens = 1
        self.peak_activations = 0
        self._module, self._phase, self._padding_noted = "", "", False
        self._use = WeightUse()
        self._comparisons, self._spikes = StorageSet(), StorageSet()
        self._described: dict[Hashable, tuple[StorageWeakRef, Any]] = {}

    def forget_weights(self) -> None:
        """Look at every weight anew, for it may have changed."""
        self._described.clear()

    def start_call(self, tokens: int) -> None:
        """The model is called on so many tokens; what the call before has left is forgotten."""
        self.call_tokens = tokens
        for storages in (self.weights, self._comparisons, self._spikes):
            storages.forget_freed()
        self._described = {key: entry for key, entry in self._described.items() if not entry[0].expired()}

    def weights_once(self, site: Site) -> int:
        """Return how many distinct weights were needed at `site`."""
        return self._use.needed(site)

    def record(
        self, name: str, module: str, phase: str, args: tuple, kwargs: dict, inputs: list[Tensor], results: list[Tensor]
    ) -> bool:
        """Add the counts of one operator of torch; False if it has no rule."""
        self._module, self._phase, self._padding_noted = module, phase, False
        if name in PRODUCTS:
            kind, count = PRODUCTS[name]
            count(self, self._site(kind, kind), args, kwargs, results)
        elif name in rules.MOVES:
            elements = self._live_elements(name, results[0])
            self._add(self._site(name, "move"), Counts(calls=1, activation_reads=elements, activation_writes=elements))
            if all(tensor in self._spikes for tensor in inputs):
                self._spikes.add(results[0])
        elif name == "_to_copy":
            # spikes are born where a comparison of numbers becomes a number
            if inputs[0] in self._comparisons:
                self._spikes.add(results[0])
        elif rules.has_rule(name):
            self._count_elementwise(name, args, kwargs, inputs, results)
        else:
            return False
        return True

    def record_declared(
        self, name: str, module: str, phase: str, kind: str, cost: Callable, args: tuple, kwargs: Mapping, output: Any
    ) -> None:
        """Add what an operator or a module declares of itself."""
        self._module, self._phase, self._padding_noted = module, phase, False
        live = (args, kwargs, output) if self.mask is None else tree_map(self._only_live, (args, dict(kwargs), output))
        declared = dict(cost(*live))
        kind = declared.pop("kind", kind)
        state = declared.pop("state_elements", 0)
        product = declared.pop("product", None)
        unknown = sorted(set(declared) - set(QUANTITIES))
        if unknown or kind not in KINDS:
            raise CountError(
                f"op_cost of {name} declares {unknown or kind!r}; "
                f"quantities are fields of Counts, kinds are {', '.join(KINDS)}"
            )
        site = self._site(name, kind)
        self.state_elements[module, name] = max(state, self.state_elements.get((module, name), 0))
        if "weights_once" in declared:
            self._use.declare(site, declared.pop("weights_once"))
        # a product counts the call itself
        self._add(site, Counts(**{"calls": int(product is None)} | declared))
        if product is not None:
            # `product` leaves padding out itself, so it is given the operands with their padding
            self._declared_product(site, *(product if self.mask is None else cost(args, kwargs, output)["product"]))

    def _declared_product(self, site: Site, x: Tensor, w: Tensor) -> None:
        """Count x (..., K) times the weight w (K, M) as torch's own products are counted."""
        if x.dim() == 0 or w.dim() != 2 or x.shape[-1] != w.shape[0]:
            raise CountError(
                f"op_cost of {site.operator} declares a product of {tuple(x.shape)} and {tuple(w.shape)}; "
                "want (..., K) and (K, M)"
            )
        # it may have been prepared before anything was counted
        if not self._is_weight(w):
            self.weights.add(w, storage_key(w), w.numel())
        self.product(site, x.reshape(1, -1, x.shape[-1]), w.unsqueeze(0))

    def _site(self, operator: str, kind: str) -> Site:
        self.kinds.setdefault(operator, kind)
        return Site(self._module, operator, self._phase)

    def _add(self, site: Site, counts: Counts) -> None:
        self.sites[site] = self.sites[site] + counts if site in self.sites else counts
        moved = counts.activation_reads + counts.activation_writes
        self.peak_activations = max(self.peak_activations, -(-moved // max(self.call_tokens, 1)))

    def _touch(self, site: Site, weight: Tensor, touched: Tensor | int) -> None:
        """Remember which weights were needed: how many, or how many for each input element."""
        storages = self.weights if weight in self.weights else self.buffers
        if weight in storages:
            self._use.add(site, weight, storages.member(weight), torch.as_tensor(touched))

    # elementwise --------------------------------------------------------------------------------------------------

    def _count_elementwise(
        self, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], results: list[Tensor]
    ) -> None:
        site = self._site(name, rules.kind_of(name))
        outputs = self._live_elements(name, results[0])
        rows = outputs
        if name in rules.NORMS and len(results) > 1:
            rows = self._live_elements(name, results[1])
        elif name == "_log_softmax":
            rows = outputs // max(results[0].shape[args[1]], 1)
        work = rules.elementwise(name, args, kwargs, self._live_elements(name, inputs[0]), outputs, rows)
        counts = Counts(calls=1, activation_writes=outputs, **work)
        for tensor in inputs:
            if tensor in self.weights:
                counts.weights_dense += _sweeps(tensor, results[0], outputs) * tensor.numel()
                self._touch(site, tensor, tensor.numel())
            else:
                counts.activation_reads += self._live_elements(name, tensor)
        counts.weights_per_event = counts.weights_dense
        self._add(site, counts)
        if name in rules.COMPARISONS and inputs[0].is_floating_point():
            self._comparisons.add(results[0])
        if name == "mul" and any(tensor in self._spikes for tensor in inputs):
            # a spike of learned height is still a spike
            others = [tensor for tensor in inputs if tensor not in self._spikes]
            if all(tensor in self.weights for tensor in others):
                self._spikes.add(results[0])

    @property
    def has_spikes(self) -> bool:
        """True if some spikes have been born and not yet been counted."""
        return bool(self._spikes)

    def emit(self, tensor: Tensor, module: str, phase: str) -> None:
        """Count the spikes of a tensor that leaves its module or enters a product, if they were not counted before.

        A neuron may compare its potential a second time for its reset; that is no spike for anyone else.
        """
        if tensor not in self._spikes:
            return
        self._spikes.discard(tensor)
        live = self._live(tensor)
        emitted = tensor if live is None else tensor[live]
        self._module, self._phase = module, phase
        self._add(
            self._site("spike", "neuron"),
            Counts(calls=1, neuron_updates=emitted.numel(), events_out=int(emitted.count_nonzero())),
        )

    # padding ------------------------------------------------------------------------------------------------------

    def _live(self, tensor: Tensor) -> Tensor | None:
        """Return the mask in the shape that indexes the front of `tensor`, or None."""
        if self.mask is None:
            return None
        if tensor.shape[:2] == self.mask.shape:
            return self.mask
        return self.mask.flatten() if tensor.dim() and tensor.shape[0] == self.mask.numel() else None

    def _live_elements(self, operator: str, tensor: Tensor) -> int:
        if self.mask is None or tensor in self.weights:
            return tensor.numel()
        live = self._live(tensor)
        if live is None:
            self.note_padding(operator)
            return tensor.numel()
        return int(live.sum()) * tensor.shape[live.dim() :].numel()

    def _only_live(self, leaf: Any) -> Any:
        """(B, T, ...) becomes (1, live tokens, ...)."""
        live = self._live(leaf) if isinstance(leaf, Tensor) and leaf not in self.weights else None
        return leaf if live is None else leaf[live].unsqueeze(0)

    def note_padding(self, operator: str) -> None:
        """Say that this call of `operator` could not tell padding from text."""
        if self.mask is not None and not self._padding_noted:
            self._padding_noted = True
            self.padding_included[operator] = self.padding_included.get(operator, 0) + 1

    # products -----------------------------------------------------------------------------------------------------

    def product(self, site: Site, x: Tensor, w: Tensor) -> None:
        """Count x (G, N, K) times w (G, K, M); either may be the weight."""
        for operand in (x, w):
            self.emit(operand, site.module, site.phase)
        if x.numel() == 0 or w.numel() == 0:
            return
        if not self._is_weight(w):
            if not self._is_weight(x):
                self.note_padding(site.operator)
                self._add(site, products.activation_product(x, w))
                return
            # a weight from the left: the same products, transposed
            x, w = w.mT, x.mT
        if w.shape[0] > 1 and w.stride(0) == 0:
            x, w = x.reshape(1, -1, x.shape[2]), w[:1]
        live = None
        if self.mask is not None:
            if x.shape[:2].numel() == self.mask.numel():
                live = self.mask.reshape(x.shape[:2])
            else:
                self.note_padding(site.operator)
        counts, touched = products.matrix_product(x, self._describe(w, products.describe_weight), live)
        self._touch(site, w, touched * w.shape[2])
        self._add(site, counts)

    def _is_weight(self, operand: Tensor) -> bool:
        return operand in self.weights or operand in self.buffers

    def convolution(
        self, site: Site, x: Tensor, w: Tensor, bias: Tensor | None, geometry: list, result: Tensor
    ) -> None:
        self.note_padding(site.operator)
        weight, reach = self._describe(w, products.describe_convolution, geometry, x.shape[1:])
        self._add(site, products.convolution(x, weight, reach, result.numel()))
        self._touch(site, w, w.numel())
        if bias is not None:
            self.bias(site, bias, result, sweeps=result.shape[0])

    def embedding(self, site: Site, table: Tensor, ids: Tensor) -> None:
        live = self._live(ids)
        ids = ids.flatten() if live is None else ids[live]
        fetched = ids.numel() * table.shape[1]
        rows = torch.zeros(table.shape[0], dtype=torch.int64, device=ids.device)
        rows[ids] = table.shape[1]
        self._touch(site, table, rows)
        work = {
            "weights_per_event": fetched,
            "weights_dense": fetched,
            "activation_reads": ids.numel(),
            "activation_writes": fetched,
        }
        self._add(site, Counts(calls=1, **work))

    def attention(self, site: Site, query: Tensor, key: Tensor, value: Tensor, is_causal: bool) -> None:
        self.note_padding(site.operator)
        self._add(site, products.attention(query, key, value, is_causal))

    def bias(self, site: Site, bias: Tensor, result: Tensor, sweeps: int | None = None) -> None:
        """Count the addition of `bias`, which is read `sweeps` times: once per row unless told."""
        elements = self._live_elements(site.operator, result)
        if bias in self.weights:
            fetched = (elements // max(bias.numel(), 1) if sweeps is None else sweeps) * bias.numel()
            self._touch(site, bias, bias.numel())
            self._add(site, Counts(add=elements, weights_per_event=fetched, weights_dense=fetched))
        else:
            self._add(site, Counts(add=elements, activation_reads=elements))

    def scaled_bias(
        self, site: Site, bias: Tensor, result: Tensor, beta: float = 1, alpha: float = 1, **_: Any
    ) -> None:
        """Count beta * bias + alpha * product: a factor other than 1 multiplies all, a beta of 0 drops the bias."""
        if beta != 0:
            self.bias(site, bias, result)
        factors = (beta not in (0, 1)) + (alpha != 1)
        self._add(site, Counts(mul=factors * self._live_elements(site.operator, result)))

    def _describe(self, w: Tensor, describe: Callable, *options: Any) -> Any:
        """Return describe(w, *options), computed once while the weight stays as it is."""
        if w.is_inference():
            return describe(w, *options)
        key = (storage_key(w), w.storage_offset(), tuple(w.shape), w.stride(), w._version, describe, repr(options))
        if key not in self._described:
            # the weak reference keeps the key from being given to other memory
            self._described[key] = (StorageWeakRef(w.untyped_storage()), describe(w, *options))
        return self._described[key][1]


def _sweeps(weight: Tensor, result: Tensor, outputs: int) -> int:
    """How often an elementwise operator reads a whole weight: once per vector of `result` that it is spread over."""
    shape = [*weight.shape]
    while shape and shape[0] == 1:
        shape.pop(0)
    vector = result.shape[result.dim() - len(shape) :].numel() if shape else result.numel()
    return outputs // max(vector, 1)


def _mm(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0].unsqueeze(0), args[1].unsqueeze(0))


def _addmm(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1].unsqueeze(0), args[2].unsqueeze(0))
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _bmm(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0], args[1])


def _baddbmm(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1], args[2])
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _mv(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0].unsqueeze(0), args[1][None, :, None])


def _addmv(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[1].unsqueeze(0), args[2][None, :, None])
    recorder.scaled_bias(site, args[0], results[0], **kwargs)


def _dot(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.product(site, args[0][None, None, :], args[1][None, :, None])


def _convolution(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    x, w, bias, *geometry = args
    recorder.convolution(site, x, w, bias, geometry, results[0])


def _embedding(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    recorder.embedding(site, args[0], args[1])


def _attention(recorder: Recorder, site: Site, args: tuple, kwargs: dict, results: list[Tensor]) -> None:
    query, key, value = args[:3]
    is_causal = kwargs.get("is_causal", args[4] if len(args) > 4 else False)
    recorder.attention(site, query, key, value, is_causal)


PRODUCTS: dict[str, tuple[str, Callable]] = {
    "mm": ("matmul", _mm),
    "addmm": ("matmul", _addmm),
    "bmm": ("matmul", _bmm),
    "baddbmm": ("matmul", _baddbmm),
    "mv": ("matmul", _mv),
    "addmv": ("matmul", _addmv),
    "dot": ("matmul", _dot),
    "vdot": ("matmul", _dot),
    "convolution": ("convolution", _convolution),
    "embedding": ("embedding", _embedding),
    "_scaled_dot_product_flash_attention_for_cpu": ("matmul", _attention),
}
