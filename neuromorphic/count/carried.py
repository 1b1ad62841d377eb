"""State that a module carries from one of its calls to the next: key-value caches, membrane potentials, filters.

Nobody declares it, so it is told by what happens: numbers that were computed for one text, and are read for a later one
other than as its input, or that a module has computed in one of its calls and reads in a later one. What a module
carries within a call, in a loop of its own, looks like any activation.
"""

from collections import Counter

from torch import Tensor

from . import moves
from .counts import Counts
from .storages import Member, StorageSet, has_storage, plain_tensors, storage_key


class CarriedState:
    """Follows what the operators of each module make and read."""

    def __init__(self) -> None:
        self._made = StorageSet()
        self._texts = 0
        self._text: int | None = None
        self._calls: Counter[str] = Counter()
        # module -> memory of a state -> how many of its numbers this call has read
        self._read: dict[str, dict[int, int]] = {}
        self._of_one_text: Counter[str] = Counter()
        # module -> the call in which it was first seen to read a state
        self._stateful: dict[str, int] = {}

    def start_text(self, text: Tensor | None) -> None:
        """The model reads a new text, which is no state even if the model has computed it."""
        self._texts += 1
        self._text = None if text is None else next(map(storage_key, plain_tensors(text)), None)

    def start_call(self, module: str, given: Tensor | None) -> None:
        """`module` is called, and `given` its input, which is no state even if the module has computed it."""
        self._calls[module] += 1
        self._read[module], self._of_one_text[module] = {}, 0
        for part in () if given is None else plain_tensors(given):
            self._read[module][storage_key(part)] = part.numel()

    @property
    def members(self) -> dict[int, Member]:
        """What operators have made, by memory."""
        return self._made.members

    def reads(self, module: str, tensor: Tensor, memory: int) -> bool:
        """True if an operator of `module` that reads `tensor`, which lies in `memory`, reads a state."""
        member = self._made.members.get(memory)
        return (
            member is not None
            and memory != self._text
            and (tensor.is_floating_point() or tensor.is_complex())
            and self._is_earlier(module, member)
        )

    def note(self, module: str, result: Tensor, new: int) -> None:
        """An operator of `module` that had nothing to do with states has made `result`, of so many new numbers."""
        known = self._made.members.get(storage_key(result))
        self._made.add(result, self._made_when(module, known), new)

    def new_numbers(self, tensor: Tensor) -> int | None:
        """Return how many numbers of a memory are new; None if nobody follows it."""
        return self._made.member(tensor).size if tensor in self._made else None

    def _made_when(self, module: str, known: Member | None) -> tuple[str, int, int]:
        """Return who made a memory, and when; one that is written anew stays as old as its first numbers."""
        if known is not None and (known.name[0] == module or known.name[2] < self._texts):
            return known.name
        return module, self._calls[module], self._texts

    def follow(
        self, module: str, name: str, inputs: list[Tensor], written: list[Tensor], results: list[Tensor]
    ) -> tuple[Counts | None, int]:
        """Return what one operator has read and written of a state.

        Beside it stands how much of the state this call has read for one text; texts are first.
        """
        is_filling = bool(written) and (name in moves.MOVES or name in moves.MOVES_OR_REDUCTIONS)
        reads = writes = carried = 0
        for tensor in inputs:
            member = self._carried(module, tensor)
            if member is None:
                continue
            if is_filling and any(tensor is target for target in written):
                # new numbers are written beside old ones
                writes += self._first_written(tensor, member) + inputs[-1].numel()
                continue
            key, carried = storage_key(tensor), carried + tensor.numel()
            new = max(tensor.numel() - self._read[module].get(key, 0), 0)
            self._read[module][key] = self._read[module].get(key, 0) + new
            if new:
                reads, writes = reads + new, writes + self._first_written(tensor, member)
            self._of_one_text[module] += new // max(tensor.shape[0], 1) if tensor.dim() > 1 else new
        # a cache grows by few; where few are carried, as the last token of a text before, the rest is no state
        grown = results[0].numel() - carried if name == "cat" else 0
        is_growing = 0 < grown <= carried
        if is_growing:
            writes += grown
            self._of_one_text[module] += grown // max(results[0].shape[0], 1)
        elif reads and self._stateful.setdefault(module, self._calls[module]) == self._calls[module]:
            # the first call read what it began with, and the last one writes what nobody reads
            reads, writes = 2 * reads, 2 * writes
        self._note_made(module, name, is_growing, is_filling, inputs, results)
        if not (reads or writes):
            return None, 0
        return Counts(calls=1, state_reads=reads, state_writes=writes), self._of_one_text[module]

    def _carried(self, module: str, tensor: Tensor) -> Member | None:
        """Return what is known of a tensor that was computed for an earlier text, or in an earlier call of `module`."""
        if not has_storage(tensor):
            return None
        memory = storage_key(tensor)
        return self._made.members[memory] if self.reads(module, tensor, memory) else None

    def _is_earlier(self, module: str, member: Member) -> bool:
        maker, call, text = member.name
        return text < self._texts or (maker == module and call < self._calls[module])

    def _first_written(self, tensor: Tensor, member: Member) -> int:
        """Return how many numbers of it were written and not yet counted."""
        self._made.add(tensor, member.name, 0)
        return member.size

    def _note_made(
        self, module: str, name: str, is_growing: bool, is_filling: bool, inputs: list[Tensor], results: list[Tensor]
    ) -> None:
        for result in results[:1]:
            known = self._made.member(result) if result in self._made else None
            fresh = result.numel()
            if is_growing or name in moves.FREE:
                fresh = 0
            elif is_filling and known is not None:
                # what a carried memory was given is counted already
                fresh = known.size + (0 if self._is_earlier(module, known) else inputs[-1].numel())
            self._made.add(result, self._made_when(module, known), fresh)
