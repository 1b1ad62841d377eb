"""Runs measured and set side by side: the same text, the right twin, honest claims, reports whole or absent."""

import dataclasses
import json
import shutil

import pytest
import torch
from runs import MODEL, TRAIN

from neuromorphic import OpCounter, estimate, load_profile
from neuromorphic.report.derived import twin_of
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.evaluate.perplexity import evaluate_stream
from spikegpt.evaluate.runs import evaluate_run, read_text
from spikegpt.measure.context import measure_context
from spikegpt.measure.context_folder import context_folder, write_context
from spikegpt.measure.runs import cached_per_token, claims_of, measure_model, measure_runs, neuron_places, report_folder
from spikegpt.measure.twins import find_twin, make_twin
from spikegpt.model.network import SpikeGPT
from spikegpt.train.trainer import train

TOKENS = 300
DENSE = MODEL.twin()
PUBLISHED = ModelConfig(n_layer=1, n_embd=16, ctx_len=16, spiking="output")


def measure(*runs, cache, **options):
    profiles = [load_profile(name) for name in ("horowitz45-fp32", "loihi1-presilicon")]
    return measure_runs(runs, limit=TOKENS, profiles=profiles, cache=cache, **options)


def test_a_measurement_agrees_with_the_evaluation(trained, cache):
    (measured,) = measure(trained, cache=cache)
    evaluated = evaluate_run(trained, limit=TOKENS, cache=cache)["stream"]
    assert measured.bits_per_byte == evaluated["bits_per_byte"]
    assert measured.firing_rate == evaluated["firing_rate"]
    assert measured.tokens == measured.text_bytes == TOKENS - 1
    assert (
        measured.firing["layers"]["blocks.0.att.key_neuron"]["firing_rate"]
        == evaluated["firing_rates"]["blocks.0.att.key_neuron"]
    )


def test_a_pupil_is_told_from_who_learned_alone(make_run, trained, cache):
    runs = trained, make_run("pupil", steps=1, teacher=str(trained)), make_run("own", steps=1, self_teacher=1.0)
    notes = [measured.notes[1:] for measured in measure(*runs, cache=cache)]
    assert notes == [(), (f"taught by {trained.name}",), ("taught by itself without its neurons",)]


PLACES = {
    "input": {
        "blocks.0.att.key_neuron": ("time mix", "att key", 0),
        "blocks.3.ffn.value_neuron": ("channel mix", "ffn value", 3),
        "head_neuron": ("outside the blocks", "head", None),
    },
    "output": {
        "blocks.3.time_mix_neuron": ("time mix", "time mix", 3),
        "blocks.2.channel_mix_neuron": ("channel mix", "channel mix", 2),
        "emb": ("outside the blocks", "emb", None),
    },
}


@pytest.mark.parametrize("spiking", PLACES)
def test_a_report_is_told_in_which_half_of_which_block_a_layer_stands(spiking):
    model = SpikeGPT(ModelConfig(n_layer=4, n_embd=8, spiking=spiking, spiking_head=True))
    assert neuron_places(model, PLACES[spiking]) == PLACES[spiking]


def test_a_report_is_told_of_every_layer_and_how_spikes_enter(trained, cache):
    (measured,) = measure(trained, cache=cache)
    assert list(measured.wording.places) == list(measured.firing["layers"])
    assert {place.group for place in measured.wording.places.values()} == {"time mix", "channel mix"}
    assert measured.wording.block == "spikes into every product"
    assert "wording" not in measured.to_dict()


def test_dense_operations_are_13_d_squared_per_layer_and_the_head(trained, cache):
    (measured,) = measure(trained, cache=cache)
    assert sum(layer.dense_ops for layer in measured.layers) == 2 * 13 * 16**2 + 16 * 256
    assert [layer.module for layer in measured.layers if layer.idealised_acs is None] == ["head"]
    assert measured.layers[0].idealised_acs == pytest.approx(16**2 * measured.firing_rate)
    assert measured.per_token["decode"]["dense_ops"] == measured.per_token["prefill"]["dense_ops"]
    assert measured.uncounted == ()


def test_the_published_block_saves_nothing_as_built():
    model = SpikeGPT(PUBLISHED)
    torch.nn.init.normal_(model.blocks[0].att.output.weight, std=3)
    measured = measure_model(
        model.eval(), ByteTokenizer(), ByteTokenizer().encode(b"some text, " * 20), name="m", source="here"
    )
    assert measured.firing_rate > 0
    claims = claims_of(measured)
    assert claims.as_built_ratio == 1
    assert claims.idealised_ratio == pytest.approx(4.5 / (0.9 * measured.firing_rate))
    assert round(claims.per_projection_ratio, 1) == 33.3 and round(claims.total_ratio, 2) == 32.15


