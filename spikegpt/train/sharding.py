"""A model of which each process holds a share: weights, gradients and optimizer (torch's fully_shard, FSDP2).

A block is whole in a process only while it computes; then the weights of the next take its place. So it is at the
beginning: a model is made without memory, divided, and then filled module by module with the numbers that one process
alone would draw. Only a checkpoint is put together in the memory of the main process's CPU.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checkpoint.run import read_model_config
from ..checkpoint.weights import TensorFile, load_weights
from ..common.errors import SpikegptError
from ..common.shards import fill, is_sharded, part_of, whole
from ..config import ModelConfig
from ..model.initial import initialise
from ..model.mixers import NeuronFactory
from ..model.network import SpikeGPT, evaluating
from ..neuron.lif import LIF

if TYPE_CHECKING:
    from accelerate import Accelerator


def wants_shards(accelerator: "Accelerator", shard: bool) -> bool:
    """Whether the model is to be divided among the processes: `shard`, or the settings of accelerate, say so.

    Raises:
        SpikegptError: it is to be divided, but not with one process, nor with loss scaling.
    """
    from accelerate import DistributedType

    if not shard and accelerator.distributed_type != DistributedType.FSDP:
        return False
    if accelerator.num_processes == 1:
        raise SpikegptError(
            "--shard divides a model among processes, here is one: start several, accelerate launch ..."
        )
    if accelerator.mixed_precision == "fp16":
        raise SpikegptError("a divided model cannot be trained in fp16; use --precision bf16 or no")
    return True


def make_sharded(
    config: ModelConfig, weights: Path | None, neuron: NeuronFactory | None, accelerator: "Accelerator"
) -> SpikeGPT:
    """Return a new model, of which this process holds its share, initialised or with the weights in a model folder.

    Raises:
        SpikegptError: neurons are made by a factory, or the weights are of another kind of block.
    """
    if neuron is not None:
        raise SpikegptError("a divided model has our own neurons only; leave out the factory, or do not shard")
    there = config if weights is None else read_model_config(weights / "config.json")
    for flag, found, wanted in (
        ("--spiking", there.spiking, config.spiking),
        ("--perspectives", there.perspectives, config.perspectives),
    ):
        if found != wanted:
            raise SpikegptError(
                f"{weights} has {flag} {found}, wanted is {wanted}: one process converts weights; let it, with "
                "--steps 1, and begin with what it made"
            )
    with torch.device("meta"):
        model = SpikeGPT(config, init=False)
    shard(model, accelerator)
    # as their constructors do where there is memory: what they draw decides what is drawn next
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | LIF):
            with opened(module):
                module.reset_parameters()
    if weights is None:
        initialise(model, opened)
    else:
        load_weights(model, TensorFile(weights / "model.safetensors"), weights)
    # the first forward pass makes what all others gather weights into; within an evaluation (inference mode) it would
    # make what no training step may use
    with torch.no_grad(), evaluating(model):
        model(torch.zeros(1, 1, dtype=torch.long, device=accelerator.device))
    return model


def shard(model: SpikeGPT, accelerator: "Accelerator") -> None:
    """Divide `model`, which is on the meta device, among all processes; its numbers are any."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # nothing here writes into what a block returns
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    # what is called by itself is divided by itself; the first norm lies in a block, but comes before it
    first_norm = model.blocks[0].ln0
    for part in (model.emb, first_norm, *model.blocks):
        fully_shard(part, mesh=mesh)
    joining = [model.convert3] if model.config.perspectives > 1 else []
    head_neuron = [] if model.head_site is None else [model.head_neuron]
    fully_shard([model.ln_out, *joining, *head_neuron, model.head], mesh=mesh)
    fully_shard(model, mesh=mesh)
    model.to_empty(device=accelerator.device)


@contextmanager
def opened(module: nn.Module) -> Iterator[None]:
    """Within this block the weights of `module`, but for its neurons, are whole and empty, and all are to be written.

    Then each process keeps its share.
    """
    parameters = [
        (owner, name, parameter)
        for owner in module.modules()
        if not isinstance(owner, LIF)
        for name, parameter in owner.named_parameters(recurse=False)
        if is_sharded(parameter)
    ]
    for owner, name, parameter in parameters:
        owner._parameters[name] = nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
    yield
    for owner, name, parameter in parameters:
        fill(parameter.detach(), getattr(owner, name).detach())
        owner._parameters[name] = parameter


def gathered(tensors: dict[str, Tensor], keeps: bool) -> dict[str, Tensor]:
    """Return `tensors`, each whole, in the memory of the CPU; an empty dictionary unless this process `keeps` them.

    All processes call it together; who does not keep them has one at a time.
    """
    found = {}
    # in one order in all processes: of a resumed run each has read its optimizer in another
    for name in sorted(tensors):
        values = whole(tensors[name])
        if keeps:
            found[name] = values.cpu()
    return found


def own_parts(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return of the state of an optimizer, whole tensors `optimizer.N.*`, the parts that this process works with."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    found = {}
    for name in (name for name in tensors if name.startswith("optimizer.")):
        values, parameter = tensors[name], parameters[int(name.split(".")[1])]
        # the count of its steps is one number
        found[name] = part_of(values, parameter) if values.shape == parameter.shape else values
    return found
