"""What a training begins with: the processes that share it, and the model before its first step."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoint import run as ckpt
from ..common.devices import find_device
from ..common.errors import SpikegptError
from ..config import ModelConfig, TrainConfig
from ..data.tokenizers.stored import load_tokenizer
from ..data.tokens.token_file import TokenData
from ..model.mixers import NeuronFactory
from ..model.network import SpikeGPT, check_sizes
from .convert import check_shape, read_model_config, spread_windows, start_from
from .schedules import synop_budget
from .sharding import make_sharded
from .trackers import check_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(config: TrainConfig, device: str, run: Path) -> "Accelerator":
    """Return what holds the processes of a training into `run` together, on `device`: auto, cpu, cuda or cuda:N.

    Raises:
        SpikegptError: the device is not there, or cannot do what `config` asks, or what it logs with is not installed.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import ProjectConfiguration

    check_trackers(config)

    place = find_device(device)
    if config.precision == "fp16" and place.type != "cuda":
        raise SpikegptError("precision fp16 needs a GPU; use auto, bf16 or no")
    if place.index is not None:
        torch.cuda.set_device(place)
    # without this word accelerate runs several processes on a machine without a GPU as strangers to each other
    cpu = device == "cpu" or not torch.accelerator.is_available()
    steps = config.grad_accumulation
    # fp16 is told for its loss scaler; bf16 needs none, and may be chosen later
    scaled = "fp16" if config.precision == "fp16" else "no"
    # else the gradients are there twice; other settings made no step faster (benchmarks/train_processes.py)
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=scaled,
        gradient_accumulation_steps=steps,
        log_with=list(config.trackers) or None,
        project_config=ProjectConfiguration(str(run), logging_dir=str(run / "tensorboard")),
        kwargs_handlers=[ddp],
    )
    if place.index is not None and accelerator.num_processes > 1:
        raise SpikegptError(f"{device} is one GPU for {accelerator.num_processes} processes; leave --device out")
    return accelerator


def make_model(
    model_config: ModelConfig,
    config: TrainConfig,
    data: TokenData,
    weights: Path | None,
    neuron: NeuronFactory | None,
    is_tuned: bool,
    shards: "Accelerator | None",
) -> SpikeGPT:
    """A new model of the tokenizer's vocabulary, or with the weights in the folder `weights` and their vocabulary.

    A run that goes on and `is_tuned` has that vocabulary in its configuration. `shards`: whose processes divide it.
    """
    torch.manual_seed(config.seed)
    if weights is not None or not is_tuned:
        model_config = dataclasses.replace(model_config, vocab_size=_vocab_size(data, weights))
    if not torch.cuda.is_available() and shards is None:
        passes = 2 if config.self_teacher else 1
        # weights, gradients and Adam's two moments
        check_sizes(model_config, copies=4, tokens=passes * config.batch_size * model_config.ctx_len)
    if weights is not None:
        check_shape(model_config, weights)
    if shards is not None:
        return make_sharded(model_config, weights, neuron, shards)
    model = SpikeGPT(model_config, neuron, init=weights is None)
    if weights is not None:
        ids = spread_windows(data.split("train"), model_config.ctx_len)
        share = synop_budget(0, config) if config.has_budget else 1.0
        # what speaks against them has been said
        start_from(model, weights, ids, share, warn=lambda message: None)
    return model


def _vocab_size(data: TokenData, start: Path | None) -> int:
    tokens = data.tokenizer.vocab_size
    if start is None:
        return tokens
    own = ckpt.find_model(start) / "tokenizer.json"
    if own.is_file() and load_tokenizer(own).fingerprint != data.tokenizer.fingerprint:
        raise SpikegptError(
            f"the tokenizer is not that of {start}, whose rows stand for other tokens; leave out --tokenizer"
        )
    # released models have a few rows more than tokens
    rows = read_model_config(start).vocab_size
    if tokens > rows:
        raise SpikegptError(
            f"the tokenizer has {tokens} tokens, the model in {start} {rows}; use its own: leave out --tokenizer"
        )
    return rows
