"""The checks at the doors of `wkv` and `event_wkv`: the same inputs, the same words."""

from typing import Any

import torch
from torch import Tensor


def check_wkv_inputs(
    operation: str, empty_state: Any, time_decay: Tensor, time_first: Tensor, key: Tensor, value: Tensor, state: Any
) -> Any:
    """Return (time_decay, time_first, state) in the dtype that the state is kept in; `empty_state` makes the one before
    the first token.

    Raises:
        ValueError: a shape, dtype or device does not fit; the message begins with `operation` and names what was found
            and wanted.
    """
    if key.dim() != 3 or 0 in key.shape:
        raise ValueError(f"{operation}: key must be (B, T, C) with no empty side, got {tuple(key.shape)}")
    if value.shape != key.shape or value.dtype != key.dtype:
        raise ValueError(
            f"{operation}: value is {value.dtype} {tuple(value.shape)}, key is {key.dtype} {tuple(key.shape)}; they "
            f"must agree"
        )
    if not key.dtype.is_floating_point:
        raise ValueError(f"{operation}: key must be a floating-point tensor, got {key.dtype}")
    B, _, C = key.shape
    for name, parameter in (("time_decay", time_decay), ("time_first", time_first)):
        if parameter.shape != (C,):
            raise ValueError(
                f"{operation}: key has {C} channels, {name} has shape {tuple(parameter.shape)}; want ({C},)"
            )
    state_dtype = torch.float64 if key.dtype == torch.float64 else torch.float32
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
