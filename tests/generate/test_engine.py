"""The engine against the model's own forward pass: logits, spikes, state, for every block, dtype and thread count."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves

from spikegpt.config import INPUT_NEURON, ModelConfig, NeuronConfig
from spikegpt.generate.compiled.decoder import TRIED, RowDecoder, Sharing, fastest
from spikegpt.generate.engine import Engine
from spikegpt.model.initial import calibrate_thresholds
from spikegpt.model.network import SpikeGPT
from spikegpt.neuron import LIF, SnnTorchNeuron

V, T, START = 61, 26, 9
# inner channels of pairs that are no whole number of registers, more and less of them
RWKV7 = {"mixer": "rwkv7", "head_size": 8, "lora_ranks": (3, 17, 1, 37)}
RWKV5 = {"mixer": "rwkv5", "head_size": 8}
RWKV6 = {"mixer": "rwkv6", "head_size": 8, "lora_ranks": (3, 17)}
BLOCKS = {
    "none": {"spiking": "none"},
    "output": {"spiking": "output"},
    "output, soft reset": {
        "spiking": "output",
        "neuron": NeuronConfig(reset="subtract", membrane_decay=0.8, learnable_decay=True),
    },
    "output, resting below 0": {"spiking": "output", "neuron": NeuronConfig(reset_potential=-0.25, decay_input=False)},
    "output, real embedding": {"spiking": "output", "binary_embedding": False},
    "input": {"spiking": "input"},
    "input, spiking head": {"spiking": "input", "spiking_head": True},
    "input, leaky": {
        "spiking": "input",
        "neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.4, learnable_decay=True, reset="zero"),
    },
    "input, never reset": {
        "spiking": "input",
        "neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.4, learnable_decay=True, reset="none"),
    },
    "input, shared neurons": {"spiking": "input", "shared_neurons": True, "spiking_head": True},
    "input, shared neurons, leaky": {
        "spiking": "input",
        "shared_neurons": True,
        "neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.4, learnable_decay=True, reset="zero"),
    },
    "input, binary": {
        "spiking": "input",
        "hidden_levels": 1,
        "neuron": NeuronConfig(learnable_threshold=True, membrane_decay=0.25),
    },
    "rwkv5, none": {**RWKV5, "spiking": "none"},
    "rwkv5, input, leaky": {
        **RWKV5,
        "spiking": "input",
        "neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.4, learnable_decay=True, reset="zero"),
    },
    "rwkv6, none": {**RWKV6, "spiking": "none"},
    "rwkv6, output": {**RWKV6, "spiking": "output"},
    "rwkv6, input": {**RWKV6, "spiking": "input", "spiking_head": True},
    "rwkv6, input, leaky": {
        **RWKV6,
        "spiking": "input",
        "neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.4, learnable_decay=True, reset="zero"),
    },
    "rwkv7, none": {**RWKV7, "spiking": "none"},
    "rwkv7, output": {**RWKV7, "spiking": "output"},
    "rwkv7, input": {**RWKV7, "spiking": "input"},
    "rwkv7, input, leaky": {
        **RWKV7,
        "spiking": "input",
        "neuron": dataclasses.replace(INPUT_NEURON, membrane_decay=0.4, learnable_decay=True, reset="zero"),
    },
    "rwkv7, state neurons": {**RWKV7, "spiking": "input", "state_neurons": True, "spiking_head": True},
    "rwkv7, state neurons, binary": {
        **RWKV7,
        "spiking": "input",
        "state_neurons": True,
        "hidden_levels": 1,
        "neuron": NeuronConfig(learnable_threshold=True, membrane_decay=0.25),
    },
}


def make(block: str, dtype=torch.float64, neuron=None, **changes) -> SpikeGPT:
    torch.manual_seed(1)
    sizes = {"n_layer": 3, "n_embd": 40, "vocab_size": V, "dropout": 0.0}
    model = SpikeGPT(ModelConfig(**{**sizes, **BLOCKS[block], **changes}), neuron)
    if model.config.spiking != "input":
        # RWKV's zero matrices would leave nothing to compare
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(std=0.5)
    return model.to(dtype).eval()


@pytest.fixture
def ids():
    return torch.randint(V, (3, T), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def decode(model: SpikeGPT, ids: torch.Tensor, engine: Engine, by_rows: bool = True) -> torch.Tensor:
    """Logits after each token from START on, (B, T - START, V), with the state of what was read at once before."""
    engine.start(model(ids[:, :START]).state, by_rows=by_rows)
    return torch.stack([engine.step(ids[:, t]) for t in range(START, T)], dim=1)


def fired(model: SpikeGPT, ids: torch.Tensor) -> dict[str, int]:
    """Nonzero spikes that matrix products read while the tokens from START on are read, by layer of neurons."""
    with torch.no_grad():
        spikes = model(ids).spikes
    return {name: spikes[name][:, START:].count_nonzero().item() for name in model.synapses()}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("texts", [1, 3])
@pytest.mark.parametrize("block", BLOCKS)
def test_float64_gives_the_models_logits_state_and_spikes(block, texts, threads, ids):
    model, ids = make(block), ids[:texts]
    engine = Engine(model, threads=threads)
    logits = decode(model, ids, engine)
    assert engine.by_rows
    with torch.no_grad():
        whole = model(ids)
    torch.testing.assert_close(logits, whole.logits[:, START:], rtol=1e-10, atol=1e-10)
    ours, theirs = tree_leaves(engine.state()), tree_leaves(whole.state)
    assert len(ours) == len(theirs)
    for found, wanted in zip(ours, theirs, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    if model.synapses():
        assert engine.spike_counts() == fired(model, ids)


@pytest.mark.parametrize("block", ["rwkv6, none", "rwkv7, none", "rwkv7, state neurons"])
@pytest.mark.parametrize("n_embd, head_size", [(5, 1), (36, 12), (35, 35), (128, 64)])
def test_heads_of_any_size(n_embd, head_size, block, ids):
    model = make(block, n_embd=n_embd, head_size=head_size, n_layer=2)
    engine = Engine(model, threads=2)
    logits = decode(model, ids[:2], engine)
    with torch.no_grad():
        whole = model(ids[:2])
    torch.testing.assert_close(logits, whole.logits[:, START:], rtol=1e-10, atol=1e-10)
    for found, wanted in zip(tree_leaves(engine.state()), tree_leaves(whole.state), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_a_column_of_the_state_without_an_event_keeps_its_last_bit(ids):
    """Only columns of keys that fired are touched: of the others the decay waits, as in the model."""
    model = make("rwkv7, state neurons")
    calibrate_thresholds(model, 0.1)
    engine = Engine(model)
    with torch.no_grad():
        before = model(ids[:1, :START])
        fired = model(ids[:1, START : START + 1], before.state).spikes["blocks.1.att.wkv_key_neuron"][0, 0] != 0
    engine.start(before.state)
    engine.step(ids[:1, START])
    old, new = before.state[1].time_mix.wkv, engine.state()[1].time_mix.wkv
    is_kept = (new.matrix == old.matrix).all(dim=-2).flatten()
    assert 0 < fired.sum() < 20 and torch.equal(is_kept, ~fired)
    assert torch.equal(new.waiting.flatten() == 0, fired)


@pytest.mark.parametrize("block", BLOCKS)
def test_float32_stays_near_the_model_and_hardly_a_spike_differs(block, ids):
    model = make(block, torch.float32)
    engine = Engine(model, threads=2)
    logits = decode(model, ids, engine)
    with torch.no_grad():
        whole = model(ids).logits[:, START:]
    # the sums are added in another order: a potential that lies within 1e-6 of its threshold may fall on the other side
    assert (logits - whole).abs().max() <= 1e-4 * whole.abs().max()
    if model.synapses():
        found, wanted = engine.spike_counts(), fired(model, ids)
        assert sum(abs(found[name] - wanted[name]) for name in wanted) <= 1e-3 * sum(wanted.values())


@pytest.mark.parametrize(
    "block", ["none", "input", "input, shared neurons", "rwkv6, input", "rwkv7, none", "rwkv7, state neurons"]
)
def test_the_number_of_threads_changes_no_bit(block, ids):
    model = make(block, torch.float32, n_embd=72)
    results = [decode(model, ids, Engine(model, threads=threads)) for threads in (1, 2, 3)]
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(("weights", "error"), [("bfloat16", 0.02), ("int8", 0.03)])
@pytest.mark.parametrize("block", ["none", "input, spiking head", "input, shared neurons"])
def test_short_weights_are_those_numbers_rounded(block, weights, error, ids):
    """The same as a float32 engine of the rounded weights, and in the dense twin near the true ones."""
    model = make(block, torch.float32)
    rounded = make(block, torch.float32)
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, torch.nn.Linear):
                if weights == "bfloat16":
                    module.weight.copy_(module.weight.bfloat16().float())
                else:
                    scale = module.weight.abs().amax(dim=1, keepdim=True) / 127
                    module.weight.copy_((module.weight / scale).round() * scale)
    with torch.no_grad():
        state = model(ids[:1, :START]).state
    logits = []
    for engine in (Engine(model, weights=weights), Engine(rounded), Engine(model)):
        engine.start(state)
        logits.append(engine.step(ids[:1, START]))
    short, wanted, exact = logits
    torch.testing.assert_close(short, wanted, rtol=1e-3, atol=1e-3)
    if block == "none":
        assert 0 < (short - exact).abs().max() <= error * exact.abs().max()


def test_what_does_not_fire_is_not_read(ids):
    model = make("input", torch.float32)
    calibrate_thresholds(model, 0.05)
    engine = Engine(model)
    decode(model, ids, engine)
    sparse = engine.density()
    dense = Engine(make("none", torch.float32))
    decode(dense.model, ids, dense)
    # the dense head, 40 x 61 of the 65,000 weights, is read whole; half of relu^2 is zero in the dense twin too
    assert 0.05 < sparse < 0.12 and 0.7 < dense.density() < 0.95


@pytest.mark.parametrize(
    "block", ["input, spiking head", "input, shared neurons", "rwkv6, input", "rwkv7, state neurons"]
)
def test_density_is_the_rows_read_over_all_rows(block, ids):
    model = make(block)
    engine = Engine(model)
    decode(model, ids, engine)
    counts, synapses = fired(model, ids), model.synapses()
    read = sum(counts[name] * len(product.weight) for name in synapses for product in model.sites()[name].products)
    assert engine.density() == pytest.approx(read / sum(synapses.values()) / (3 * (T - START)))


@pytest.mark.parametrize(
    ("block", "texts", "by_rows"), [("none", 1, True), ("none", 24, False), ("input", 6, True), ("input", 72, False)]
)
def test_many_texts_go_on_through_the_model_after_the_first_token(block, texts, by_rows, ids):
    model, many = make(block), ids.repeat(24, 1)[:texts]
    engine = Engine(model)
    logits = decode(model, many, engine, by_rows=None)
    assert engine.by_rows == by_rows
    with torch.no_grad():
        torch.testing.assert_close(logits, model(many).logits[:, START:], rtol=1e-10, atol=1e-10)


def test_other_neurons_go_through_the_model(ids):
    snntorch = pytest.importorskip("snntorch")
    config = ModelConfig(n_layer=1, n_embd=8, vocab_size=V, spiking="output")
    model = SpikeGPT(config, lambda site: SnnTorchNeuron(snntorch.Leaky(beta=0.5))).eval()
    engine = Engine(model)
    logits = decode(model, ids[:1], engine, by_rows=None)
    assert not engine.by_rows
    with torch.no_grad():
        torch.testing.assert_close(logits, model(ids[:1]).logits[:, START:])
    with pytest.raises(ValueError, match="its neurons are SnnTorchNeuron, not our LIF"):
        Engine(model, weights="int8")


@pytest.mark.parametrize("block", ["input, leaky", "rwkv7, none", "rwkv7, state neurons"])
def test_decoding_can_go_on_in_the_model_and_back(block, ids):
    model = make(block)
    engine = Engine(model)
    with torch.no_grad():
        engine.start(model(ids[:1, :5]).state)
        for t in range(5, 10):
            engine.step(ids[:1, t])
        middle = model(ids[:1, 10:15], engine.state())
        engine.start(middle.state)
        last = engine.step(ids[:1, 15])
        torch.testing.assert_close(last, model(ids[:1, :16]).logits[:, -1])


@pytest.mark.parametrize(
    ("tokens", "message"), [([V], "in \\[0, 61\\)"), ([-1], "in \\[0, 61\\)"), ([1, 2], "want 1 token ids")]
)
def test_bad_tokens_are_refused(tokens, message, ids):
    model = make("input")
    engine = Engine(model)
    with torch.no_grad():
        engine.start(model(ids[:1]).state)
    with pytest.raises(ValueError, match=message):
        engine.step(torch.tensor(tokens))


def test_a_step_without_a_text_is_refused():
    with pytest.raises(ValueError, match="no text was started"):
        Engine(make("input")).step(torch.tensor([1]))


def test_every_site_may_have_its_own_neuron(ids):
    """Neurons that a factory chose are decoded by rows as they are: their rows come from themselves."""
    kinds = {
        "key_neuron": NeuronConfig(threshold=0.5, membrane_decay=0.3),
        "value_neuron": dataclasses.replace(INPUT_NEURON, levels=2, membrane_decay=0.4, reset="zero"),
        "wkv_neuron": NeuronConfig(threshold=0.2, reset="subtract"),
    }
    model = make("input", neuron=lambda site: LIF(site.channels, kinds.get(site.name, site.neuron)))
    engine = Engine(model)
    logits = decode(model, ids, engine)
    whole = model(ids)
    torch.testing.assert_close(logits, whole.logits[:, START:], rtol=1e-10, atol=1e-10)
    assert engine.spike_counts() == fired(model, ids)
    potentials = engine.state()[1].time_mix.neurons
    torch.testing.assert_close(potentials["key_neuron"], whole.state[1].time_mix.neurons["key_neuron"])
    assert potentials["output_neuron"] is None


def test_neurons_that_differ_from_layer_to_layer_go_through_the_model():
    thresholds = iter([0.5, 0.5, 0.7, 0.7])
    config = ModelConfig(n_layer=2, n_embd=8, vocab_size=V, spiking="output")
    model = SpikeGPT(config, lambda site: LIF(site.channels, NeuronConfig(threshold=next(thresholds))))
    assert "blocks.1.time_mix_neuron are others than those of the layers before" in Engine(model).reason


def test_several_numbers_of_threads_are_tried_and_one_is_kept(ids):
    model = make("input", torch.float32)
    one, several = RowDecoder(model, "float32", [1]), RowDecoder(model, "float32", [3, 2, 1])
    with torch.no_grad():
        state = model(ids[:1, :START]).state
    for decoder in (one, several):
        decoder.take(state)
    for t in range(3 * TRIED):
        assert len(several._seconds) == 3
        assert torch.equal(one.step(ids[:1, t]), several.step(ids[:1, t]))
    assert len(several._seconds) == 1
    assert several.spike_counts() == one.spike_counts()


@pytest.mark.parametrize("block", ["input, spiking head", "input, leaky", "output", "rwkv7, state neurons, binary"])
def test_every_text_is_what_it_is_alone_however_texts_are_divided(block, ids):
    model, many = make(block, torch.float32, n_embd=72), torch.cat([ids, ids.flip(1)])[:5]
    decoder = RowDecoder(model, "float32", [1], text_threads=[3, 2, 1])
    alone = [RowDecoder(model, "float32", [1]) for _ in many]
    with torch.no_grad():
        decoder.take(model(many[:, :START]).state)
        for text, one in zip(many, alone, strict=True):
            one.take(model(text[None, :START]).state)
    for t in range(3 * TRIED):
        assert set(decoder._seconds) == {Sharing(1, False), Sharing(3, True), Sharing(2, True)}
        found = decoder.step(many[:, t])
        assert torch.equal(found, torch.cat([one.step(text[t : t + 1]) for text, one in zip(many, alone, strict=True)]))
    assert len(decoder._seconds) == 1
    counts = [one.spike_counts() for one in alone]
    assert decoder.spike_counts() == {name: sum(one[name] for one in counts) for name in counts[0]}


def test_texts_of_a_small_model_are_divided_and_one_text_is_not(ids):
    model = make("input", torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        engine = Engine(model)
    finally:
        torch.set_num_threads(before)
    for texts, divided in ((1, []), (3, [Sharing(2, True)])):
        with torch.no_grad():
            engine.start(model(ids[:texts, :START]).state)
        assert list(engine._decoder._seconds) == [Sharing(1, False), *divided]


def test_the_fastest_number_of_threads_is_that_of_the_least_median():
    one, two = Sharing(1, False), Sharing(2, False)
    seconds = {two: [9.0, *[2.0] * (TRIED - 1)], one: [1.0, *[3.0] * (TRIED - 2)]}
    assert fastest(seconds) == seconds
    seconds[one].append(3.0)
    assert list(fastest(seconds)) == [two]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_clock_tells_every_tick_and_changes_no_bit(threads, ids):
    model = make("input", torch.float32)
    with torch.no_grad():
        state = model(ids[:1, :START]).state
    plain, clocked = (RowDecoder(model, "float32", [threads], has_clock=has_clock) for has_clock in (False, True))
    for decoder in (plain, clocked):
        decoder.take(state)
    assert torch.equal(plain.step(ids[:1, START]), clocked.step(ids[:1, START]))
    before = clocked.ticks()
    clocked.step(ids[:1, START + 1])
    spent = {part: ticks - before[part] for part, ticks in clocked.ticks().items()}
    # what lies between two tokens is no part of either
    between = spent.pop("now")
    assert 0 < sum(spent.values()) <= between
    # step reads tokens that are given, and draws none
    assert spent.pop("drawing") == 0
    assert {"norm", "lists", "head", "att.key", "ffn.value"} < set(spent) and min(spent.values()) > 0
    with pytest.raises(ValueError, match="has no clock"):
        plain.ticks()


def test_something_else_than_our_model_is_refused():
    with pytest.raises(ValueError, match="model is a Linear, want a SpikeGPT"):
        Engine(torch.nn.Linear(2, 2))


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="weights is 'int4'; known: float32, bfloat16, int8"):
        Engine(make("input"), weights="int4")


def test_the_model_is_copied(ids):
    model = make("input", torch.float32)
    engine = Engine(model)
    before = decode(model, ids[:1], engine)[:, 0]
    with torch.no_grad():
        state = model(ids[:1, :START]).state
        model.head.weight.zero_()
    engine.start(state)
    torch.testing.assert_close(engine.step(ids[:1, START]), before)


def test_a_model_that_is_rescaled_goes_through_its_own_forward_pass(ids):
    model = make("output", rescale_every=2)
    assert "rescaled" in Engine(model).reason
    torch.testing.assert_close(decode(model, ids, Engine(model), by_rows=False), model(ids).logits[:, START:])
