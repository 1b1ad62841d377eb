"""A second device without hardware: `import second_device`, and tensors may be moved to `second_device.DEVICE`.

A tensor there has its numbers in one on the CPU; an operation that is given tensors of both is refused, as a GPU
refuses it. Importing this claims torch's spare device for the whole process and makes `inference_mode` a `no_grad`, for
the spare device has no inference tensors: use it in a process of its own, and import it first.
"""

import torch
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

torch.inference_mode = torch.no_grad
_setup_privateuseone_for_python_backend("second")
DEVICE = torch.device("second")

# what a GPU takes from the CPU too: copies, and indices
MAY_MIX = {"_copy_from", "copy_", "index", "index_put_", "_index_put_impl_"}
# address of a tensor's storage -> the tensor on the CPU that has its numbers
_numbers: dict[int, torch.Tensor] = {}


def is_there(value) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == DEVICE.type


def put_there(numbers: torch.Tensor) -> torch.Tensor:
    numbers = numbers.contiguous()
    tensor = torch._C._acc.create_empty_tensor(tuple(numbers.shape), numbers.dtype)
    _numbers[tensor.untyped_storage()._cdata] = numbers
    return tensor


def numbers_of(tensor: torch.Tensor) -> torch.Tensor:
    numbers = _numbers[tensor.untyped_storage()._cdata]
    if numbers.shape == tensor.shape:
        return numbers
    # a view that torch has made without asking
    return numbers.as_strided(tensor.shape, tensor.stride(), numbers.storage_offset() + tensor.storage_offset())


def run(operator, *args, **kwargs):
    """Run any operator on the numbers of its tensors."""
    strangers, inside = [], {}

    def enter(value):
        if is_there(value):
            return inside.setdefault(id(value), numbers_of(value))
        if isinstance(value, torch.Tensor) and value.dim() > 0:
            strangers.append(value)
        is_device = isinstance(value, torch.device) and value.type == DEVICE.type
        return torch.device("cpu") if is_device else value

    name = operator._schema.name.partition("::")[2]
    inner_args, inner_kwargs = tree_map(enter, (args, kwargs))
    if strangers and name not in MAY_MIX:
        raise RuntimeError(f"{name}: some tensors are on the CPU, some on the second device")
    if name == "as_strided":
        # an offset counts from the beginning of a storage, and the numbers may begin later in theirs
        numbers, size, stride, *offset = inner_args
        start = numbers.storage_offset() + (offset[0] if offset and offset[0] else 0)
        inner_args = numbers, size, stride, start
    with torch._C._AutoDispatchBelowAutograd():
        results = operator(*inner_args, **inner_kwargs)
    given = [value for value in (*args, *kwargs.values()) if is_there(value)]
    for value in given:
        # an empty tensor that was given for the result has grown
        if inside[id(value)].shape != value.shape:
            value.data = put_there(inside[id(value)])

    def leave(value):
        if not isinstance(value, torch.Tensor):
            return value
        mine = [tensor for tensor in given if inside[id(tensor)] is value]
        return mine[0] if mine else put_there(value)

    return tree_map(leave, results)


def _copy(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    numbers = numbers_of(source) if is_there(source) else source
    (numbers_of(target) if is_there(target) else target).copy_(numbers)
    return target


# kept: a library takes back what it registers when it is let go
_everything = torch.library.Library("_", "IMPL")
_everything.fallback(run, "PrivateUse1")
_copies = torch.library.Library("aten", "IMPL")
_copies.impl("_copy_from", _copy, "PrivateUse1")
