"""RWKV-5 and -6 with neurons: every product reads spikes, those of RWKV-6's pairs too."""

import dataclasses

import pytest
import torch
from counting import count
from runs import TRAIN

from spikegpt.checkpoint.weights import load_model
from spikegpt.cli.verbs import VERBS
from spikegpt.config import SPIKING, ModelConfig, NeuronConfig, SamplingConfig
from spikegpt.generate import generate
from spikegpt.generate.event_products import EventDecoder
from spikegpt.model.mixers import Rows
from spikegpt.model.network import SpikeGPT
from spikegpt.train import trainer as training
from spikegpt.train.convert import anneal, healing_of, start_from
from spikegpt.train.units import CurrentUnits

C, MIX, DECAY = 20, 3, 7
RANKS = {"rwkv5": (), "rwkv6": (MIX, DECAY)}
IDS = torch.randint(256, (2, 13), generator=torch.Generator().manual_seed(0))
LEAKY = NeuronConfig(membrane_decay=0.25, learnable_threshold=True)
MIXERS = pytest.mark.parametrize("mixer", list(RANKS))


def config(mixer: str, spiking: str = "input", **changes) -> ModelConfig:
    sizes = {"n_layer": 2, "n_embd": C, "head_size": 10, "lora_ranks": RANKS[mixer], "ctx_len": 16, "dropout": 0.0}
    return ModelConfig(**{"mixer": mixer, "spiking": spiking, **sizes, **changes})


def make(mixer: str, **changes) -> SpikeGPT:
    """In float64: in float32 another order of adding may move a current across its threshold."""
    torch.manual_seed(0)
    return SpikeGPT(config(mixer, **changes)).double().eval()


def same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@MIXERS
@pytest.mark.parametrize("changes", [{}, {"neuron": LEAKY}], ids=str)
@pytest.mark.parametrize("pieces", [[5, 8], [1] * 13])
def test_a_text_in_pieces_is_the_text(mixer, pieces, changes):
    model, state, logits = make(mixer, **changes), None, []
    with torch.no_grad():
        for piece in IDS.split(pieces, dim=1):
            found, state, _ = model(piece, state)
            logits.append(found)
        same(torch.cat(logits, dim=1), model(IDS).logits)


@MIXERS
def test_every_product_has_neurons(mixer):
    model = make(mixer)
    readers = dict.fromkeys(("receptance", "key", "value", "gate", "output"), C * C)
    if mixer == "rwkv6":
        pairs = {"time_maa_w1": 5 * MIX, "time_maa_w2": 5 * MIX, "time_decay_w1": DECAY, "time_decay_w2": DECAY}
        readers |= {name: C * inner for name, inner in pairs.items()}
    # seven halves of the stream, in whole 32s
    hidden = 64
    wanted = {f"att.{name}_neuron": weights for name, weights in readers.items()}
    wanted |= {"ffn.key_neuron": C * hidden, "ffn.receptance_neuron": C * C, "ffn.value_neuron": C * hidden}
    assert model.synapses() == {f"blocks.{n}.{name}": weights for n in (0, 1) for name, weights in wanted.items()}
    assert list(model(IDS).spikes) == list(model.synapses())


@MIXERS
def test_neurons_begin_alive_and_every_parameter_learns(mixer):
    model = make(mixer)
    logits, _, spikes = model(IDS[:, :-1])
    rates = {name: spike.count_nonzero().item() / spike.numel() for name, spike in spikes.items()}
    assert all(0.01 < rate < 0.7 for rate in rates.values()), rates
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.fixture(scope="module", params=list(RANKS))
def dense(request, tmp_path_factory) -> tuple:
    """(model, run) of a trained dense one."""
    base = tmp_path_factory.mktemp(request.param)
    options = dataclasses.replace(TRAIN, steps=20, lr=1e-2, sample_every=0)
    training.train(config(request.param, "none"), options, base / "dense", cache=base / "cache", quiet=True)
    return load_model(base / "dense")[0], base / "dense"


def test_with_its_neurons_left_out_a_converted_model_is_the_dense_one(dense):
    model = SpikeGPT(dataclasses.replace(dense[0].config, spiking="input", neuron=None))
    start_from(model.train(), dense[1], IDS)
    anneal(model, 0.0)
    with torch.no_grad():
        found, wanted = model(IDS).logits, dense[0](IDS).logits
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_a_dense_run_is_converted_and_healed_by_its_teacher(dense, tmp_path, cache):
    model, options = healing_of(dense[1])
    options = dataclasses.replace(options, steps=3, eval_tokens=256, sample_every=0, threads=1, precision="no")
    done = training.train(model, options, tmp_path / "run", start=dense[1], cache=cache, quiet=True)
    assert options.teacher == str(dense[1]) and done.valid.firing_rate > 0


def test_a_step_in_units_of_current_scales_the_rows_of_all_mixes():
    """Of five matrices in one, each row moves with the worth of its own inner channel."""
    model = make("rwkv6")
    att = model.blocks[1].att
    assert model.sites()["blocks.1.att.time_maa_w2_neuron"].products == (Rows(att.time_maa_w2),)
    before = att.time_maa_w2.detach().clone()
    model(IDS).logits.square().mean().backward()
    gradient = att.time_maa_w2.grad.clone()
    # a number for all channels, or one for each
    worth = att.time_maa_w2_neuron.spike_worth.detach().expand(5 * MIX).view(5, MIX, 1)
    units = CurrentUnits(model)
    units.enter()
    same(att.time_maa_w2.detach(), before / worth)
    same(att.time_maa_w2.grad, gradient * worth)
    units.leave()
    same(att.time_maa_w2.detach(), before)


@MIXERS
def test_the_counter_sees_spikes_in_all_products(mixer):
    tally = count(SpikeGPT(config(mixer)).eval(), IDS[:1], strict=True)
    products = tally.select(kind="matmul")
    assert {site.module for site, found in products.items() if not found.is_spike_driven} == {"head"}
    assert {site.operator for site in tally.select(kind="scan")} == {"spikegpt::wkv6"}
    # of each layer the tokens before of both halves, and two matrices
    assert tally.footprint.state == 2 * (2 * C + 2 * 10 * 10)


@MIXERS
def test_a_decoder_of_events_reads_the_rows_of_pairs_too(mixer):
    model = SpikeGPT(config(mixer)).eval()
    decoder = EventDecoder(model, "float32")
    with torch.no_grad():
        decoder.take(model(IDS[:, :5]).state)
        found = torch.stack([decoder.step(ids) for ids in IDS[:, 5:].unbind(dim=1)], dim=1)
        whole = model(IDS)
    torch.testing.assert_close(found, whole.logits[:, 5:], rtol=1e-4, atol=1e-4)
    wanted = {name: int(whole.spikes[name][:, 5:].count_nonzero()) for name in model.synapses()}
    assert decoder.spike_counts() == wanted
    assert 0 < decoder.density() < 1


@MIXERS
@pytest.mark.parametrize("spiking", SPIKING)
def test_a_run_is_trained_read_and_goes_on(mixer, spiking, make_run, capsys):
    run = make_run(model=config(mixer, spiking), steps=4)
    model, tokenizer = load_model(run)
    assert len(generate(model, tokenizer, ["It was"], SamplingConfig(max_tokens=5))) == 1
    assert VERBS["evaluate"]([str(run), "--tokens", "100", "--threads", "1", "--json"]) == 0
    assert '"bits_per_byte"' in capsys.readouterr().out
