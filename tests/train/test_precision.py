"""Half precision is for the products; a new run chooses it where it is faster, and goes on with what it began with."""

import dataclasses
import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import MODEL, TRAIN, break_off, weights_of
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.checkpoint.weights import load_model
from spikegpt.config import SPIKING, TrainConfig
from spikegpt.data.prepare import prepare
from spikegpt.evaluate.perplexity import evaluate_stream
from spikegpt.measure.describe import describe_model
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import verified_spikes
from spikegpt.train import precision
from spikegpt.train import trainer as training
from spikegpt.train.journal import read_metrics
from spikegpt.train.losses import firing_rate
from spikegpt.train.precision import Choice, agree_on_precision, autocast, choose_precision, multiplies_bfloat16

CPU = torch.device("cpu")


class Stopwatch:
    """A clock that only work moves on, by so many seconds for each precision; the first of each compiles for long."""

    def __init__(self, **seconds: float):
        self.now, self.seconds, self.done = 0.0, seconds, list[str]()

    def work(self, asked: str) -> None:
        self.now += self.seconds[asked] if asked in self.done else 1000.0
        self.done.append(asked)

    def choice(self, device: torch.device = CPU) -> Choice:
        return choose_precision(device, self.work, clock=lambda: self.now)


@pytest.fixture
def bfloat16(monkeypatch):
    """This CPU has instructions for bfloat16."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda device: True)


@pytest.mark.parametrize(
    ("half_s", "chosen"), [(0.05, Choice("bf16", 2.0)), (0.096, Choice("no", 1.04)), (0.2, Choice("no", 0.5))], ids=str
)
def test_bfloat16_is_chosen_where_it_is_clearly_faster(bfloat16, half_s, chosen):
    assert Stopwatch(no=0.1, bf16=half_s).choice() == chosen


def test_one_disturbed_round_decides_nothing(bfloat16):
    watch, calls = Stopwatch(no=0.1, bf16=0.05), count()
    undisturbed = watch.work

    def work(asked):
        undisturbed(asked)
        # another program takes the machine during the third timed call
        watch.now += 5.0 if next(calls) == 5 else 0.0

    assert choose_precision(CPU, work, clock=lambda: watch.now).precision == "bf16"


def test_both_take_turns_and_a_long_step_is_done_once_more_only(bfloat16):
    short, long = Stopwatch(no=0.01, bf16=0.01), Stopwatch(no=8.0, bf16=4.0)
    assert short.choice() == Choice("no", 1.0) and short.done == ["no", "bf16"] * (1 + precision.ROUNDS)
    assert long.choice() == Choice("bf16", 2.0) and long.done == ["no", "bf16"] * 2


def test_without_the_instructions_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    watch = Stopwatch()
    for device in (CPU, torch.device("meta")):
        assert watch.choice(device) == Choice("no", None)
    assert watch.done == []


@pytest.mark.parametrize(("has_it", "chosen"), [(True, "bf16"), (False, "no")])
def test_a_gpu_that_has_bfloat16_is_not_measured(monkeypatch, has_it, chosen):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    assert Stopwatch().choice(torch.device("cuda")) == Choice(chosen, None)


@pytest.mark.parametrize(
    ("found", "has_it"),
    [({"avx512_f": True, "avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_what_torch_says_of_the_cpu(monkeypatch, found, has_it):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert multiplies_bfloat16(CPU) is has_it


def test_a_torch_that_cannot_tell_keeps_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not multiplies_bfloat16(CPU)


def test_all_processes_use_what_the_main_one_chose(monkeypatch):
    chosen = Choice("bf16", 1.7)
    monkeypatch.setattr(precision, "choose_precision", lambda *given: pytest.fail("it is not the main process"))
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda found: [chosen])
    assert agree_on_precision(SpikeGPT(MODEL), 4, SimpleNamespace(is_main_process=False, device=CPU)) == chosen


def tensors_of(tree: object) -> list[torch.Tensor]:
    return [part for part in tree_leaves(tree) if isinstance(part, torch.Tensor)]


class Seen(TorchDispatchMode):
    """Torch's operators that return half precision; dtypes of what ours read and return beside sequences (B, T, C)."""

    def __init__(self):
        super().__init__()
        self.half, self.beside_sequences = set[str](), set[torch.dtype]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outcome = function(*args, **(kwargs or {}))
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        # half in, float32 inside, half out, but for what is added to the residual stream
        is_ours = name.startswith("spikegpt::") and name != "spikegpt::dropout"
        if not is_ours and any(tensor.dtype == torch.bfloat16 for tensor in tensors_of(outcome)):
            self.half.add(name)
        if is_ours:
            others = (tensor for tensor in tensors_of((args, kwargs, outcome)) if tensor.dim() < 3)
            self.beside_sequences |= {tensor.dtype for tensor in others}
        return outcome


