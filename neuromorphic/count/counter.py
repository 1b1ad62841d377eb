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

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from . import moves
from .calls import Text, Texts, read_text
from .carried import CarriedState
from .counts import Counts, Tally, Uncounted
from .dispatch import OperatorMode, is_backward, mutated, operator_name, tensors_in, unseen
from .footprint import footprint
from .places import CostFunction, Place
from .provenance import Origin
from .recorder import CountError, Recorder
from .recurrent import state_cost
from .replay import Call, Replays
from .storages import has_storage, plain_tensors

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

    Works in no_grad, inference_mode, with gradients, under torch.func and for compiled modules, which run as they are
    written. What runs outside of the model's modules, and backward passes, are not counted, only numbered in
    `outside_operators` and `backward_operators`. Calls of the model on one token per text are the phase "decode", all
    others "prefill"; calls of its modules from outside belong to the text that they read on.
    Weights may change between contexts, and within one by torch. What does not go through torch's operators cannot be
    seen, and `strict` cannot refuse it: numpy inside of a model, memory written by other libraries, other threads.

    Args:
        model: its modules give the sites their names, its parameters and buffers are the weights.
        strict: raise UncountedOperator at the first operator of torch without a rule, instead of listing it.
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
        self._modules: list[nn.Module] = []
        # how many modules are running whose state is declared
        self._declaring = 0
        self._tokens: dict[str, int] = {}
        self._uncounted: dict[str, Uncounted] = {}
        self._uncounted_in: dict[str, dict[str, None]] = {}
        self._stack: list[str] = []
        self._phase = PREFILL
        self._chosen_phase: str | None = None
        self._hooks: list[Any] = []
        self._fused_attention = True
        self._unfused, self._uncompiled = ExitStack(), ExitStack()
        self._texts, self._carried = Texts(model), CarriedState()
        self._replays = Replays(self._recorder, self._carried)
        self._mode, self._is_counting = OperatorMode(self._observe, self._overlook, self._replays), False
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
            if mask.shape[1] in {side for parameter in self._parameters() for side in parameter.shape}:
                raise CountError(
                    f"the padded length {mask.shape[1]} is also a width of the model, "
                    "so (B, T) cannot be told from (B, C); pad by one more"
                )
        self._recorder.mask = mask
        self._turn()

    @property
    def padding_included(self) -> dict[str, int]:
        return self._recorder.padding_included

    def __deepcopy__(self, memo: dict) -> "OpCounter":
        """A model that is copied while it is counted takes its hooks along, and they lead here."""
        return self

    def __enter__(self) -> "OpCounter":
        if self._is_counting:
            raise CountError("this OpCounter is already counting; make another one for a count within a count")
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.model.modules()):
            raise CountError(
                "a TorchScript module lets nobody look inside; count the model before it is scripted or traced"
            )
        self._recorder.forget_weights()
        self._modules = list(self.model.modules())
        self._recorder.provenance.look_at(self._modules)
        for name, module in self.model.named_modules():
            place = Place.of(name, module)
            enter, leave = partial(self._enter_module, place), partial(self._leave_module, place)
            # before all other hooks, which compute pruned weights and make lazy ones
            self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            self._hooks.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        self._fused_attention = torch.backends.mha.get_fastpath_enabled()
        # torch's fused encoder layer shows nothing of what it does
        torch.backends.mha.set_fastpath_enabled(False)
        if "torch._dynamo" in sys.modules:
            # compiled functions run as they are written; one that must be a single graph would refuse
            self._uncompiled.enter_context(torch.compiler.set_stance("force_eager"))
        self._is_counting = True
        self._mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._is_counting = False
        self._mode.__exit__(*error)
        torch.backends.mha.set_fastpath_enabled(self._fused_attention)
        self._unfused.close()
        self._uncompiled.close()
        self._look_at_state()
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._stack.clear()
        self._turn()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within this block everything belongs to the phase `name`."""
        before, self._chosen_phase = self._chosen_phase, name
        self._turn()
        try:
            yield
        finally:
            self._chosen_phase = before
            self._turn()

    def tally(self) -> Tally:
        """Return what was counted so far. The counter may go on.

        Raises:
            CountError: operators ran, and none of them in this model.
        """
        with unseen():
            return self._tally()

    def _tally(self) -> Tally:
        recorder = self._recorder
        self._look_at_state()
        self._replays.settle()
        if self.outside_operators and not self._tokens:
            raise CountError(
                f"{self.outside_operators} operators ran, but not in this {type(self.model).__name__}; "
                "was another model called?"
            )
        sites = {
            site: counts + Counts(weights_once=recorder.weights_once(site)) for site, counts in recorder.sites.items()
        }
        return Tally(
            sites=sites,
            kinds=dict(recorder.kinds),
            tokens=dict(self._tokens),
            uncounted=tuple(self._uncounted.values()),
            footprint=footprint(
                self._parameters(), self._buffers(), recorder.state_elements, recorder.peak_activations
            ),
            names=tuple(name for name, _ in self.model.named_modules()),
            uncounted_in={module: tuple(operators) for module, operators in self._uncounted_in.items()},
        )

    def _enter_module(self, place: Place, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if place.identity != id(module):
            return
        is_outermost = not self._stack
        self._stack.append(place.where)
        self._declaring += place.is_declared
        if not self._declaring:
            self._carried.start_call(place.where, args[0] if args and isinstance(args[0], Tensor) else None)
        if place.is_recurrent:
            # oneDNN's fused layers show nothing of what they do
            self._unfused.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
            torch._C._set_mkldnn_enabled(False)
        if is_outermost and not is_backward():
            with unseen():
                self._start_call(module, args, kwargs)
        self._turn()

    def _leave_module(self, place: Place, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if place.identity != id(module):
            return
        self._stack.pop()
        phase = self._current_phase()
        self._declaring -= place.is_declared
        self._turn()
        if place.is_recurrent:
            self._unfused.close()
        # a forward pass that failed has no output
        if output is not None and (self._recorder.spikes or not self._stack or place.is_declared):
            with unseen():
                self._finish_call(place, module, phase, args, kwargs, output)

    def _turn(self) -> None:
        """Say to which module the operators to come belong."""
        if self._stack and self.mask is None and not is_backward():
            self._replays.turn_to(self._stack[-1], self._current_phase(), bool(self._declaring))
        else:
            self._replays.turn_away()

    def _finish_call(self, place: Place, module: nn.Module, phase: str, args: tuple, kwargs: dict, output: Any) -> None:
        recorder, is_outermost = self._recorder, not self._stack
        if recorder.spikes or is_outermost:
            tensors = [part for tensor in tensors_in(*tree_leaves(output)) for part in plain_tensors(tensor)]
            for tensor in tensors:
                recorder.emit(tensor, phase)
            if is_outermost:
                self._texts.finish(tensors)
        cost = place.cost
        if cost is None and place.is_declared and not self._declaring:
            cost = partial(state_cost, module)
        if cost is not None:
            name = type(module).__name__
            recorder.record_declared(name, place.where, phase, "state", cost, args, kwargs, output)

    def _start_call(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Number the tokens of one call of the model, or of one of its modules from outside."""
        provenance, text = self._recorder.provenance, read_text(module, args, kwargs)
        self._look_at_state()
        is_prepared = text.tensor is not None and provenance.of(text.tensor) is Origin.WEIGHT
        for tensor in tensors_in(*tree_leaves((args, kwargs))):
            # the caller may have made it of constants; to the model it is data
            if not isinstance(tensor, nn.Parameter):
                for part in plain_tensors(tensor):
                    provenance.discard(part)
        added, is_new = self._texts.start(module, text, is_prepared)
        if is_new:
            self._carried.start_text(text.tensor)
        if added is None:
            return
        tokens = self._live_tokens(text) if is_new and self.mask is not None else added
        self._phase = DECODE if text.is_decoding else PREFILL
        self._recorder.start_call(tokens)
        self._tokens[self._current_phase()] = self._tokens.get(self._current_phase(), 0) + tokens

    def _live_tokens(self, text: Text) -> int:
        assert self.mask is not None
        if text.sequences != self.mask.shape:
            found = None if text.tensor is None else tuple(text.tensor.shape)
            raise CountError(
                f"the mask is {tuple(self.mask.shape)}, the model's input {found}; they must agree in (B, T)"
            )
        return int(self.mask.sum())

    def _look_at_state(self) -> None:
        """See which parameters and buffers the model has now: a buffer that was replaced is a state."""
        self._recorder.provenance.look_at(self._modules)
        self._recorder.accounts.settle(self._recorder.provenance.state)

    def _parameters(self) -> list[nn.Parameter]:
        """Parameters that have a shape; those of lazy modules get one in the first call."""
        return [parameter for parameter in self.model.parameters() if not is_lazy(parameter)]

    def _buffers(self) -> list[Tensor]:
        return [buffer for buffer in self.model.buffers() if not is_lazy(buffer)]

    def _current_phase(self) -> str:
        return self._chosen_phase or self._phase

    def _observe(self, func: OpOverload, args: tuple, kwargs: dict, output: Any) -> None:
        """Take note of one operator that has just run."""
        call = self._replays.look(func, args, kwargs)
        if call is not None and self._replays.replay(call, args, kwargs, output):
            return
        with unseen():
            self._look_closely(func, args, kwargs, output, call)

    def _look_closely(self, func: OpOverload, args: tuple, kwargs: dict, output: Any, call: Call | None) -> None:
        """Find out what one operator has cost and made, and keep it for calls of the same structure."""
        recorder, provenance = self._recorder, self._recorder.provenance
        if call is not None:
            call = self._replays.look_at_results(call, output)
        recorder.start_log(call is not None)
        written = [tensor for tensor in mutated(func, args, kwargs) if has_storage(tensor)]
        for tensor in written:
            recorder.forget_weight(tensor)
        if is_backward():
            self.backward_operators += 1
            return
        name, is_inside = operator_name(func), bool(self._stack)
        inputs, results = tensors_in(args, kwargs), tensors_in(output)
        origin, was_counted = provenance.of_operator(func, name, inputs, results, is_inside), True
        if origin is Origin.BUFFER and is_inside:
            with recorder.accounts.deferred(provenance.roots(inputs)):
                self._record(func, name, args, kwargs, output, inputs, results)
        elif is_inside and origin is not Origin.WEIGHT:
            if origin is Origin.DATA:
                for tensor in written:
                    provenance.write(tensor)
            was_counted = self._record(func, name, args, kwargs, output, inputs, results)
            if not was_counted:
                self._list_uncounted(func, results)
            if not self._declaring:
                self._follow_state(name, inputs, written, results)
        elif origin is Origin.DATA:
            self.outside_operators += 1
            self._texts.follow(inputs, results)
        if origin is not Origin.DATA:
            provenance.remember(origin, func, name, args, kwargs, inputs, results)
        self._replays.learn(call, origin, was_counted)

    def _record(
        self,
        func: OpOverload,
        name: str,
        args: tuple,
        kwargs: dict,
        output: Any,
        inputs: list[Tensor],
        results: list[Tensor],
    ) -> bool:
        """Count one operator; False if it has no rule."""
        where, phase = self._stack[-1], self._current_phase()
        if not all(map(has_storage, (*inputs, *results))):
            return False
        cost = getattr(func, "op_cost", None)
        if cost is not None:
            self._recorder.record_declared(func._schema.name, where, phase, "scan", cost, args, kwargs, output)
            return True
        return self._recorder.record(func, name, where, phase, args, kwargs, inputs, results) or name in moves.FREE

    def _follow_state(self, name: str, inputs: list[Tensor], written: list[Tensor], results: list[Tensor]) -> None:
        where = self._stack[-1]
        counts, of_one_text = self._carried.follow(where, name, inputs, written, results)
        if counts is not None:
            self._recorder.record_state(where, self._current_phase(), counts, of_one_text)

    def _overlook(self, func: HigherOrderOperator, output: Any) -> None:
        """An operator ran others, and nobody could see which."""
        if self._stack and not is_backward():
            self._list_uncounted(func, tensors_in(*tree_leaves(output)))

    def _list_uncounted(self, func: OpOverload | HigherOrderOperator, results: list[Tensor]) -> None:
        if self.strict:
            raise UncountedOperator(
                f"{func} in module {self._stack[-1]!r} has no rule; "
                "give it one with declare_cost, or count without strict"
            )
        before = self._uncounted.get(str(func), Uncounted(str(func), 0, 0))
        elements = sum(result.numel() for result in results)
        self._uncounted_in.setdefault(self._stack[-1], {})[str(func)] = None
        self._uncounted[str(func)] = Uncounted(str(func), before.calls + 1, before.elements + elements)
