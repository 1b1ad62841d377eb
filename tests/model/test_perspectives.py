"""Multiple Temporal Perspectives: equal ones are the model of one, different ones the authors' (test_golden_models.py).

That a text is one row outside of the network, whatever it is inside: states, spikes, counts, decoding.
"""

import dataclasses

import pytest
import torch
from golden import load, relative_error
from runs import MODEL, TRAIN, break_off, weights_of
from torch.utils._pytree import tree_leaves, tree_map

from neuromorphic import OpCounter
from spikegpt.checkpoint.run import latest_checkpoint
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import INPUT_NEURON, ModelConfig
from spikegpt.config.effects import idle_in_blocks
from spikegpt.evaluate.runs import evaluate_run
from spikegpt.generate.engine import Engine
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.measure.runs import measure_runs
from spikegpt.model.network import SpikeGPT, parameters_of
from spikegpt.model.state import join_states, select_texts
from spikegpt.train import trainer as training
from spikegpt.train.convert import anneal, check_shape, cloned_weights, start_from
from spikegpt.train.optimizer import make_optimizer
from spikegpt.train.sharding import make_sharded

C, P = 24, 3
SIZES = {"n_layer": 2, "n_embd": C, "vocab_size": 50, "dropout": 0.0}
IDS = torch.arange(14).view(2, 7)
LEAKY = dataclasses.replace(INPUT_NEURON, membrane_decay=0.5, learnable_decay=True)
KINDS = {
    "dense": {"spiking": "none"},
    "published": {"spiking": "output"},
    "spike-driven": {"spiking": "input", "spiking_head": True},
    "leaky": {"spiking": "input", "neuron": LEAKY},
    "shared neurons": {"spiking": "input", "shared_neurons": True},
}
OF_KINDS = pytest.mark.parametrize("kind", KINDS)


def make(perspectives: int = P, **changes) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(ModelConfig(**{**SIZES, "perspectives": perspectives, **changes}))


@torch.no_grad()
def different(kind: str, **changes) -> SpikeGPT:
    """A model whose perspectives see different mixes, and are weighed by what they see."""
    model = make(**KINDS[kind], **changes)
    for name, parameter in model.named_parameters():
        if "time_mix" in name:
            parameter += 0.3 * torch.randn_like(parameter)
        elif not parameter.any():
            # dense halves begin with matrices of zeros
            torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.convert3.weight, std=1.0)
    return model.eval()


