"""What one operator cost: the recorder is told of every operator with its operands, and adds the counts to a site.

It knows nothing of hooks and dispatch; `counter.py` tells it what ran, and where.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map

from . import attention, complex_rules, moves, products, rules, structured
from .accounts import Accounts
from .counts import KINDS, QUANTITIES, Counts, Site, times
from .described import DescribedWeights
from .dispatch import named_arguments
from .padding import Padding
from .product_operators import PRODUCTS
from .provenance import Origin
from .row_products import RowProducts
from .spikes import Spikes, emission, repeated_events
from .storages import storage_key, view_key, width
from .weights import sweeps


class CountError(ValueError):
    """The counter was asked for something it cannot do; the message says what to do."""


SPIKE = "spike"
"""the operator of sites where a tensor was seen to be spikes"""


class Recorder(Padding):
    """Counts by site."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[str, str] = {}
        self.spikes = Spikes(lambda tensor: self.provenance.of(tensor) is not Origin.DATA)
        self.state_elements: dict[tuple[str, str], int] = {}
        self.call_tokens = 1
        self.peak_activations = 0
        self._module, self._phase = "", ""
        self.accounts = Accounts()
        self._weights = DescribedWeights(self.provenance, self.accounts)
        self.log: list[tuple[Site, Counts]] | None = None
        """what one operator has cost, while somebody wants to know"""
        self.logged_rows: list[RowProducts] = []

    @property
    def sites(self) -> dict[Site, Counts]:
        return self.accounts.settled.sites

    def forget_weights(self) -> None:
        """Look at every weight anew, for it may have changed."""
        self._weights.forget_all()

    def forget_weight(self, weight: Tensor) -> None:
        """Look at this one anew: an operator has written to it."""
        self._weights.forget(weight)

    def settle_rows(self) -> None:
        """Add up the rows that met weights one by one."""
        self._weights.settle_rows()

    def start_log(self, is_wanted: bool) -> None:
        """Write down what the next operator costs, if somebody wants to know."""
        self.log, self.logged_rows = [] if is_wanted else None, []

    def start_call(self, tokens: int) -> None:
        """The model is called on so many tokens; what the call before has left is forgotten."""
        self.call_tokens = tokens
        if self.spikes:
            self.spikes.forget_freed()
        self._weights.forget_freed()

    def weights_once(self, site: Site) -> int:
        """Return how many distinct weights were needed at `site`."""
        return self.accounts.settled.use.needed(site)

    def record(
        self,
        func: OpOverload,
        name: str,
        module: str,
        phase: str,
        args: tuple,
        kwargs: dict,
        inputs: list[Tensor],
        results: list[Tensor],
    ) -> bool:
        """Add the counts of one operator of torch; False if it has no rule."""
        self._module, self._phase, self._padding_noted = module, phase, False
        is_known = self._count(func, name, args, kwargs, inputs, results)
        self.spikes.follow(name, module, kwargs, inputs, results)
        return is_known

    def _count(
        self, func: OpOverload, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], results: list[Tensor]
    ) -> bool:
        if name in PRODUCTS:
            kind, count = PRODUCTS[name]
            return count(self, self._site(kind, kind), args, kwargs, results) is not False
        if name in structured.GATHERS and self.provenance.of(args[0]) is not Origin.DATA:
            self._gather(name, args, results[0])
            return True
        arguments: Mapping[str, Any] = {}
        if name in structured.NORMS or name in structured.STRUCTURED:
            arguments = named_arguments(func, args, kwargs)
        if name in moves.MOVES or (name in moves.MOVES_OR_REDUCTIONS and not structured.is_reduction(arguments)):
            elements = self._live_elements(name, results[0]) * width(results[0])
            self._add(self._site(name, "move"), Counts(calls=1, activation_reads=elements, activation_writes=elements))
            return True
        if name in moves.DRAWS and name not in structured.STRUCTURED:
            elements = self._live_elements(name, results[0]) * width(results[0])
            self._add(self._site(name, "move"), Counts(calls=1, activation_writes=elements))
            return True
        # the range of ids is looked at before they are read
        if name in moves.FREE or (name == "aminmax" and not inputs[0].is_floating_point()):
            return True
        work = self._work(name, args, kwargs, arguments, inputs, results)
        if work is None:
            return False
        self._count_elementwise(name, work, inputs, results)
        return True

    def _work(
        self,
        name: str,
        args: tuple,
        kwargs: dict,
        arguments: Mapping[str, Any],
        inputs: list[Tensor],
        results: list[Tensor],
    ) -> Mapping[str, int] | None:
        """Return class -> operations of one elementwise operator, None without a rule."""
        is_complex = any(tensor.is_complex() for tensor in (*inputs, *results[:1]))
        if arguments and is_complex:
            return None
        if name in structured.NORMS:
            rows = structured.rows_of_norm(name, results, inputs[0])
            if self.mask is not None:
                rows = self._live_elements(name, results[1])
            return structured.NORMS[name](arguments, self._live_elements(name, results[0]), rows)
        if arguments:
            self.note_padding(name)
            return structured.STRUCTURED[name](arguments, results)
        outputs = self._live_elements(name, results[0]) if results else 0
        rows = outputs
        if name == "_log_softmax":
            rows = outputs // max(results[0].shape[args[1]], 1) if results[0].dim() else outputs
        sizes = (self._live_elements(name, inputs[0]) if inputs else 0, outputs, rows)
        if is_complex:
            return complex_rules.elementwise(name, args, kwargs, *sizes)
        return rules.elementwise(name, args, kwargs, *sizes) if rules.has_rule(name) else None

    def record_declared(
        self, name: str, module: str, phase: str, kind: str, cost: Callable, args: tuple, kwargs: Mapping, output: Any
    ) -> None:
        """Add what an operator or a module declares of itself."""
        self._module, self._phase, self._padding_noted = module, phase, False
        live = (args, kwargs, output) if self.mask is None else tree_map(self._only_live, (args, dict(kwargs), output))
        declared = dict(cost(*live))
        if "events_out" in declared and "repeated_events" not in declared:
            declared["repeated_events"] = repeated_events(declared["events_out"], live[2])
        kind = declared.pop("kind", kind)
        state = declared.pop("state_elements", 0)
        product = declared.pop("product", None)
        unknown = declared.keys() - QUANTITIES
        if unknown or kind not in KINDS:
            raise CountError(
                f"op_cost of {name} declares {sorted(unknown) or kind!r}; "
                f"quantities are fields of Counts, kinds are {', '.join(KINDS)}"
            )
        site = self._site(name, kind)
        self.state_elements[module, name] = max(state, self.state_elements.get((module, name), 0))
        if "weights_once" in declared:
            self.accounts.current.use.declare(site, declared.pop("weights_once"))
        # a product counts the call itself
        self.accounts.current.add_some(site, {"calls": int(product is None)} | declared)
        self._note_moved(declared.get("activation_reads", 0) + declared.get("activation_writes", 0))
        if product is not None:
            # `product` leaves padding out itself, so it is given the operands with their padding
            self._declared_product(site, *(product if self.mask is None else cost(args, kwargs, output)["product"]))

    def record_state(self, module: str, phase: str, counts: Counts, of_one_text: int) -> None:
        """Add what a module was seen to carry from call to call."""
        self._module, self._phase = module, phase
        self._add(self._site("carried_state", "state"), counts)
        key = (module, "carried_state")
        self.state_elements[key] = max(of_one_text, self.state_elements.get(key, 0))

    def _declared_product(self, site: Site, x: Tensor, w: Tensor) -> None:
        """Count x (..., K) times the weight w (K, M) as torch's own products are counted."""
        if x.dim() == 0 or w.dim() != 2 or x.shape[-1] != w.shape[0]:
            raise CountError(
                f"op_cost of {site.operator} declares a product of {tuple(x.shape)} and {tuple(w.shape)}; "
                "want (..., K) and (K, M)"
            )
        # it may have been prepared before anything was counted
        if self.provenance.of(w) is Origin.DATA:
            self.provenance.add(Origin.WEIGHT, w, storage_key(w), width(w) * w.numel())
        self.product(site, x.reshape(1, -1, x.shape[-1]), w.unsqueeze(0))

    def _site(self, operator: str, kind: str) -> Site:
        self.kinds.setdefault(operator, kind)
        return Site(self._module, operator, self._phase)

    def _add(self, site: Site, counts: Counts) -> None:
        if self.log is not None:
            self.log.append((site, times(counts, 1)))
        self.accounts.current.add(site, counts)
        self._note_moved(counts.activation_reads + counts.activation_writes)

    def _note_moved(self, elements: int) -> None:
        """One operation has read and written so many."""
        self.peak_activations = max(self.peak_activations, -(-elements // max(self.call_tokens, 1)))

    def _touch(self, site: Site, weight: Tensor, touched: Tensor | int) -> None:
        """Remember which weights were needed: how many, or how many for each input element."""
        member = self.provenance.member(weight)
        if member is not None:
            self.accounts.current.use.add(site, view_key(weight), member, torch.as_tensor(touched))

    # elementwise --------------------------------------------------------------------------------------------------

    def _count_elementwise(
        self, name: str, work: Mapping[str, int], inputs: list[Tensor], results: list[Tensor]
    ) -> None:
        site = self._site(name, rules.kind_of(name))
        outputs = self._live_elements(name, results[0]) if results else 0
        counts = Counts(calls=1, activation_writes=outputs * width(*results[:1]), **work)
        if name in moves.DRAWS:
            # nobody reads what is drawn anew
            inputs = [tensor for tensor in inputs if tensor is not results[0]]
        for tensor in inputs:
            if self.provenance.of(tensor) is Origin.WEIGHT:
                numbers = tensor.numel() * width(tensor)
                counts.weights_dense += sweeps(tensor, results[0], outputs) * numbers
                self._touch(site, tensor, numbers)
            else:
                counts.activation_reads += self._live_elements(name, tensor) * width(tensor)
        counts.weights_per_event = counts.weights_dense
        self._add(site, counts)

    def emit(self, tensor: Tensor, phase: str) -> None:
        """Count the spikes of a tensor that leaves its module or enters a product, if they were not counted before.

        They are counted where they were born, for the module that reads them has no neurons. A neuron may compare its
        potential a second time for its reset; that is no spike for anyone else.
        """
        if tensor not in self.spikes:
            return
        site = Site(self.spikes.birthplace(tensor), SPIKE, phase)
        self.kinds[site.operator] = "neuron"
        self.spikes.discard(tensor)
        live = self._live(tensor)
        self._add(site, Counts(calls=1, **emission(tensor if live is None else tensor[live])))

    # products -----------------------------------------------------------------------------------------------------

    def product(self, site: Site, x: Tensor, w: Tensor) -> None:
        """Count x (G, N, K) times w (G, K, M); either may be the weight."""
        of_x, of_w = self.provenance.of(x), self.provenance.of(w)
        # the rows that meet a weight, also from its right
        for operand in (x, w.mT if of_x > of_w else w):
            self.emit(operand, site.phase)
        if x.numel() == 0 or w.numel() == 0:
            return
        if of_x is of_w is Origin.DATA:
            self.note_padding(site.operator)
            self._add(site, products.activation_product(x, w))
            return
        if of_x > of_w:
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
        if RowProducts.takes(x, w):
            self._rows(site, x if live is None else x[live].unsqueeze(0), w)
            return
        counts, touched = products.matrix_product(x, self._weights.describe(w, products.describe_weight), live)
        self._touch(site, w, touched * w.shape[2] * width(w))
        self._add(site, counts)

    def _rows(self, site: Site, x: Tensor, w: Tensor) -> None:
        """Count the rows of x (1, N, K) times w (1, K, M)."""
        rows = self._weights.rows(site, w)
        if rows is not None:
            rows.add(x)
            if self.log is not None:
                self.logged_rows.append(rows)
            self._note_moved(x.shape[1] * (w.shape[1] + w.shape[2]))
            return
        alone = RowProducts(site, w, self._weights.describe(w, products.describe_weight))
        alone.add(x)
        self._touch(site, w, alone.touched() * w.shape[2])
        self._add(site, alone.counts())

    def convolution(
        self, site: Site, x: Tensor, w: Tensor, bias: Tensor | None, geometry: list, result: Tensor
    ) -> None:
        self.note_padding(site.operator)
        if x.numel() and w.numel():
            weight, reach = self._weights.describe(w, products.describe_convolution, geometry, x.shape[1:])
            self._add(site, products.convolution(x, weight, reach, result.numel()))
            self._touch(site, w, w.numel())
        if bias is not None:
            self.bias(site, bias, result, sweeps=result.shape[0])

    def embedding(self, site: Site, table: Tensor, ids: Tensor) -> None:
        live = self._live(ids)
        ids = ids.flatten() if live is None else ids[live]
        row = table[0].numel() * width(table) if len(table) else 0
        fetched = ids.numel() * row
        member = self.provenance.member(table)
        if member is not None:
            self.accounts.current.use.add_rows(site, view_key(table), member, ids, len(table), row)
        work = {
            "weights_per_event": fetched,
            "weights_dense": fetched,
            "activation_reads": ids.numel(),
            "activation_writes": fetched,
        }
        self._add(site, Counts(calls=1, **work))

    def _gather(self, name: str, args: tuple, result: Tensor) -> None:
        """Count numbers that are looked up in a weight: as an embedding, however it is written."""
        table, site = args[0], self._site("embedding", "embedding")
        rows = structured.rows_looked_up(name, args)
        if rows is not None:
            self.embedding(site, table, rows)
            return
        fetched = self._live_elements(name, result) * width(result)
        self._touch(site, table, structured.looked_up(name, args) * width(table))
        work = {"weights_per_event": fetched, "weights_dense": fetched, "activation_writes": fetched}
        self._add(site, Counts(calls=1, **work))

    def attention(
        self,
        site: Site,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_causal: bool,
        mask: Tensor | None,
        scale: float | None,
    ) -> None:
        self.note_padding(site.operator)
        for operand in (query, key, value):
            self.emit(operand, site.phase)
        self._add(site, attention.attention(query, key, value, is_causal, mask, scale))

    def bias(self, site: Site, bias: Tensor, result: Tensor, sweeps: int | None = None) -> None:
        """Count the addition of `bias`, which is read `sweeps` times: once per row unless told."""
        elements = self._live_elements(site.operator, result) * width(result)
        if self.provenance.of(bias) is Origin.WEIGHT:
            numbers = bias.numel() * width(bias)
            fetched = (elements // max(numbers, 1) if sweeps is None else sweeps) * numbers
            self._touch(site, bias, numbers)
            self._add(site, Counts(add=elements, weights_per_event=fetched, weights_dense=fetched))
        else:
            self._add(site, Counts(add=elements, activation_reads=elements))

    def scaled_bias(
        self, site: Site, bias: Tensor, result: Tensor, beta: complex = 1, alpha: complex = 1, **_: Any
    ) -> None:
        """Count beta * bias + alpha * product: a factor other than 1 multiplies all, a beta of 0 drops the bias."""
        if beta != 0:
            self.bias(site, bias, result)
        elements = self._live_elements(site.operator, result)
        for factor in (beta, alpha):
            if factor not in (0, 1):
                work = complex_rules.factor(factor) if result.is_complex() else {"mul": 1}
                self._add(site, Counts(**{operation: number * elements for operation, number in work.items()}))
