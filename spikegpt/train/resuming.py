"""What a run keeps beside its weights so that it goes on bit for bit.

Optimizer, generators, sampler position, carried state, the best evaluation so far:

    training.safetensors  optimizer.N.*   latent.NAME   rng.cpu, rng.cuda, state.N: one row from each process
    training.json         sampler_position, processes, threads, best, scaler; of the trainer: run, a copy of the run's
                          configuration, marks of its log, put_off, whether a signal put off what the step asked for
"""

from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..checkpoint.run import save_checkpoint
from ..checkpoint.weights import TensorFile, load_weights
from ..checkpoint.weights import load_training as read_training
from ..model.network import SpikeGPT
from ..model.state import State
from .language_modelling import LanguageModelling
from .optimizer import load_optimizer_tensors, optimizer_tensors
from .sharding import gathered, own_parts

if TYPE_CHECKING:
    from accelerate import Accelerator


def save_training(
    run: Path,
    step: int,
    objective: LanguageModelling,
    optimizer: torch.optim.Optimizer,
    accelerator: "Accelerator",
    more: dict[str, Any],
) -> None:
    """Write the checkpoint of `step`. Every process calls this and gives its rows; the main one writes, `more` as well.

    Raises:
        SpikegptError: the disk is full or not writable.
    """
    is_main = accelerator.is_main_process
    tensors = _rows_of_all_processes(objective.state, accelerator)
    tensors |= gathered(optimizer_tensors(optimizer), is_main)
    if objective.latent is not None:
        tensors |= {f"latent.{name}": weights for name, weights in objective.latent.tensors.items()}
    weights = gathered(objective.bare_model.state_dict(), is_main)
    if is_main:
        scaler = accelerator.scaler
        facts = {
            "sampler_position": objective.sampler.position,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "best": objective.best,
            "scaler": scaler.state_dict() if scaler is not None else None,
            **more,
        }
        save_checkpoint(run, step, objective.bare_model, objective.data.tokenizer, tensors, facts, weights)


def _rows_of_all_processes(state: State | None, accelerator: "Accelerator") -> dict[str, Tensor]:
    """The random generators and the carried state, each (processes, ...)."""

    def gather(tensor: Tensor) -> Tensor:
        return accelerator.gather(tensor.to(accelerator.device).unsqueeze(0)).cpu()

    rows = {"rng.cpu": gather(torch.get_rng_state())}
    if torch.cuda.is_available():
        rows["rng.cuda"] = gather(torch.cuda.get_rng_state())
    carried = [leaf for leaf in tree_flatten(state)[0] if isinstance(leaf, Tensor)]
    return rows | {f"state.{index}": gather(leaf) for index, leaf in enumerate(carried)}


def load_training(
    checkpoint: Path, objective: LanguageModelling, optimizer: torch.optim.Optimizer, accelerator: "Accelerator"
) -> dict[str, Any]:
    """Put back what `save_training` wrote, the weights included; return all that training.json holds.

    With another number of processes the generators and the carried state stay as they are, for they have no rows.

    Raises:
        SpikegptError: the checkpoint is of another model.
    """
    tensors, facts = read_training(checkpoint)
    load_weights(objective.bare_model, TensorFile(checkpoint / "model.safetensors"), checkpoint)
    load_optimizer_tensors(optimizer, own_parts(optimizer, tensors))
    if objective.latent is not None:
        objective.latent.load({name: tensors[f"latent.{name}"] for name in objective.latent.tensors})
    objective.best, objective.sampler.position = facts["best"], facts["sampler_position"]
    if facts["scaler"] is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(facts["scaler"])
    same = facts["processes"] == accelerator.num_processes
    if accelerator.is_main_process and not (same and facts["threads"] == torch.get_num_threads()):
        print(
            f"note: the run had {facts['processes']} process(es) with {facts['threads']} thread(s), now "
            f"{accelerator.num_processes} process(es) "
            f"with {torch.get_num_threads()}: it goes on, but not bit for bit as it would have"
        )
    if same:
        rows = (name for name in tensors if not name.startswith(("optimizer.", "latent.")))
        own = {name: tensors[name][accelerator.process_index] for name in rows}
        if "state.0" in own:
            objective.state = _carried_state(own, objective.bare_model, accelerator.device)
        # last, for reading a token above may have drawn a dropout
        # cloned: torch 2.13 reads a generator's state from the front of the storage,
        # which for a row is another process's
        torch.set_rng_state(own["rng.cpu"].clone())
        if "rng.cuda" in own and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["rng.cuda"].clone())
    return facts


def _carried_state(tensors: dict[str, Tensor], model: SpikeGPT, device: torch.device) -> State:
    """The state whose leaves are `state.N`; its shape comes from reading one token."""
    with torch.no_grad():
        example = model(torch.zeros(1, 1, dtype=torch.long, device=device)).state
    leaves, shape = tree_flatten(example)
    parts = (tensors[f"state.{index}"] for index in count())
    return tree_unflatten([next(parts).to(device) if isinstance(leaf, Tensor) else leaf for leaf in leaves], shape)
