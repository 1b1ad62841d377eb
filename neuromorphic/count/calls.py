"""Which calls read new text, and how many tokens of it: what a model is called with, in whatever order and through
whichever of its modules."""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .dispatch import tensors_in
from .storages import StorageSet, plain_tensors

# parts of names of arguments that go beside a text
BESIDE = ("mask", "position", "past", "cache", "state", "label", "token_type", "encoder_output")


class Text(NamedTuple):
    """What one call reads; (texts, tokens) of `sequences` are None where the input has no such front."""

    tokens: int
    sequences: torch.Size | None
    tensor: Tensor | None

    @property
    def is_decoding(self) -> bool:
        return self.sequences is not None and self.sequences[1] == 1


def read_text(module: nn.Module, args: tuple, kwargs: dict) -> Text:
    """Return what a call of `module` reads: (B, T) ids, (B, T, C) vectors, (C,) one vector, else one per sample."""
    named = list(_named_tensors(module, args, kwargs))
    tensor = next((tensor for name, tensor in named if not _is_beside(name)), named[0][1] if named else None)
    if tensor is None:
        return Text(1, None, None)
    if tensor.is_nested:
        is_jagged = tensor.layout == torch.jagged
        tokens = len(next(plain_tensors(tensor))) if is_jagged else int(tensor._nested_tensor_size()[:, 0].sum())
        return Text(tokens, None, tensor)
    tensor = next(plain_tensors(tensor), tensor)
    is_ids = tensor.dim() == 2 and not tensor.is_floating_point() and not tensor.is_complex()
    if is_ids or tensor.dim() == 3:
        texts, length = tensor.shape[:2] if getattr(module, "batch_first", True) else tensor.shape[1::-1]
        return Text(texts * length, torch.Size((texts, length)), tensor)
    if tensor.dim() == 0 or (tensor.dim() == 1 and (tensor.is_floating_point() or tensor.is_complex())):
        return Text(1, None, tensor)
    return Text(tensor.shape[0], None, tensor)


def _named_tensors(module: nn.Module, args: tuple, kwargs: dict) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a call in the order of the signature, each with the name of its argument."""
    # a forward of the instance itself is not kept, for it would keep the module
    own = vars(module).get("forward")
    names = _names_of_class(type(module).forward) if own is None else _parameter_names(own)
    yield from _in_order(dict(enumerate(args)), names)
    yield from _in_order({name: kwargs[name] for name in sorted(kwargs, key=_place_in(names))}, ())


def _in_order(values: dict, names: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    for key, value in values.items():
        name = names[key] if isinstance(key, int) and key < len(names) else str(key)
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, PackedSequence):
            yield name, value.data
        elif isinstance(value, dict):
            yield from _in_order(value, ())
        elif isinstance(value, tuple | list):
            yield from ((name, tensor) for tensor in tensors_in(value))


def _place_in(names: tuple[str, ...]) -> Callable[[str], int]:
    return lambda name: names.index(name) if name in names else len(names)


def _is_beside(name: str) -> bool:
    return name != "hidden_states" and any(part in name for part in BESIDE)


def _parameter_names(forward: Callable) -> tuple[str, ...]:
    """Names of the positional arguments of a forward function, without self; () for one that does not tell."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(forward).parameters.values()
    except (ValueError, TypeError):
        return ()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds and parameter.name != "self")


_names_of_class = functools.cache(_parameter_names)


class Texts:
    """Tells a new text from one that is read on: `h = model.body(ids)` and `model.head(h)` read the same tokens.

    A call of the model reads a new text. A call of one of its modules does so if it is given numbers that the model has
    not computed, and joins the text of the calls before it if this module was not among them.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._computed = StorageSet()
        self._readers: set[int] = set()
        self._tokens = 0

    def start(self, module: nn.Module, text: Text, is_prepared: bool) -> tuple[int | None, bool]:
        """Return how many tokens this call adds, None if it reads on, and whether it begins a new text.

        `is_prepared`: the input is a weight.
        """
        if module is not self._model:
            is_computed = text.tensor is not None and text.tensor.is_floating_point() and text.tensor in self._computed
            if text.tensor is None or is_computed or is_prepared:
                return None, False
            if id(module) not in self._readers and self._readers:
                self._readers.add(id(module))
                added, self._tokens = max(text.tokens - self._tokens, 0), max(text.tokens, self._tokens)
                return added or None, False
        self._computed.forget_freed()
        # what comes after a call of the whole model is another text
        self._readers = set() if module is self._model else {id(module)}
        self._tokens = text.tokens
        return text.tokens, True

    def finish(self, output: list[Tensor]) -> None:
        """The model has computed these, so they are no text."""
        for tensor in output:
            self._computed.add(tensor)

    def follow(self, inputs: list[Tensor], results: list[Tensor]) -> None:
        """What is computed from them outside of the model is no text either, such as their mean."""
        if self._computed and any(tensor in self._computed for tensor in inputs):
            self.finish(results)
