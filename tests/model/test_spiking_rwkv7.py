"""RWKV-7 with neurons: every product reads spikes, those of its pairs too; and its state works by events."""

import dataclasses
import json
import re

import pytest
import torch
from command_line import spikegpt
from counting import count
from runs import TRAIN, break_off, weights_of

from spikegpt.checkpoint.weights import load_model
from spikegpt.cli.verbs import VERBS
from spikegpt.common.errors import SpikegptError
from spikegpt.config import INPUT_NEURON, SPIKING, ModelConfig, NeuronConfig, SamplingConfig
from spikegpt.generate import generate
from spikegpt.generate.event_products import EventDecoder
from spikegpt.model.mixers import Rows
from spikegpt.model.network import SpikeGPT
from spikegpt.train import trainer as training
from spikegpt.train.convert import anneal, check_shape, defaults_from, healing_of, start_from
from spikegpt.train.units import CurrentUnits

C, RANKS = 20, (7, 5, 3, 6)
SIZES = {"n_layer": 2, "n_embd": C, "head_size": 10, "lora_ranks": RANKS, "ctx_len": 16, "dropout": 0.0}
IDS = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))
LEAKY = NeuronConfig(membrane_decay=0.25, learnable_threshold=True)
BOTH = pytest.mark.parametrize("state_neurons", [False, True])


def config(spiking: str = "input", **changes) -> ModelConfig:
    return ModelConfig(**{"mixer": "rwkv7", "spiking": spiking, **SIZES, **changes})


def make(spiking: str = "input", **changes) -> SpikeGPT:
    """In float64: in float32 another order of adding may move a current across its threshold."""
    torch.manual_seed(0)
    return SpikeGPT(config(spiking, **changes)).double().eval()


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("changes", [{}, {"state_neurons": True}, {"neuron": LEAKY, "state_neurons": True}], ids=str)
@pytest.mark.parametrize("pieces", [[5, 8], [1] * 13])
def test_a_text_in_pieces_is_the_text(pieces, changes):
    model, state, logits = make(**changes), None, []
    # with gradients the WKV is the dense one
    whole = model(IDS)
    with torch.no_grad():
        for piece in IDS.split(pieces, dim=1):
            found, state, _ = model(piece, state)
            logits.append(found)
        same(torch.cat(logits, dim=1), whole.logits)


def test_every_product_has_neurons_but_what_the_first_block_does_not_read():
    model = make()
    w, a, v, g = RANKS
    wanted = {
        "att.receptance_neuron": C * C, "att.w1_neuron": C * w, "att.key_neuron": C * C,
        "att.value_neuron": C * C + C * v, "att.a1_neuron": C * a, "att.g1_neuron": C * g, "att.w2_neuron": C * w,
        "att.v2_neuron": C * v, "att.a2_neuron": C * a, "att.g2_neuron": C * g, "att.output_neuron": C * C,
        "ffn.key_neuron": 4 * C * C, "ffn.value_neuron": 4 * C * C,
    }  # fmt: skip
    first = {name: n for name, n in wanted.items() if "v2" not in name} | {"att.value_neuron": C * C}
    synapses = {f"blocks.{n}.{name}": m for n, block in enumerate((first, wanted)) for name, m in block.items()}
    assert model.synapses() == synapses and list(model(IDS).spikes) == list(synapses)
    att = model.blocks[1].att
    assert model.sites()["blocks.1.att.value_neuron"].products == (att.value, Rows(att.v1))
    assert not hasattr(model.blocks[0].att, "v2_neuron")
    named = set(make(state_neurons=True).sites()) - synapses.keys()
    assert named == {f"blocks.{n}.att.wkv_{part}_neuron" for n in (0, 1) for part in ("receptance", "key")}


@BOTH
def test_neurons_begin_alive(state_neurons):
    spikes = make(state_neurons=state_neurons)(IDS).spikes
    rates = {name: spike.count_nonzero().item() / spike.numel() for name, spike in spikes.items()}
    assert all(0.01 < rate < 0.7 for rate in rates.values()), rates
    assert make()(IDS).spikes["blocks.1.att.g2_neuron"].min() == 0


@BOTH
def test_every_parameter_that_is_read_learns(state_neurons):
    model = make(state_neurons=state_neurons)
    torch.nn.functional.cross_entropy(model(IDS[:, :-1]).logits.flatten(0, 1), IDS[:, 1:].flatten()).backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}


@BOTH
def test_with_its_neurons_left_out_a_converted_model_is_the_dense_one(state_neurons, dense):
    model = SpikeGPT(dataclasses.replace(dense[0].config, spiking="input", neuron=None, state_neurons=state_neurons))
    start_from(model.train(), dense[1], IDS)
    anneal(model, 0.0)
    with torch.no_grad():
        found, wanted = model(IDS).logits, dense[0](IDS).logits
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> tuple:
    """(model, run) of a trained dense one."""
    base = tmp_path_factory.mktemp("rwkv7")
    options = dataclasses.replace(TRAIN, steps=20, lr=1e-2, sample_every=0)
    training.train(config("none"), options, base / "dense", cache=base / "cache", quiet=True)
    return load_model(base / "dense")[0], base / "dense"