@torch.no_grad()
@OF_KINDS
def test_equal_perspectives_are_the_model_of_one(kind):
    base = make(1, **KINDS[kind]).eval()
    model = make(**KINDS[kind]).eval()
    weights = cloned_weights(base.config, base.state_dict(), P)
    model.load_state_dict(weights)
    found, wanted = model(IDS).logits, base(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_authors_model_with_equal_mixes_is_their_model_of_one(dtype):
    model, arrays, ids, _ = load("perspectives_a", dtype)
    for name, parameter in model.named_parameters():
        if "time_mix" in name:
            parameter.copy_(parameter[:1].expand_as(parameter))
    assert relative_error(model(ids).logits, arrays["logits_clones64"]) < {torch.float32: 1e-4}.get(dtype, 1e-9)


@torch.no_grad()
def test_perspectives_are_weighed_as_the_authors_do():
    model, arrays, ids, _ = load("perspectives_a", torch.float64)
    seen = []
    model.convert3.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    hidden = model.hidden(ids)[0]
    alpha, each = torch.from_numpy(arrays["alpha"]), seen[0].unflatten(0, (3, -1))
    weighed = sum(alpha[..., p, None] * each[p] for p in range(3))
    assert relative_error(hidden, weighed.numpy()) < 1e-12


@torch.no_grad()
@OF_KINDS
@pytest.mark.parametrize("cuts", [(3, 4), (1,) * 7])
def test_in_pieces_it_reads_as_at_once(kind, cuts):
    model = different(kind)
    whole, state, logits = model(IDS), None, []
    for piece in IDS.split(cuts, dim=1):
        found = model(piece, state)
        state, logits = found.state, [*logits, found.logits]
    torch.testing.assert_close(torch.cat(logits, dim=1), whole.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, whole.state, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@OF_KINDS
def test_a_text_is_one_row_of_states_and_spikes(kind):
    model = different(kind)
    both, alone = model(IDS), [model(ids[None]) for ids in IDS]
    assert {part.shape[:2] for part in tree_leaves(both.state) if isinstance(part, torch.Tensor)} == {(2, P)}
    torch.testing.assert_close(join_states([found.state for found in alone]), both.state)
    torch.testing.assert_close(select_texts(both.state, [1]), alone[1].state)
    for name, spikes in both.spikes.items():
        assert are_alike(spikes[1:], alone[1].spikes[name])
        if name not in ("emb", "head_neuron"):
            assert spikes.shape == (2, 7, P * model.sites()[name].site.channels)
            # the same neurons, driven by different mixes
            assert not torch.equal(*spikes.chunk(P, dim=-1)[:2])


def are_alike(spikes: torch.Tensor, others: torch.Tensor) -> bool:
    """Products of other numbers of rows differ in the last digit, which a neuron at its threshold may tell."""
    return (spikes != others).float().mean() < 0.01


@torch.no_grad()
@OF_KINDS
def test_each_perspective_is_the_model_of_one_with_its_mixes(kind):
    model = different(kind)
    found = model(IDS)
    for p in range(P):
        one = make(1, **KINDS[kind]).eval()
        weights = {name: tensor[p] if tensor.dim() == 4 else tensor for name, tensor in model.state_dict().items()}
        del weights["convert3.weight"]
        one.load_state_dict(weights)
        alone = one(IDS)
        own = tree_map(lambda part, p=p: part[:, p] if isinstance(part, torch.Tensor) else part, found.state)
        torch.testing.assert_close(own, alone.state, rtol=1e-4, atol=1e-4)
        for name in alone.spikes.keys() - {"emb", "head_neuron"}:
            assert are_alike(found.spikes[name].chunk(P, dim=-1)[p], alone.spikes[name])


@OF_KINDS
def test_every_parameter_learns_and_equal_perspectives_learn_apart(kind):
    model = make(**KINDS[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2)
    model(IDS).logits.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    mixes = {name: grad for name, grad in grads.items() if "time_mix" in name}
    # however they are weighed, the mean of equal ones is the same
    assert grads.pop("convert3.weight").abs().max() < 1e-6
    if kind != "published":
        assert all(grad.any() for grad in grads.values())
    assert all(not torch.equal(grad[0], grad[1]) for grad in mixes.values() if grad.any())
    assert sum(grad.numel() for grad in mixes.values()) == 2 * P * C * (2 if kind == "shared neurons" else 5)


def test_it_adds_five_mixes_for_each_perspective_in_each_layer_and_what_joins_them():
    base, model = make(1, spiking="none"), make(spiking="none")
    assert model.count_parameters() - base.count_parameters() == 5 * C * 2 * (P - 1) + P * C
    assert parameters_of(model.config) == model.count_parameters()
    assert base.state_dict()["blocks.0.att.time_mix_k"].shape == (1, 1, C)


def test_no_mix_of_tokens_is_decayed():
    model = make(spiking="none")
    optimizer = make_optimizer(model, dataclasses.replace(TRAIN, weight_decay=0.1))
    decayed = {id(part) for group in optimizer.param_groups if group["weight_decay"] for part in group["params"]}
    mixes = [parameter for name, parameter in model.named_parameters() if "time_mix" in name]
    assert len(mixes) == 10 and not decayed & set(map(id, mixes))


@OF_KINDS
def test_the_counter_sees_every_perspective(kind):
    model, base = different(kind), make(1, **KINDS[kind]).eval()

    def counted(model: SpikeGPT) -> tuple[int, int]:
        with torch.no_grad(), OpCounter(model) as counter:
            model(IDS)
        tally = counter.tally()
        return tally.footprint.state, tally.total().dense_ops

    (state, products), (one_state, one_products) = counted(model), counted(base)
    head, joining = IDS.numel() * C * 50, IDS.numel() * C * P
    assert state == P * one_state
    assert products == P * (one_products - head) + head + joining


@torch.no_grad()
def test_decoding_is_the_forward_pass_and_says_why():
    model = different("spike-driven")
    engine = Engine(model)
    assert engine.reason == "it reads every text from 3 perspectives"
    with pytest.raises(ValueError, match="int8 weights need decoding by rows, and it reads every text from 3 persp"):
        Engine(model, weights="int8")
    whole = model(IDS)
    engine.start(model(IDS[:, :4]).state)
    for token in IDS[:, 4:].unbind(dim=1):
        logits = engine.step(token)
    torch.testing.assert_close(logits, whole.logits[:, -1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine.state(), whole.state, rtol=1e-4, atol=1e-4)


def test_a_state_of_other_perspectives_is_refused():
    with pytest.raises(ValueError, match="the state does not fit: it is of 2 perspectives, this model has 3"):
        make(3, spiking="none")(IDS, make(2, spiking="none")(IDS).state)
    with pytest.raises(ValueError, match="the state does not fit: it holds"):
        make(3, spiking="none")(IDS, make(1, spiking="none")(IDS).state)


def test_it_is_an_option_of_rwkv4_and_off_in_older_files():
    assert ModelConfig.from_dict({"n_layer": 2}).perspectives == 1
    with pytest.raises(ValueError, match="perspectives is of the mixer rwkv4, not of rwkv7; leave it out"):
        ModelConfig(mixer="rwkv7", perspectives=2)
    with pytest.raises(ValueError, match="perspectives must be a whole number from 1 to 64, got 0"):
        ModelConfig(perspectives=0)
    assert all("perspectives" not in idle_in_blocks(ModelConfig(**SIZES, **kind)) for kind in KINDS.values())


# --- from trained weights ------------------------------------------------------------------------------------------

ONE = dataclasses.replace(MODEL, dropout=0.0, binary_embedding=False)
TEXT = torch.randint(256, (3, 33), generator=torch.Generator().manual_seed(0))


def several(config: ModelConfig, **changes) -> ModelConfig:
    return dataclasses.replace(config, perspectives=P, **changes)


@pytest.fixture
def dense(make_run):
    return make_run("dense", ONE.twin(), steps=30, lr=1e-2)


@pytest.mark.parametrize(
    "config", [ONE.twin(), ONE, dataclasses.replace(ONE, shared_neurons=True)], ids=["dense", "spike-driven", "shared"]
)
def test_a_trained_dense_model_begins_as_what_it_becomes_with_one_perspective(dense, config):
    models = [SpikeGPT(config, init=False), SpikeGPT(several(config), init=False)]
    for model in models:
        start_from(model, dense, TEXT)
        anneal(model.train(), 0.0)
    with torch.no_grad():
        one, more = (model(TEXT).logits for model in models)
    assert (one - more).abs().max() <= 1e-4 * one.abs().max()


@pytest.mark.slow
def test_a_run_is_trained_measured_and_taken_over(make_run, tmp_path, cache):
    base = make_run("base", ONE, steps=10)
    run, config = tmp_path / "run", several(ONE)
    training.train(config, dataclasses.replace(TRAIN, lr=1e-2), run, start=base, cache=cache, quiet=True)
    model, _ = load_model(run)
    mixes = model.blocks[0].att.time_mix_k
    assert model.config.perspectives == P and not torch.equal(mixes[0], mixes[1])
    evaluated = evaluate_run(run, limit=256, cache=cache)["stream"]
    assert all(0 <= rate <= 1 for rate in evaluated["firing_rates"].values())
    (measured,) = measure_runs([run], limit=256, profiles=[], cache=cache)
    assert measured.firing_rate == evaluated["firing_rate"]
    # those that are there stay as many
    with pytest.raises(SpikegptError, match="are of perspectives 3, which --perspectives cannot change to 2"):
        check_shape(dataclasses.replace(config, perspectives=2), run)
    again = SpikeGPT(model.config, init=False).eval()
    start_from(again, run, TEXT)
    assert torch.equal(again(TEXT).logits, model(TEXT).logits)


def test_a_run_that_was_broken_off_ends_as_the_unbroken_one(dense, monkeypatch, tmp_path, cache):
    model, changes = several(ONE.twin(), dropout=0.1), {"steps": 6, "save_every": 2, "sample_every": 0}
    options = dataclasses.replace(TRAIN, carry_state=True, **changes)
    training.train(model, options, tmp_path / "whole", start=dense, cache=cache, quiet=True)
    break_off(monkeypatch, tmp_path / "broken", cache, 3, model=model, start=dense, carry_state=True, **changes)
    training.resume(tmp_path / "broken", cache=cache, quiet=True)
    assert weights_of(tmp_path / "broken") == weights_of(tmp_path / "whole")


def test_only_the_auto_classes_have_a_place_for_them(make_run, tmp_path):
    run = make_run("dense", several(ONE.twin()), steps=2)
    for layout in ("pth", "huggingface"):
        with pytest.raises(SpikegptError, match=f"layout '{layout}' has one mix of tokens for each product"):
            export_weights(run, tmp_path / layout, layout)
    export_weights(run, tmp_path / "exported", "auto")
    import_weights(tmp_path / "exported", tmp_path / "again")
    (model, _), (again, _) = load_model(run), load_model(tmp_path / "again")
    assert again.config == model.config and torch.equal(again(TEXT).logits, model(TEXT).logits)


def test_one_process_makes_several_perspectives_of_one(make_run):
    run = make_run("dense", ONE.twin(), steps=2)
    with pytest.raises(SpikegptError, match="has --perspectives 1, wanted is 3: one process converts weights"):
        make_sharded(several(ONE.twin()), latest_checkpoint(run), None, None)
