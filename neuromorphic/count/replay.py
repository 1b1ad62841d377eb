"""Operators that do again what they did: a token is decoded by the same operators on the same shapes as the one before.

What an operator costs, and what its results are, follows from its module, its options, the shapes of its operands and
what is known of their memories; only products look at numbers. So the recorder finds it out once for each structure,
and here it is replayed whenever this structure comes again. Whatever looks at other numbers, writes into its operands
or reads a state is never replayed. An operator that is made of others, such as a linear layer, is replayed as a whole.
"""

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from . import moves
from .carried import CarriedState
from .counts import Counts, times
from .dispatch import is_backward, operator_name, tensors_in, unseen
from .effects import Call, Effect, Whole, looks_at_numbers
from .product_operators import PRODUCTS
from .provenance import Origin
from .recorder import SPIKE, Recorder
from .spikes import ROUNDINGS, SHIFTED
from .storages import has_storage, storage_key, version

# structures that are kept; a cache that grows with every token brings new ones with every token
MOST = 20_000
# what they cost depends on the numbers that they find in their operands
BY_VALUE = ROUNDINGS | {"embedding", "index_put", "_unsafe_index_put", "masked_scatter"}
ROWS = frozenset(("mm", "addmm", "bmm", "mv", "addmv"))
# options of operators: what can be compared, and says all that there is to know
OPTIONS = frozenset(
    (int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
)


class Replays:
    """Knows the structures that have come, by module and phase."""

    def __init__(self, recorder: Recorder, carried: CarriedState):
        self._recorder, self._carried = recorder, carried
        # signature -> effect, None for a structure that cannot be replayed
        self._plans: dict[Hashable, dict[tuple, Effect | None]] = {}
        self._plan: dict[tuple, Effect | None] | None = None
        self._where, self._phase, self._is_declared = "", "", False
        self._are_replayable: dict[int, tuple[OpOverload, bool]] = {}
        self._wholes: list[Whole] = []
        self._recalled: tuple[Call, Effect] | None = None
        self._kept = 0

    def turn_to(self, where: str, phase: str, is_declared: bool) -> None:
        """From now on operators belong to the module `where`; `is_declared`: its state is declared by itself."""
        self._where, self._phase, self._is_declared = where, phase, is_declared
        place = where, phase, is_declared, self._recorder.call_tokens
        self._plan = self._plans.get(place)
        if self._plan is None:
            self._plan = self._plans[place] = {}

    def turn_away(self) -> None:
        """What comes now is not replayed."""
        self._plan = None

    # the structure of a call ------------------------------------------------------------------------------------------

    def look(self, func: OpOverload, args: tuple, kwargs: dict, with_strides: bool = False) -> Call | None:
        """Return what can be told of a call without looking at numbers; None if it cannot be replayed.

        `with_strides`: they matter, as for an operator that copies what it cannot view.
        """
        if self._plan is None or is_backward():
            return None
        # by identity, for operators are never freed and have a slow hash
        known = self._are_replayable.get(id(func))
        if known is None:
            # one that writes to its operands may change a weight, a state, a spike
            is_fixed = torch.Tag.dynamic_output_shape not in func.tags
            is_replayable = is_fixed and not func._schema.is_mutable and operator_name(func) not in BY_VALUE
            known = self._are_replayable[id(func)] = func, is_replayable
        if not known[1]:
            return None
        call = Call(func)
        if not self._look_at(args, call, with_strides):
            return None
        for key, value in kwargs.items():
            call.signature.append(key)
            if not self._look_at((value,), call, with_strides):
                return None
        return None if call.lowest is Origin.BUFFER else call

    def _look_at(self, things: Iterable, call: Call, with_strides: bool) -> bool:
        """Write into the signature of `call` what things are; False for some that cannot be replayed."""
        found, memories = call.signature, call.memories
        known_of, marks_of = self._recorder.provenance.members.get, self._recorder.spikes.members.get
        made_of = None if self._is_declared else self._carried.members.get
        for thing in things:
            kind = type(thing)
            if kind is Tensor or kind is nn.Parameter:
                if thing.layout is not torch.strided or thing.is_nested or thing.is_conj() or thing.is_neg():
                    return False
                memory = thing.untyped_storage()._cdata
                found += thing.shape, thing.dtype, thing.device
                if memory in memories:
                    # the same numbers, or others of the same memory
                    found += memories.index(memory), thing.stride(), thing.storage_offset()
                    first = call.operands[memories.index(memory)]
                    found += first.stride(), first.storage_offset()
                known = known_of(memory)
                if known is not None:
                    if known.mark < call.lowest:
                        call.lowest = known.mark
                    found += known[1:], thing.stride(), thing.storage_offset()
                elif kind is nn.Parameter:
                    return False
                else:
                    call.lowest = Origin.DATA
                    if with_strides:
                        found.append(thing.stride())
                marked = marks_of(memory)
                if marked is not None:
                    if marked.mark & SHIFTED:
                        return False
                    found += marked.mark, marked.name[0]
                if made_of is not None:
                    made = made_of(memory)
                    if made is not None and self._carried.reads(self._where, thing, memory):
                        return False
                call.operands.append(thing)
                memories.append(memory)
            elif kind is tuple or kind is list:
                found.append(len(thing))
                if not self._look_at(thing, call, with_strides):
                    return False
            elif kind in OPTIONS:
                # 0.0 and -0.0 are equal, and no NaN is
                found += kind, repr(thing) if kind is float or kind is complex else thing
            else:
                return False
        return True

    def look_at_results(self, call: Call, output: Any) -> Call | None:
        """Return `call` with its results, which nobody has looked at; None if they are in memory that is known."""
        call.results = tensors_in(output)
        for result in call.results:
            if not has_storage(result):
                return None
            memory = storage_key(result)
            if self._recorder.provenance.known(memory) or self._recorder.spikes.of_memory(memory):
                return None
        return call

    # replaying --------------------------------------------------------------------------------------------------------

    def replay(self, call: Call, args: tuple, kwargs: dict, output: Any) -> bool:
        """Count a call as one of its kind was counted before; False if it has to be looked at closely."""
        assert self._plan is not None
        effect = self._plan.get(tuple(call.signature))
        if effect is None or not effect.is_usable(call):
            return False
        if effect.cost is not None and effect.cost is not getattr(call.func, "op_cost", None):
            return False
        self._apply(effect, call, output)
        if effect.cost is not None:
            name = call.func._schema.name
            with unseen():
                self._recorder.record_declared(
                    name, self._where, self._phase, "scan", effect.cost, args, kwargs, output
                )
        self._tell_whole(effect, call)
        return True

    def _apply(self, effect: Effect, call: Call, output: Any) -> None:
        effect.times += 1
        if effect.rows is not None:
            row = call.operands[effect.row]
            if effect.emitted is not None:
                effect.rows.new_events()
                effect.rows.add(row)
                events, repeated = effect.rows.new_events()
                effect.events, effect.repeated = effect.events + events, effect.repeated + repeated
                self._recorder.spikes.discard(row)
            else:
                effect.rows.add(row)
        if effect.made or effect.new is not None:
            results = tensors_in(output)
            for (known, marked), result in zip(effect.made, results, strict=False):
                if known is not None:
                    self._recorder.provenance.add(known.mark, result, known.name, known.size, known.roots)
                if marked is not None:
                    self._recorder.spikes.mark(result, marked.mark, born=marked.name[0])
            if effect.new is not None:
                self._carried.note(self._where, results[0], effect.new)

    def _tell_whole(self, effect: Effect | None, call: Call | None) -> None:
        if self._wholes:
            row = call.memories[effect.row] if effect is not None and call is not None and call.memories else 0
            self._wholes[-1].effects.append((effect, row))

    # operators that are made of others --------------------------------------------------------------------------------

    def begin(self, func: OpOverload, args: tuple, kwargs: dict, may_be_whole: bool) -> bool:
        """Return whether an operator that is made of others may run as a whole; `end` is then told its output."""
        call, effect = self.look(func, args, kwargs, True) if may_be_whole else None, None
        if call is not None and self._plan is not None:
            signature = tuple(call.signature)
            effect = self._plan.get(signature)
            if effect is not None and effect.is_usable(call):
                self._recalled = call, effect
                return True
            if signature in self._plan and effect is None:
                call = None
        self._wholes.append(Whole(call))
        return False

    def end(self, output: Any) -> None:
        """The operator of the last `begin` that has not ended has returned `output`."""
        if self._recalled is not None:
            call, effect = self._recalled
            self._recalled = None
            self._apply(effect, call, output)
            self._tell_whole(effect, call)
            return
        whole, results = self._wholes.pop(), tensors_in(output)
        learned = None
        if whole.call is not None and all(map(has_storage, results)):
            learned = self._effect_of_whole(whole, whole.call, results)
            self._keep(tuple(whole.call.signature), learned)
        self._tell_whole(learned, whole.call)

    def fail(self) -> None:
        """The operator of the last `begin` has raised an exception."""
        if self._recalled is not None:
            self._recalled = None
        else:
            self._wholes.pop()

    def _effect_of_whole(self, whole: Whole, call: Call, results: list[Tensor]) -> Effect | None:
        whole_effect, operands = Effect(), call.memories
        for effect, row in whole.effects:
            if effect is None or effect.cost is not None or (effect.tells_number and results):
                return None
            whole_effect.tells_number |= effect.tells_number
            whole_effect.parts += effect.parts
            if effect.rows is not None:
                if whole_effect.rows is not None or any(operands.count(m) != 1 for m in (row, effect.rows.memory)):
                    return None
                whole_effect.rows, whole_effect.row = effect.rows, operands.index(row)
                whole_effect.weight = operands.index(effect.rows.memory)
                whole_effect.version = version(call.operands[whole_effect.weight])
                whole_effect.emitted, whole_effect.numbers = effect.emitted, effect.numbers
                K, found = effect.rows.K, call.operands[whole_effect.row]
                # a row in any shape, or rows that nobody has transposed, from the left
                is_row = found.numel() == max(found.shape, default=0) == K
                are_rows = operator_name(call.func) in ("linear", "matmul") and found.shape[-1:] == (K,)
                are_rows &= whole_effect.row < whole_effect.weight
                if found.numel() != effect.numbers or not (is_row or are_rows):
                    return None
        are_old = [storage_key(result) in operands for result in results]
        # of several new results nobody knows how new each is
        if (any(are_old) and whole.effects) or len(results) - sum(are_old) > 1:
            return None
        if not any(are_old) and results:
            if not self._set_made(whole_effect, results):
                return None
            whole_effect.new = self._carried.new_numbers(results[0])
        return whole_effect

    # learning ---------------------------------------------------------------------------------------------------------

    def learn(self, call: Call | None, origin: Origin, was_counted: bool) -> None:
        """Keep what the recorder has just done with a call that `look` has looked at."""
        effect = None
        if call is not None and self._plan is not None:
            effect = self._effect(call, origin) if was_counted else None
            self._keep(tuple(call.signature), effect)
        self._recorder.start_log(False)
        self._tell_whole(effect, call)

    def _keep(self, signature: tuple, effect: Effect | None) -> None:
        if self._plan is None:
            return
        before = self._plan.get(signature)
        if before is not None:
            self._add_up(before)
        elif self._kept >= MOST:
            self.settle()
            self._plans, self._kept = {}, 0
            self.turn_to(self._where, self._phase, self._is_declared)
        self._kept += before is None
        self._plan[signature] = effect

    def _effect(self, call: Call, origin: Origin) -> Effect | None:
        recorder, effect, name = self._recorder, Effect(), operator_name(call.func)
        effect.tells_number = not call.results
        if looks_at_numbers(name, call, origin):
            return None
        if origin is not Origin.WEIGHT:
            effect.cost = getattr(call.func, "op_cost", None)
            if effect.cost is None:
                effect.parts = recorder.log or []
            if name in PRODUCTS:
                if len(recorder.logged_rows) != 1 or name not in ROWS:
                    return None
                effect.rows, first = recorder.logged_rows[0], int(name.startswith("add"))
                of = recorder.provenance.of
                is_transposed = of(call.operands[first]) > of(call.operands[first + 1])
                effect.row, effect.weight = first + is_transposed, first + (not is_transposed)
                effect.numbers = call.operands[effect.row].numel()
                effect.version = version(call.operands[effect.weight])
                if is_transposed and effect.numbers > effect.rows.K:
                    return None
            if call.results and not self._is_declared:
                effect.new = 0 if name in moves.FREE else call.results[0].numel()
        for site, counts in effect.parts:
            if site.operator == SPIKE:
                if effect.rows is None or effect.emitted is not None:
                    return None
                effect.emitted, counts.events_out, counts.repeated_events = site, 0, 0
        return effect if self._set_made(effect, call.results) else None

    def _set_made(self, effect: Effect, results: list[Tensor]) -> bool:
        """Write down what the results have become; False if it is more than can be told again."""
        for result in results:
            memory = storage_key(result)
            effect.made.append((self._recorder.provenance.known(memory), self._recorder.spikes.members.get(memory)))
        if any(marked is not None and marked.mark & SHIFTED for _, marked in effect.made):
            return False
        if not any(known or marked for known, marked in effect.made):
            effect.made = []
        return True

    # adding up --------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Add up all that was replayed."""
        self._recorder.settle_rows()
        for plan in self._plans.values():
            for effect in plan.values():
                if effect is not None:
                    self._add_up(effect)

    def _add_up(self, effect: Effect) -> None:
        if effect.times:
            account = self._recorder.accounts.settled
            for site, counts in effect.parts:
                account.add(site, times(counts, effect.times))
            if effect.emitted is not None:
                account.add(effect.emitted, Counts(events_out=effect.events, repeated_events=effect.repeated))
            effect.times = effect.events = effect.repeated = 0