def test_a_step_in_units_of_current_scales_rows_as_it_scales_layers():
    """A pair's matrix (in, out) moves as a linear layer of the transposed weights would."""
    model = make()
    att = model.blocks[1].att
    before = {name: att.get_parameter(name).detach().clone() for name in ("v1", "w2", "value.weight")}
    model(IDS).logits.square().mean().backward()
    worth = {name: att.get_submodule(name).spike_worth.detach() for name in ("value_neuron", "w2_neuron")}
    gradients = {name: att.get_parameter(name).grad.clone() for name in before}
    units = CurrentUnits(model)
    units.enter()
    rows, layer = worth["value_neuron"].unsqueeze(1), worth["value_neuron"]
    same(att.v1.detach(), before["v1"] / rows)
    same(att.v1.grad, gradients["v1"] * rows)
    same(att.value.weight.detach(), before["value.weight"] / layer)
    same(att.w2.grad, gradients["w2"] * worth["w2_neuron"].unsqueeze(1))
    units.leave()
    same(att.v1.detach(), before["v1"])
    same(att.w2.detach(), before["w2"])


def test_the_gradient_of_a_threshold_is_of_spikes_and_of_what_they_are_worth():
    model = make()
    att = model.blocks[1].att
    model(IDS).logits.square().mean().backward()
    products = ((att.value.weight, 0), (att.v1, 1))
    worths = sum((weight * weight.grad).sum(dim=side) for weight, side in products).detach()
    before = att.value_neuron.log_threshold.grad.clone()
    CurrentUnits(model).enter()
    same(att.value_neuron.log_threshold.grad, before + worths)


@BOTH
def test_the_counter_sees_spikes_in_all_products_and_events_in_the_state(state_neurons):
    model = SpikeGPT(config(state_neurons=state_neurons)).eval()
    tally = count(model, IDS[:1], strict=True)
    products = tally.select(kind="matmul")
    assert {site.module for site, found in products.items() if not found.is_spike_driven} == {"head"}
    assert {"blocks.0.att", "blocks.1.att"} <= {site.module for site in products}
    scans = {site.operator for site in tally.select(kind="scan")}
    assert scans == {"spikegpt::event_wkv7" if state_neurons else "spikegpt::wkv7"}
    # of each layer the tokens before of both halves, two matrices, and what waits
    assert tally.footprint.state == 2 * (2 * C + 2 * 10 * 10 + C * state_neurons)


def test_silence_costs_no_work_of_the_state():
    model = SpikeGPT(config(state_neurons=True)).eval()
    for placed in model.sites().values():
        if "wkv" in placed.site.name:
            placed.neuron.log_threshold.data.fill_(20.0)
    steps = 2 * IDS[:1].numel() * C
    scan = count(model, IDS[:1]).total(kind="scan")
    assert (scan.state_reads, scan.state_writes) == (steps, steps)


@BOTH
def test_a_decoder_of_events_reads_the_rows_of_pairs_too(state_neurons):
    model = SpikeGPT(config(state_neurons=state_neurons)).eval()
    decoder = EventDecoder(model, "float32")
    with torch.no_grad():
        decoder.take(model(IDS[:, :5]).state)
        found = torch.stack([decoder.step(ids) for ids in IDS[:, 5:].unbind(dim=1)], dim=1)
        whole = model(IDS)
    torch.testing.assert_close(found, whole.logits[:, 5:], rtol=1e-4, atol=1e-4)
    synapses = model.synapses()
    assert decoder.spike_counts() == {name: int(whole.spikes[name][:, 5:].count_nonzero()) for name in synapses}
    assert 0 < decoder.density() < 1


@pytest.mark.parametrize("spiking", SPIKING)
def test_a_run_is_trained_read_and_goes_on(spiking, make_run, tmp_path, capsys):
    run = make_run(model=config(spiking), steps=4)
    model, tokenizer = load_model(run)
    assert len(generate(model, tokenizer, ["It was"], SamplingConfig(max_tokens=5))) == 1
    assert VERBS["evaluate"]([str(run), "--tokens", "100", "--threads", "1", "--json"]) == 0
    assert '"bits_per_byte"' in capsys.readouterr().out


TERMS = {"self_teacher": 1.0, "commitment": 1.0, "synop_budget": 0.1}


