"""The checks at the doors: the same inputs, the same words, for every operation that takes them."""

from typing import Any

import torch
from torch import Tensor

RESETS = ("zero", "subtract", "none")


def check_known(operation: str, name: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `known`."""
    if value not in known:
        raise ValueError(f"{operation}: {name} is {value!r}; known: {', '.join(known)}")


def check_neuron_inputs(
    operation: str, current: Tensor, potential: Tensor | None, decay_input: bool, **per_channel: float | Tensor
) -> list[Tensor]:
    """Return [potential, *per_channel] in the dtype that the state is kept in.

    At rest (zeros) if `potential` is None; a number of `per_channel` as a tensor (C,).

    Args:
        per_channel: `membrane_decay` and whatever else each neuron has its own of, by name.

    Raises:
        ValueError: a shape, dtype, device or decay does not fit; the message begins with `operation` and names what
            was found and wanted.
    """
    state_dtype = _check_sequence(operation, "current", current)
    _check_decay(operation, per_channel["membrane_decay"], decay_input)
    B, _, C = current.shape
    if potential is None:
        potential = torch.zeros(B, C, dtype=state_dtype, device=current.device)
    elif potential.shape != (B, C) or potential.dtype != state_dtype:
        raise ValueError(
            f"{operation}: potential is {potential.dtype} {tuple(potential.shape)}, "
            f"want {state_dtype} {(B, C)} for a {current.dtype} current"
        )
    channels = _per_channel(operation, current, state_dtype, per_channel)
    _check_device(operation, current, {"potential": potential, **channels})
    return [potential, *channels.values()]


def check_memoryless_inputs(operation: str, current: Tensor, **per_channel: float | Tensor) -> list[Tensor]:
    """Return `per_channel` as `check_neuron_inputs` does, for neurons that have neither a potential nor a decay."""
    channels = _per_channel(operation, current, _check_sequence(operation, "current", current), per_channel)
    _check_device(operation, current, channels)
    return list(channels.values())


def _per_channel(
    operation: str, current: Tensor, dtype: torch.dtype, values: dict[str, float | Tensor]
) -> dict[str, Tensor]:
    C, found = current.shape[2], {}
    for name, value in values.items():
        if not isinstance(value, Tensor):
            found[name] = torch.full((C,), value, dtype=dtype, device=current.device)
        elif value.shape == (C,):
            found[name] = value.to(dtype)
        else:
            shape = f"{operation}: {name} has shape {tuple(value.shape)}"
            raise ValueError(f"{shape}, current has {C} channels; want ({C},)")
    return found


def _check_device(operation: str, current: Tensor, others: dict[str, Tensor]) -> None:
    if any(tensor.device != current.device for tensor in others.values()):
        found = ", ".join(f"{name} on {other.device}" for name, other in others.items())
        raise ValueError(f"{operation}: current is on {current.device}, {found}; move them to one device")


def check_wkv_inputs(
    operation: str, empty_state: Any, time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, state: Any
) -> Any:
    """Return (time_decay, time_first, state) in the state's dtype; `empty_state` makes the one before the first token.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message begins with `operation` and names what was found
            and wanted.
    """
    state_dtype = _check_sequence(operation, "key", key)
    if value.shape != key.shape or value.dtype != key.dtype:
        raise ValueError(
            f"{operation}: value is {value.dtype} {tuple(value.shape)}, key is {key.dtype} {tuple(key.shape)}; "
            "they must agree"
        )
    B, _, C = key.shape
    for name, parameter in (("time_decay", time_decay), ("time_first", time_first)):
        if parameter.shape != (C,):
            raise ValueError(
                f"{operation}: key has {C} channels, {name} has shape {tuple(parameter.shape)}; want ({C},)"
            )
    if state is None:
        state = empty_state(B, C, dtype=state_dtype, device=key.device)
    for name, part in zip(state._fields, state, strict=True):
        if part.shape != (B, C) or part.dtype != state_dtype:
            found = f"{operation}: state.{name} is {part.dtype} {tuple(part.shape)}"
            raise ValueError(f"{found}, want {state_dtype} {(B, C)} for {key.dtype} keys")
    devices = {tensor.device for tensor in (time_decay, time_first, key, value, *state)}
    if len(devices) > 1:
        raise ValueError(f"{operation}: tensors are on {sorted(map(str, devices))}; move them to one device")
    return time_decay.to(state_dtype), time_first.to(state_dtype), state


def check_heads(operation: str, key: Tensor, log_decay: Tensor, state: Tensor | None, **others: Tensor) -> Tensor:
    """Return the state (B, H, N, N) of a WKV of matrices, zeros for None; `others` are as the key (B, T, H, N).

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    named = {"log_decay": log_decay, "key": key, **others}
    if key.dim() != 4 or 0 in key.shape or not key.is_floating_point():
        raise ValueError(f"{operation}: key must be floating point (B, T, H, N), got {key.dtype} {tuple(key.shape)}")
    state_dtype = torch.float64 if key.dtype == torch.float64 else torch.float32
    for name, tensor in named.items():
        is_kind = tensor.dtype == key.dtype or (name == "log_decay" and tensor.is_floating_point())
        if tensor.shape != key.shape or not is_kind or tensor.device != key.device:
            found = f"{operation}: {name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            raise ValueError(f"{found}, key is {key.dtype} {tuple(key.shape)} on {key.device}; they must agree")
    B, _, H, N = key.shape
    if state is None:
        return torch.zeros(B, H, N, N, dtype=state_dtype, device=key.device)
    if state.shape != (B, H, N, N) or state.dtype != state_dtype or state.device != key.device:
        found = f"{operation}: state is {state.dtype} {tuple(state.shape)} on {state.device}"
        raise ValueError(f"{found}, want {state_dtype} {(B, H, N, N)} on {key.device} for {key.dtype} keys")
    return state


def _check_sequence(operation: str, name: str, sequence: Tensor) -> torch.dtype:
    """Return the dtype that the state beside `sequence` (B, T, C) is kept in."""
    if not isinstance(sequence, Tensor):
        raise ValueError(f"{operation}: {name} must be a tensor (B, T, C), got a {type(sequence).__name__}")
    if sequence.dim() != 3 or 0 in sequence.shape:
        raise ValueError(f"{operation}: {name} must be (B, T, C) with no empty side, got {tuple(sequence.shape)}")
    if not sequence.dtype.is_floating_point:
        raise ValueError(f"{operation}: {name} must be a floating-point tensor, got {sequence.dtype}")
    return torch.float64 if sequence.dtype == torch.float64 else torch.float32


def _check_decay(operation: str, membrane_decay: float | Tensor, decay_input: bool) -> None:
    if isinstance(membrane_decay, Tensor):
        return
    if not 0.0 <= membrane_decay <= 1.0 or (decay_input and membrane_decay == 1.0):
        highest = "below 1 (with decay_input a decay of 1 takes in nothing)" if decay_input else "at most 1"
        raise ValueError(
            f"{operation}: membrane_decay must be at least 0 and {highest}, got {membrane_decay}; "
            "tau = 2 is decay = 0.5"
        )