def test_the_spike_driven_block_saves_what_its_spikes_do_not_touch(trained, cache):
    (measured,) = measure(trained, cache=cache)
    blocks = [layer for layer in measured.layers if layer.module != "head"]
    assert all(layer.is_spike_driven for layer in blocks)
    acs, dense = sum(layer.effective_acs + layer.unit_acs for layer in blocks), sum(layer.dense_ops for layer in blocks)
    claims = claims_of(measured)
    assert claims.as_built_ratio == pytest.approx(4.5 * dense / (0.9 * acs))
    assert "14 of the 14 matrix products of its blocks read spikes" in claims.sentence


def test_a_silent_model_has_no_idealised_ratio_to_divide_by():
    model = SpikeGPT(PUBLISHED).eval()
    measured = measure_model(model, ByteTokenizer(), ByteTokenizer().encode(b"text" * 9), name="m", source="here")
    assert measured.firing_rate == 0
    claims = claims_of(measured)
    assert (claims.idealised_ratio, claims.as_built_ratio) == (float("inf"), 1.0)


def test_a_dense_model_makes_no_claim(make_run, cache):
    (measured,) = measure(make_run(model=DENSE), cache=cache)
    assert measured.firing_rate is None and measured.firing is None and measured.rasters == ()
    assert claims_of(measured) is None


def test_the_raster_reads_the_prompt(trained, cache):
    (measured,) = measure(trained, cache=cache, prompt="ab\n")
    assert [raster.layer for raster in measured.rasters][:2] == [
        "blocks.0.att.output_neuron",
        "blocks.0.ffn.value_neuron",
    ]
    assert measured.rasters[0].prompt == ("a", "b", "\n")
    with pytest.raises(SpikegptError, match="prompt of the raster is empty"):
        measure(trained, cache=cache, prompt="")


@pytest.mark.parametrize("shared_neurons", [False, True])
def test_the_twin_is_found_by_what_it_is_and_not_by_its_name(make_run, shared_neurons):
    run = make_run("spiking", model=dataclasses.replace(MODEL, shared_neurons=shared_neurons))
    make_run("other-seed", model=DENSE, seed=1)
    make_run("other-size", model=dataclasses.replace(DENSE, n_embd=8))
    assert find_twin(run) is None
    twin = make_run("whatever", model=DENSE, log_every=2)
    assert find_twin(run) == twin.resolve()


@pytest.mark.parametrize("taught", [{"self_teacher": 1.0}, {"self_teacher": 2.0, "teacher_weight": 0.9}])
def test_the_twin_of_a_run_that_teaches_itself_learns_from_the_text_alone(make_run, cache, taught):
    run = make_run("spiking", **taught)
    twin = make_run("whatever", model=DENSE)
    assert find_twin(run) == twin.resolve()
    shutil.rmtree(twin)
    made = json.loads((make_twin(run, cache=cache, quiet=True) / "config.json").read_text())
    assert made["train"]["self_teacher"] == 0
    assert find_twin(run) == run.resolve().parent / "spiking-twin"


def test_a_missing_twin_is_trained_and_an_unfinished_one_is_finished(make_run, cache):
    run = make_run("spiking")
    twin = make_twin(run, cache=cache, quiet=True)
    assert twin.name == "spiking-twin" and (twin / "checkpoints" / "step-00000012").is_dir()
    assert make_twin(run, cache=cache, quiet=True) == twin
    for file in (twin / "checkpoints" / "step-00000012").iterdir():
        file.unlink()
    make_twin(run, cache=cache, quiet=True)
    assert (twin / "checkpoints" / "step-00000012" / "manifest.json").is_file()


def test_the_twin_of_a_converted_run_goes_on_from_the_same_dense_weights(make_run, tmp_path, cache):
    dense = make_run("dense", DENSE)
    converted = dataclasses.replace(DENSE, spiking="input", neuron=None)
    train(converted, dataclasses.replace(TRAIN, anneal=0.5), tmp_path / "run", start=dense, cache=cache)
    assert find_twin(tmp_path / "run") is None
    twin = make_twin(tmp_path / "run", cache=cache, quiet=True)
    assert json.loads((twin / "config.json").read_text())["started_from"] == str(dense)
    assert find_twin(tmp_path / "run") == twin


def test_a_run_that_began_with_spiking_weights_has_no_twin(make_run, tmp_path, cache, trained):
    train(MODEL, TRAIN, tmp_path / "run", start=trained, cache=cache, quiet=True)
    with pytest.raises(
        SpikegptError, match=r"began with the spiking weights of .*trained, which have no dense twin; name a run"
    ):
        make_twin(tmp_path / "run", cache=cache)


def test_a_dense_run_has_no_twin(make_run):
    with pytest.raises(SpikegptError, match="is dense; --twin needs a spiking run"):
        make_twin(make_run(model=DENSE))


def test_runs_on_different_texts_are_not_compared(make_run, tmp_path, cache, trained):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    other = make_run("other", data=(str(text),))
    with pytest.raises(SpikegptError, match=r"different test texts.*--file"):
        measure(trained, other, cache=cache)
    first, second = measure(trained, other, cache=cache, file=text)
    assert first.text == second.text == str(text)