# of torch: what multiplies, casts, turns and keeps operands; what may stand between; two gradients of the same spikes
PRODUCTS = {"mm", "t", "view", "_unsafe_view", "detach", "_to_copy"}
BETWEEN = {"sigmoid", "mul", "relu", "pow", "sigmoid_backward", "threshold_backward"}
SUMMED = {"add"}


def test_a_divided_model_is_not_rehearsed_by_one_process():
    # which would wait for the others' shares for ever
    for is_main in (True, False):
        accelerator = SimpleNamespace(is_main_process=is_main, device=CPU)
        assert agree_on_precision(None, 4, accelerator, is_sharded=True) == Choice("no", None)


@pytest.mark.parametrize("spiking", SPIKING)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_only_products_and_what_is_between_them_are_in_half_precision(spiking, dropout):
    model = SpikeGPT(dataclasses.replace(MODEL, spiking=spiking, neuron=None, dropout=dropout))
    ids = torch.randint(0, 256, (2, 9))
    # the proof of the alphabet looks at spikes, which are half where the current was
    with verified_spikes(False), Seen() as forward, autocast("bf16", CPU):
        logits, state, spikes = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
    with Seen() as backward:
        (loss + sum(firing_rate(spike) for spike in spikes.values())).backward()
    # norms, residual stream, dropout and loss are not there
    assert "mm" in forward.half and forward.half <= PRODUCTS | BETWEEN
    assert "mm" in backward.half and backward.half <= PRODUCTS | BETWEEN | SUMMED
    assert forward.beside_sequences == backward.beside_sequences == {torch.float32}
    assert {part.dtype for part in tensors_of(state)} == {torch.float32}
    assert loss.dtype == torch.float32 and {p.grad.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("spiking", SPIKING)
def test_loss_and_optimizer_of_a_whole_training_are_in_float32(make_run, spiking):
    model = dataclasses.replace(MODEL, spiking=spiking, neuron=None)
    with verified_spikes(False), Seen() as seen:
        make_run("run", model, precision="bf16", steps=2, l2wrap=1e-4, firing_rate_target=0.2)
    # the log looks at the spikes of a step
    assert "mm" in seen.half and seen.half <= PRODUCTS | BETWEEN | SUMMED


@pytest.mark.parametrize("spiking", ["input", "output"])
def test_neurons_of_half_currents_are_those_of_the_same_currents_in_float32(spiking):
    """Inside of a door nothing is rounded, and spikes lose nothing where they come out in half precision."""
    model = SpikeGPT(dataclasses.replace(MODEL, spiking=spiking, neuron=None))
    seen = {}
    for name, placed in model.sites().items():
        placed.neuron.register_forward_hook(lambda module, given, out, name=name: seen.update({name: (given, out)}))
    with autocast("bf16", CPU):
        model(torch.randint(0, 256, (2, 9)))
    assert seen.keys() == model.sites().keys()
    for name, ((current, before), (spikes, after)) in seen.items():
        again, potential = model.get_submodule(name)(current.detach().float(), before)
        assert torch.equal(spikes.float(), again), name
        assert after is None or torch.equal(after, potential), name


@pytest.mark.parametrize(("spiking", "carry_state"), [("none", False), ("input", True), ("output", True)])
def test_bfloat16_resumes_bit_for_bit(make_run, tmp_path, cache, monkeypatch, spiking, carry_state):
    model = dataclasses.replace(MODEL, spiking=spiking, neuron=None, dropout=0.1)
    changes = {"precision": "bf16", "steps": 20, "save_every": 5, "carry_state": carry_state}
    unbroken = make_run("unbroken", model, **changes)
    assert weights_of(unbroken) != weights_of(make_run("float32", model, **changes | {"precision": "no"}))
    break_off(monkeypatch, tmp_path / "broken", cache, 10, model, **changes)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(unbroken)


def test_what_is_evaluated_are_the_float32_weights(tmp_path, cache):
    done = training.train(
        MODEL, dataclasses.replace(TRAIN, precision="bf16"), tmp_path / "run", cache=cache, quiet=True
    )
    model, tokenizer = load_model(latest_checkpoint(done.run))
    tokens = np.asarray(prepare(["python-docs"], tokenizer, cache).split("valid"))[: TRAIN.eval_tokens]
    assert done.valid.nats == evaluate_stream(model, tokens, tokenizer).nats


@pytest.fixture
def choices(monkeypatch):
    """What will be chosen, one run after the other; the work is done for each, and no clock looks."""
    found: list[Choice] = []

    def choose(device, work):
        work("no")
        work("bf16")
        return found.pop(0)

    monkeypatch.setattr(precision, "choose_precision", choose)
    monkeypatch.setattr(training, "agree_on_precision", agree_on_precision)
    return found


def asked_and_done(run) -> tuple[str, list[dict]]:
    stored = json.loads((run / "config.json").read_text())["train"]["precision"]
    return stored, [line for line in read_metrics(run) if line["kind"] == "precision"]


def test_a_choice_is_written_down_and_said(tmp_path, cache, choices, capsys):
    choices += [Choice("bf16", 1.8)]
    training.train(MODEL, dataclasses.replace(TRAIN, precision="auto"), tmp_path / "run", cache=cache)
    assert "1 thread, products in bfloat16\n" in capsys.readouterr().out
    record = {"step": 0, "kind": "precision", "asked": "auto", "precision": "bf16", "speedup": 1.8}
    assert asked_and_done(tmp_path / "run") == ("bf16", [record])
    assert describe_model(str(tmp_path / "run"))["training_precision"] == "bf16"


def test_choosing_changes_nothing_that_is_learned(make_run, choices):
    choices += [Choice("bf16", 1.8)]
    model = dataclasses.replace(MODEL, dropout=0.1)
    assert weights_of(make_run("chosen", model, precision="auto")) == weights_of(
        make_run("asked", model, precision="bf16")
    )


def test_a_run_that_goes_on_never_chooses_again(tmp_path, cache, choices, monkeypatch):
    run = tmp_path / "run"
    choices += [Choice("bf16", 1.8)]
    # before its first checkpoint
    break_off(monkeypatch, run, cache, 2, precision="auto")
    training.resume(run, cache=cache, quiet=True)
    assert choices == [] and asked_and_done(run)[0] == "bf16" and len(asked_and_done(run)[1]) == 1


@pytest.mark.parametrize(("ctx_len", "batch_size", "ids"), [(16, 4, (4, 16)), (16, 64, (32, 16)), (600, 2, (1, 512))])
def test_at_most_a_step_is_rehearsed(monkeypatch, ctx_len, batch_size, ids):
    seen = []
    monkeypatch.setattr(precision, "choose_precision", lambda device, work: work("no"))
    monkeypatch.setattr(precision, "rehearse", lambda model, texts, tokens, asked: seen.append((texts, tokens)))
    model = SpikeGPT(dataclasses.replace(MODEL, ctx_len=ctx_len))
    agree_on_precision(model, batch_size, SimpleNamespace(is_main_process=True, device=CPU))
    assert seen == [ids]


@pytest.mark.parametrize("asked", ["no", "bf16"])
def test_a_precision_that_is_asked_for_is_not_measured(make_run, choices, asked):
    assert asked_and_done(make_run(precision=asked)) == (asked, [])


def test_new_runs_choose_for_themselves():
    assert TrainConfig().precision == "auto"
    assert describe_model("tiny")["training_precision"] == "auto"
