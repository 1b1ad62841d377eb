"""OpCounter: sees every operation that a torch model performs, and adds up what it really computed.

Torch's dispatch mode shows the operators and the tensors they consume, hooks say in which module. What depends on
parameters alone (a transposed weight, exp(-exp(time_decay))) is prepared once in a deployment and is not counted.

An operator that is not torch's own declares its cost itself: its overload carries a function
`op_cost(args, kwargs, output) -> mapping` of
    quantities of Counts to numbers, all optional;
    "kind" to one of KINDS;
    "product" to (x, w), if the operator multiplies x (..., K) by the weight w (K, M): it is then counted from their
        values like torch.mm, and the quantities are what comes on top;
    "state_elements" to the state that is carried per text.
A module may have an `op_cost` of the same form, for what cannot be seen in operators, such as the state it carries.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from . import rules
from .counts import Counts, Footprint, Tally, Uncounted
from .dispatch import OperatorMode, is_backward, mutated, operator_name, tensors_in, without_tensors
from .recorder import CountError, Recorder
from .storages import has_storage, storage_key

CostFunction = Callable[[tuple, Mapping[str, Any], Any], Mapping[str, Any]]

PREFILL, DECODE = "prefill", "decode"


class UncountedOperator(CountError):
    """In strict mode: an operator ran that has no rule."""


def declare_cost(operator: OpOverload, cost: CostFunction) -> None:
    """Give `operator` (e.g. torch.ops.mine.scan.default) its cost function, as described at the top of this file."""
    if not isinstance(operator, OpOverload):
        raise CountError(f"want an overload such as torch.ops.mine.scan.default, got {type(operator).__name__}")
    # an overload takes any attribute, and its stubs know none
    overload: Any = operator
    overload.op_cost = cost


class OpCounter:
    """Counts what a model computes while this context is entered: `with OpCounter(model) as counter: model(ids)`.

    Works in no_grad, inference_mode and with gradients. What runs outside of the model's modules, and backward passes,
    are not counted, only numbered in `outside_operators` and `backward_operators`. Calls of the model on one token per
    text are the phase "decode", all others "prefill".
    Weights may change between contexts, and within one by in-place operators, but not through `.data`.

    Args:
        model: its modules give the sites their names, its parameters and buffers are the weights.
        strict: raise UncountedOperator at the first operator without a rule, instead of listing it.
        mask: (B, T) bool, False at padding, of the inputs to come; may be set anew between calls: `counter.mask = ...`.
            It needs tensors with (B, T, ...) or (B * T, ...) at their front. What has no such front, such as a product
            of two activations, is counted with its padding and listed in `padding_included`, operator -> calls.

    Raises:
        CountError: no module; a mask of another shape or dtype, or one whose length is also a width of the model.
        UncountedOperator: see `strict`.
    """

    def __init__(self, model: nn.Module, *, strict: bool = False, mask: Tensor | None = None):
        if not isinstance(model, nn.Module):
            raise CountError(f"want a torch module to count, got {model!r:.80}")
        self.model, self.strict = model, strict
        self.outside_operators = self.backward_operators = 0
        self._recorder = Recorder()
        self._names: dict[int, str] = {}
        self._tokens: dict[str, int] = {}
        self._uncounted: dict[str, Uncounted] = {}
        self._stack: list[str] = []
        self._phase = PREFILL
        self._chosen_phase: str | None = None
        self._hooks: list[Any] = []
        self._fused_attention = True
        self._unfused = ExitStack()
        self._mode, self._is_counting = OperatorMode(self._observe), False
        self.mask = mask

    @property
    def mask(self) -> Tensor | None:
        return self._recorder.mask

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        if mask is not None:
            if not isinstance(mask, Tensor):
                raise CountError(f"mask must be a tensor (B, T) of bool, got a {type(mask).__name__}")
            if mask.dim() != 2 or mask.dtype != torch.bool:
                raise CountError(f"mask must be (B, T) bool, False at padding; got {mask.dtype} {tuple(mask.shape)}")
            if mask.shape[1] in {side for parameter in self.model.parameters() for side in parameter.shape}:
                raise CountError(
                    f"the padded length {mask.shape[1]} is also a width of the model, "
                    "so (B, T) cannot be told from (B, C); pad by one more"
                )
        self._recorder.mask = mask

    @property
    def padding_included(self) -> dict[str, int]:
        return self._recorder.padding_included

    def __enter__(self) -> "OpCounter":
        if self._is_counting:
            raise CountError("this OpCounter is already counting; make another one for a count within a count")
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.model.modules()):
            raise CountError(
                "a TorchScript module lets nobody look inside; count the model before it is scripted or traced"
            )
        recorder = self._recorder
        recorder.forget_weights()
        for parameter in self.model.parameters():
            recorder.weights.add(parameter, storage_key(parameter), parameter.numel())
        for buffer in self.model.buffers():
            # a single number is a constant; anything larger may be the state of a neuron,
            # and is counted where it is used
            storages = recorder.weights if buffer.numel() == 1 else recorder.buffers
            storages.add(buffer, storage_key(buffer), buffer.numel())
        self._names = {id(module): name for name, module in self.model.named_modules()}
        for module in self.model.modules():
            self._hooks.append(module.register_forward_pre_hook(self._enter_module, with_kwargs=True))
            self._hooks.append(module.register_forward_hook(self._leave_module, with_kwargs=True, always_call=True))
        self._fused_attention = torch.backends.mha.get_fastpath_enabled()
        # torch's fused encoder layer shows nothing of what it does
        torch.backends.mha.set_fastpath_enabled(False)
        self._is_counting = True
        self._mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._is_counting = False
        self._mode.__exit__(*error)
        torch.backends.mha.set_fastpath_enabled(self._fused_attention)
        self._unfused.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stack.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within this block everything belongs to the phase `name`."""
        before, self._chosen_phase = self._chosen_phase, name
        try:
            yield
        finally:
            self._chosen_phase = before

    def tally(self) -> Tally:
        """Return what was counted so far. The counter may go on.

        Raises:
            CountError: operators ran, and none of them in this model.
        """
        recorder = self._recorder
        if self.outside_operators and not self._tokens:
            raise CountError(
                f"{self.outside_operators} operators ran, but not in this {type(self.model).__name__}; "
                "was another model called?"
            )
        sites = {
            site: counts + Counts(weights_once=recorder.weights_once(site)) for site, counts in recorder.sites.items()
        }
        parameters = {storage_key(parameter): parameter.detach() for parameter in self.model.parameters()}
        footprint = Footprint(
            parameters=sum(parameter.numel() for parameter in parameters.values()),
            zero_parameters=sum(int((parameter == 0).sum()) for parameter in parameters.values()),
            buffers=sum(buffer.numel() for buffer in self.model.buffers()),
            state=sum(recorder.state_elements.values()),
            peak_activations=recorder.peak_activations,
        )
        uncounted = tuple(self._uncounted.values())
        return Tally(
            sites=sites,
            kinds=dict(recorder.kinds),
            tokens=dict(self._tokens),
            uncounted=uncounted,
            footprint=footprint,
            names=tuple(name for name, _ in self.model.named_modules()),
        )

    def _enter_module(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        is_outermost = not self._stack
        self._stack.append(self._names[id(module)])
        if isinstance(module, nn.RNNBase):
            # oneDNN's fused layers show nothing of what they do
            self._unfused.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(False)
        if is_outermost and not is_backward():
            tensors = tensors_in(*tree_leaves((args, kwargs)))
            for tensor in tensors:
                # the caller may have made it of constants; to the model it is data
                if not isinstance(tensor, nn.Parameter):
                    self._recorder.weights.discard(tensor)
            with self._mode.looking_away():
                self._start_call(tensors[0] if tensors else None)

    def _leave_module(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        where, phase = self._stack.pop(), self._current_phase()
        if isinstance(module, nn.RNNBase):
            self._unfused.close()
        # a forward pass that failed has no output
        if output is None:
            return
        with self._mode.looking_away():
            if self._recorder.has_spikes:
                for tensor in tensors_in(*tree_leaves(output)):
                    self._recorder.emit(tensor, where, phase)
            if hasattr(type(module), "op_cost"):
                cost: Any = module.op_cost
                self._recorder.record_declared(type(module).__name__, where, phase, "state", cost, args, kwargs, output)

    def _start_call(self, first: Tensor | None) -> None:
        """Number the tokens of one call of the model: (B, T) ids, (B, T, C) vectors, or one per sample."""
        sequences, tokens = None, 1
        if first is not None and first.dim():
            is_ids = first.dim() == 2 and not first.is_floating_point()
            sequences = first.shape[:2] if is_ids or first.dim() == 3 else None
            tokens = first.shape[0] if sequences is None else sequences.numel()
        if self.mask is not None:
            if sequences != self.mask.shape:
                found = None if first is None else tuple(first.shape)
                raise CountError(
                    f"the mask is {tuple(self.mask.shape)}, the model's input {found}; they must agree in (B, T)"
                )
            tokens = int(self.mask.sum())
        self._phase = DECODE if sequences is not None and sequences[1] == 1 else PREFILL
        self._recorder.start_call(tokens)
        self._tokens[self._current_phase()] = self._tokens.get(self._current_phase(), 0) + tokens

    def _current_phase(self) -> str:
        return self._chosen_phase or self._phase

    def _observe(self, func, args: tuple, kwargs: dict, output: Any) -> None:
        """Take note of one operator that has just run."""
        if is_backward():
            self.backward_operators += 1
            return
        recorder, name = self._recorder, operator_name(func)
        inputs, results = tensors_in(args, kwargs), tensors_in(output)
        if self._is_preparation(func, name, inputs):
            self._remember(func, name, args, kwargs, inputs, results)
            return
        for tensor in mutated(func, args, kwargs):
            recorder.weights.discard(tensor)
        if not self._stack:
            self.outside_operators += 1
            return
        where, phase = self._stack[-1], self._current_phase()
        cost = getattr(func, "op_cost", None)
        if not all(map(has_storage, (*inputs, *results))):
            self._list_uncounted(func, where, results)
        elif cost is not None:
            recorder.record_declared(func._schema.name, where, phase, "scan", cost, args, kwargs, output)
        elif not recorder.record(name, where, phase, args, kwargs, inputs, results) and name not in rules.FREE:
            self._list_uncounted(func, where, results)

    def _remember(
        self, func, name: str, args: tuple, kwargs: dict, inputs: list[Tensor], results: list[Tensor]
    ) -> None:
        """The results are weights, with a name that tells how they were made."""
        made_of = [self._recorder.weights.member(tensor) for tensor in inputs]
        name_of_result = hash((str(func), *(member.name for member in made_of), repr(without_tensors(args, kwargs))))
        for result in results:
            if result in self._recorder.weights:
                continue
            size = made_of[0].size if name in rules.COPIES else result.numel()
            self._recorder.weights.add(result, name_of_result, size)

    def _is_preparation(self, func, name: str, inputs: list[Tensor]) -> bool:
        """True if the result depends on weights and constants only. Outside the model a constant is data for it."""
        if name in rules.STATE_MAKERS:
            return False
        if not inputs:
            return bool(self._stack) and torch.Tag.nondeterministic_seeded not in func.tags
        return all(tensor in self._recorder.weights for tensor in inputs)

    def _list_uncounted(self, func, where: str, results: list[Tensor]) -> None:
        if self.strict:
            raise UncountedOperator(
                f"{func} in module {where!r} has no rule; give it one with declare_cost, or count without strict"
            )
        before = self._uncounted.get(str(func), Uncounted(str(func), 0, 0))
        elements = sum(result.numel() for result in results)
        self._uncounted[str(func)] = Uncounted(str(func), before.calls + 1, before.elements + elements)
