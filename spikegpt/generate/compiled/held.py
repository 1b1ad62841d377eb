"""A value that compiled code finds unpacked, call after call.

Numba takes the NamedTuples of a call apart anew each time: with the hundred arrays of a model that is a seventh of a
small one's token.
"""

from typing import Any

import numba
import numpy as np
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import NativeValue, intrinsic, models, register_model, typeof_impl, unbox

from .team import fused


class HeldType(types.Type):
    """The numba type of a `Held` value of type `content`."""

    def __init__(self, content: types.Type):
        self.content = content
        super().__init__(f"Held({content})")


@register_model(HeldType)
class _HeldModel(models.OpaqueModel):
    """A pointer to the value."""


class Held:
    """Keeps `value` and, once unpacked, what compiled code sees of it; in there `held_value(held)` is the value."""

    def __init__(self, value: Any):
        content = numba.typeof(value)
        context = cpu_target.target_context
        # the compiled form points into the arrays of `value`, which must live as long
        self.value, self._numba_type_ = value, HeldType(content)
        self._room = np.zeros(context.get_abi_sizeof(context.get_value_type(content)), np.uint8)
        self.address = self._room.ctypes.data
        _unpack(self._room, value)


@typeof_impl.register(Held)
def _type_of(held, _context):
    return held._numba_type_


@unbox(HeldType)
def _take_address(typ, held, c):
    number = c.pyapi.object_getattr_string(held, "address")
    address = c.pyapi.long_as_voidptr(number)
    c.pyapi.decref(number)
    return NativeValue(address, is_error=cgutils.is_not_null(c.builder, c.pyapi.err_occurred()))


@intrinsic
def _write(typing_context, room, value):
    """Write `value` as it is in compiled code into the bytes of `room`; return how many these are."""

    def generate(context, builder, signature, arguments):
        place = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        kind = context.get_value_type(signature.args[1])
        builder.store(arguments[1], builder.bitcast(place, kind.as_pointer()), align=1)
        return context.get_constant(types.intp, context.get_abi_sizeof(kind))

    return types.intp(room, value), generate


@intrinsic
def _held_value(typing_context, held):
    def generate(context, builder, signature, arguments):
        kind = context.get_value_type(signature.return_type)
        return builder.load(builder.bitcast(arguments[0], kind.as_pointer()), align=1)

    return held.content(held), generate


# what numba passes to an intrinsic first, its callers do not: hidden from type checkers
held_value: Any = _held_value
write: Any = _write


@fused
def _unpack(room, value):
    return write(room, value)
