"""A model of which each process holds a share trains as one process does, and its runs are runs like any other."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import torch
from accelerate import DistributedType
from runs import MODEL, TRAIN
from safetensors.torch import load_file

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.cli.training import train_verb
from spikegpt.common.errors import SpikegptError
from spikegpt.common.shards import fill, part_of, whole
from spikegpt.config import SPIKING, ModelConfig
from spikegpt.model.network import SpikeGPT
from spikegpt.train import trainer as training
from spikegpt.train.journal import read_metrics
from spikegpt.train.sharding import wants_shards

# an odd width divides unevenly; the gradients of the first steps are clipped
SIZES = ["--n-layer", "2", "--n-embd", "33", "--ctx-len", "16", "--dropout", "0", "--threads", "1"]
STEPS = ["--steps", "6", "--warmup-steps", "0", "--log-every", "1", "--eval-every", "3", "--eval-tokens", "256"]
STEPS += ["--sample-every", "6"]
# Muon multiplies in bfloat16, which makes much of what is little; the commitment is a share of each batch's energy
EXACT = ["--optimizer", "adamw", "--commitment", "0"]


def train_in_two(cache: Path, *arguments) -> None:
    """Train in two processes, each with a share of the model."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["--num_cpu_threads_per_process", "1"]
    done = processes.run([*launch, "-m", "spikegpt", "train", "--shard", "--cache", cache, *arguments])
    assert done.returncode == 0, done.stderr[-2000:]


def files_of(run: Path) -> list[dict]:
    return [load_file(latest_checkpoint(run) / f"{name}.safetensors") for name in ("model", "training")]


@pytest.mark.slow
def test_shares_train_as_one_process_does_and_any_number_goes_on(tmp_path, cache):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train_verb(["--cache", str(cache), "--out", str(one), "--batch-size", "8", *EXACT, *SIZES, *STEPS]) == 0
    train_in_two(cache, "--out", two, "--batch-size", "4", *EXACT, *SIZES, *STEPS)
    # float32 sums in another order
    for key in ("loss", "gradient_norm", "bits_per_byte"):
        ours, theirs = ([line[key] for line in read_metrics(run) if key in line] for run in (one, two))
        assert theirs == pytest.approx(ours, rel=1e-5)
    assert max(line.get("gradient_norm", 0) for line in read_metrics(two)) > TRAIN.grad_clip
    # the same numbers were drawn at the beginning, so weights and moments are the same
    for ours, theirs in zip(files_of(one), files_of(two), strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            if not name.startswith("rng"):
                torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5)
    assert (one / "samples.txt").read_bytes() == (two / "samples.txt").read_bytes()

    # one process takes what two have written
    valid = training.resume(two, cache=cache, quiet=True).valid
    assert valid.bits_per_byte == pytest.approx(read_metrics(two)[-1]["bits_per_byte"], rel=1e-5)

    # and two go on from the middle, bit for bit
    before = files_of(two)
    shutil.rmtree(latest_checkpoint(two))
    train_in_two(cache, "--resume", two)
    # where an evaluation comes before the first step, and a part of the weights stays as it is
    train_in_two(
        cache, "--from", one, "--out", tmp_path / "tuned", "--freeze", "emb.*", "--steps", "2", "--threads", "1"
    )
    tuned, begun = (files_of(run)[0] for run in (tmp_path / "tuned", one))
    assert torch.equal(tuned["emb.weight"], begun["emb.weight"])
    assert not torch.equal(tuned["head.weight"], begun["head.weight"])
    for ours, theirs in zip(before, files_of(two), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("spiking", SPIKING)
def test_kernels_let_the_memory_of_weights_be_freed(spiking):
    """As sharded training does after each block; torch refuses it for what numpy has been lent by .numpy()."""
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16, spiking=spiking))
    model(torch.zeros(1, 4, dtype=torch.long)).logits.sum().backward()
    for parameter in model.parameters():
        parameter.untyped_storage().resize_(0)


def test_one_process_has_nothing_to_share(tmp_path, cache):
    with pytest.raises(SpikegptError, match="several"):
        training.train(MODEL, TRAIN, tmp_path / "run", cache=cache, quiet=True, shard=True)


@pytest.mark.parametrize(
    "kind, shard, shares", [("FSDP", False, True), ("MULTI_CPU", True, True), ("MULTI_GPU", False, False)]
)
def test_the_flag_or_accelerate_asks_for_shares(kind, shard, shares):
    accelerator = SimpleNamespace(distributed_type=DistributedType[kind], num_processes=2, mixed_precision="no")
    assert wants_shards(accelerator, shard) is shares


def test_shares_are_not_trained_in_fp16():
    accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP, num_processes=2, mixed_precision="fp16")
    with pytest.raises(SpikegptError, match="fp16"):
        wants_shards(accelerator, True)


def test_a_tensor_that_is_here_is_its_own_share():
    tensor = torch.zeros(3)
    assert whole(tensor) is tensor
    assert part_of(tensor, tensor) is tensor
    fill(tensor, torch.ones(3))
    assert tensor.tolist() == [1, 1, 1]