def test_an_empty_text_is_refused(trained, tmp_path, cache):
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(SpikegptError, match=r"empty.txt has 0 token\(s\)"):
        measure(trained, cache=cache, file=empty)


def test_no_run_is_refused(cache):
    with pytest.raises(SpikegptError, match="no run given"):
        measure(cache=cache)


def test_a_measurement_is_plain_values(trained, cache):
    (measured,) = measure(trained, cache=cache)
    assert json.loads(json.dumps(measured.to_dict()))["name"] == "trained"


def test_the_quantised_twin_does_every_product(trained, make_run, cache):
    dense = make_run("dense", DENSE)
    spiking, twin, quantised = measure(trained, dense, cache=cache, quantised_twin=True)
    assert quantised.name == f"{spiking.name}, quantised" and quantised.block == "quantised"
    assert quantised.bits_per_byte == spiking.bits_per_byte and quantised.firing_rate is None
    assert twin_of(spiking, [spiking, quantised]) is None
    assert twin_of(spiking, [spiking, quantised, twin]) is twin
    reads_spikes = {layer.module for layer in spiking.layers if layer.is_spike_driven}
    assert len(reads_spikes) == 7 * 2
    for own, other in zip(quantised.layers, spiking.layers, strict=True):
        # the head reads real numbers in both, and skips their zeros in both
        assert own.built_macs == (own.dense_ops if own.module in reads_spikes else other.built_macs)
        assert own.built_acs == 0 and own.dense_ops == other.dense_ops
    # up to 16 unit spikes of a hidden neuron: five bits and a sign, if one emitted that many
    assert any(layer.alphabet.startswith("integers of ") for layer in quantised.layers)
    terms = {term["name"]: term for term in quantised.energy["decode"]["horowitz45-fp32"]["terms"]}
    assert terms["mac"]["count"] > 0 and "ac" not in terms
    # one by one every weight of each product is fetched, for each of the tokens
    fetched = sum(layer.dense_ops for layer in quantised.layers if layer.module in reads_spikes)
    assert terms["weights"]["count"] >= fetched


def test_attention_is_no_twin_and_its_state_grows(trained, make_run, cache):
    attention = make_run("attention", dataclasses.replace(DENSE, mixer="attention", n_head=2), steps=1)
    baseline, spiking = measure(attention, trained, cache=cache)
    assert twin_of(spiking, [baseline, spiking]) is None
    assert (baseline.state_tokens, spiking.state_tokens) == (16, None)
    # full, it has a key and a value of each channel, layer and token; the newest is no state yet
    assert baseline.state_elements in (2 * 2 * 16 * 16, 2 * 2 * 16 * 15)


@pytest.mark.parametrize("sizes", [(1, 8), (3, 20), (2, 15)])
def test_a_transformers_cache_is_counted(sizes):
    layers, width = sizes
    config = ModelConfig(n_layer=layers, n_embd=width, spiking="none")
    # a key and a value of each channel and layer; heads have an even number of channels
    assert cached_per_token(config) == 2 * layers * (width + width % 2)


def test_what_context_found_before_is_in_the_report(trained, cache):
    points = measure_context([trained], lengths=(8,), texts=1, cache=cache)
    write_context(context_folder(trained), points, made={})
    try:
        assert measure_runs([trained], limit=20, cache=cache)[0].context == tuple(points)
        (context_folder(trained) / "context.json").write_text("{")
        with pytest.raises(SpikegptError, match="measure them anew with spikegpt context"):
            measure_runs([trained], limit=20, cache=cache)
    finally:
        shutil.rmtree(context_folder(trained))


def test_the_report_of_a_checkpoint_lies_in_its_run(trained):
    assert report_folder(trained) == trained / "report"
    assert report_folder(trained / "checkpoints" / "step-00000012") == trained.resolve() / "report"


def test_a_report_has_the_energies_that_an_estimate_has(trained, cache):
    (measured,) = measure(trained, cache=cache)
    model, tokenizer = load_model(trained)
    text, _ = read_text(trained, tokenizer, limit=TOKENS, cache=cache)
    with OpCounter(model) as counter, counter.phase("prefill"):
        evaluate_stream(model, text, tokenizer)
    found = estimate(counter.tally(), "loihi1-presilicon", "prefill")
    told = measured.energy["prefill"]["loihi1-presilicon"]
    assert (told["central_pj"], told["terms"]) == (found.central_pj, [dataclasses.asdict(term) for term in found.terms])
    # its neurons are integer ones: a spike of n is n events there, and one that carries n on an ordinary processor
    sent = {name: energy["integer_spikes"] for name, energy in measured.energy["prefill"].items()}
    assert sent == {"horowitz45-fp32": "graded", "loihi1-presilicon": "units"}
    (emitted,) = (term["count"] for term in told["terms"] if term["name"] == "event")
    counts = measured.per_token["prefill"]
    assert emitted == round(measured.tokens * (counts["events_out"] + counts.get("repeated_events", 0)))