@pytest.mark.parametrize(("state_neurons", "others"), [(False, TERMS), (True, TERMS), (True, {"carry_state": True})])
def test_a_run_that_was_broken_off_ends_as_the_unbroken_one(state_neurons, others, monkeypatch, tmp_path, cache):
    changes = {"steps": 6, "save_every": 2, "sample_every": 0, "optimizer": "muon", **others}
    model = config(state_neurons=state_neurons)
    training.train(model, dataclasses.replace(TRAIN, **changes), tmp_path / "whole", cache=cache, quiet=True)
    break_off(monkeypatch, tmp_path / "broken", cache, 3, model=model, **changes)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "whole")


@BOTH
def test_a_dense_run_is_converted_and_healed_by_its_teacher(state_neurons, dense, tmp_path, cache):
    model, options = healing_of(dense[1], state_neurons=state_neurons)
    options = dataclasses.replace(options, steps=3, eval_tokens=256, sample_every=0, threads=1, precision="no")
    done = training.train(model, options, tmp_path / "run", start=dense[1], cache=cache, quiet=True)
    assert options.teacher == str(dense[1]) and done.valid.firing_rate > 0
    assert load_model(tmp_path / "run")[0].config.state_neurons == state_neurons


@pytest.mark.slow
def test_runs_are_compared(dense, make_run, tmp_path, capsys):
    run = make_run(model=config(state_neurons=True), steps=2)
    arguments = ["--tokens", "40", "--threads", "1", "--prices", "seneca22", "--json"]
    assert VERBS["compare"]([str(run), str(dense[1]), *arguments]) == 0
    spiking, twin = json.loads(capsys.readouterr().out)
    assert spiking["firing_rate"] > 0 and twin["firing_rate"] is None
    real = {layer["module"] for layer in spiking["layers"] if layer["alphabet"] == "real"}
    assert real == {"head"} and {layer["alphabet"] for layer in twin["layers"]} == {"real"}


def test_state_neurons_are_not_put_into_weights_that_have_none(make_run, dense):
    run = make_run(model=config(), steps=1)
    with pytest.raises(SpikegptError, match="of state_neurons False, which --state-neurons cannot change to True"):
        training.train(config(state_neurons=True), TRAIN, run.parent / "other", start=run, quiet=True)
    model, _ = defaults_from(dense[1], spiking="input")
    assert (model.state_neurons, model.neuron) == (False, INPUT_NEURON)
    with pytest.raises(ValueError, match="state_neurons is of the mixer rwkv7, not of rwkv4; leave it out"):
        ModelConfig(state_neurons=True)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--mixer", "rwkv4"], "of mixer rwkv7, which --mixer cannot change to rwkv4; leave it out"),
        (["--head-size", "5"], "of head_size 10, which --head-size cannot change to 5; leave it out"),
        (["--lora-ranks", "7", "5", "3", "9"], r"of lora_ranks \(7, 5, 3, 6\), which --lora-ranks cannot change to"),
        (["--head-size", "7"], "n_embd is 20, no multiple of head_size 7; give a --head-size that divides it"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "convert"])
def test_weights_are_of_one_shape_whatever_flags_say(dense, tmp_path, verb, flags, words):
    begin = [verb, "--from", dense[1], "--spiking", "input"] if verb == "train" else [verb, dense[1]]
    done = spikegpt(*begin, *flags, "--out", tmp_path / "out", "--cache", dense[1].parent / "cache", check=False)
    assert done.returncode in (1, 2) and re.search(words, done.stderr)
    assert not (tmp_path / "out").exists()


def test_flags_of_another_generation_are_not_measured_by_its_sizes(make_run):
    """Heads of the default size do not divide this width, but that is not what is wrong."""
    run = make_run(model=ModelConfig(n_layer=1, n_embd=16, ctx_len=16, spiking="none"), steps=1)
    for begin in (["train", "--from", run, "--spiking", "input"], ["convert", run]):
        done = spikegpt(*begin, "--mixer", "rwkv7", check=False)
        assert done.returncode == 1 and "of mixer rwkv4, which --mixer cannot change to rwkv7" in done.stderr


def test_ranks_may_be_told_though_they_are_the_published_ones(make_run):
    shape = {"n_layer": 1, "n_embd": 16, "ctx_len": 16, "mixer": "rwkv7", "head_size": 8}
    run = make_run(model=ModelConfig(spiking="none", **shape), steps=1)
    check_shape(ModelConfig(spiking="input", lora_ranks=(32, 32, 32, 32), **shape), run)
    with pytest.raises(SpikegptError, match="lora_ranks"):
        check_shape(ModelConfig(spiking="input", lora_ranks=(32, 32, 32, 31), **shape), run)


@BOTH
def test_autocast_keeps_the_state_in_float32(state_neurons):
    model = SpikeGPT(config(state_neurons=state_neurons))
    for carried in (True, False):
        with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(carried):
            logits, state, _ = model(IDS)
    matrices = state[1].time_mix.wkv
    assert {part.dtype for part in (matrices if state_neurons else [matrices])} == {torch.float32}
    assert logits.isfinite().all()
