"""`spikegpt simulate`: the figures of a run in whole numbers, and what their counts cost."""

import json

import numpy as np
import pytest
import torch
from runs import MODEL

from neuromorphic import OpCounter, estimate
from spikegpt import load_model
from spikegpt.chip.making import make_program
from spikegpt.chip.reader import IntegerReader
from spikegpt.chip.targets import target_of
from spikegpt.cli.verbs import main
from spikegpt.evaluate.runs import read_text
from spikegpt.measure.fixed_point import CALIBRATION_TOKENS
from spikegpt.measure.integer_counts import tally_of


def test_bits_are_those_of_the_logits(trained, tmp_path, cache, capsys):
    text = tmp_path / "text.txt"
    text.write_text("It was the season of Light, it was the season of Darkness")
    assert main(["simulate", str(trained), "--file", str(text), "--json", "--threads", "1", "--cache", str(cache)]) == 0
    result = json.loads(capsys.readouterr().out)
    model, tokenizer = load_model(trained)
    tokens = tokenizer.encode(text.read_bytes())
    begun = read_text(trained, tokenizer, split="train", limit=CALIBRATION_TOKENS, cache=cache)[0]
    reading = IntegerReader(make_program(model, begun, target_of("generic"))).read(tokens[:-1])
    likely = reading.logits.log_softmax(-1)[np.arange(len(tokens) - 1), tokens[1:].astype(int)]
    assert result["bits_per_byte"] == pytest.approx(-likely.mean().item() / np.log(2))
    assert result["tax"] == pytest.approx(result["bits_per_byte"] / result["float_bits_per_byte"] - 1)
    assert 0 < result["spikes_that_differ"] < 0.2 and result["saturations"] == 0


def test_a_hostile_prompt_saturates_and_that_is_said(trained, tmp_path, cache, capsys):
    """Ranges are those of the training text, whatever is read; such letters are far from it."""
    hostile = tmp_path / "hostile.txt"
    hostile.write_text("".join(map(chr, range(0x400, 0x800, 3))), encoding="utf-8")
    words = ["simulate", str(trained), "--file", str(hostile), "--headroom-bits", "0", "--cache", str(cache)]
    assert main([*words, "--threads", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    (count,) = (int(words[1].replace(",", "")) for words in lines if words[0] == "saturations")
    assert count > 0 and any(words[0].startswith("blocks.") for words in lines)


def test_table_says_target_saturations_and_what_does_not_fit(trained, cache, capsys):
    words = [
        "simulate",
        str(trained),
        "--target",
        "loihi2",
        "--tokens",
        "300",
        "--headroom-bits",
        "0",
        "--threads",
        "1",
    ]
    assert main([*words, "--state-bits", "12", "--cache", str(cache)]) == 0
    printed = capsys.readouterr().out
    assert "one exponent per matrix; states 12 bits, rounded to 0" in printed
    assert "saturations" in printed and "of 128" in printed and "reads numbers of 12 bits" in printed
    assert "> " in printed.splitlines()[-1] and "uJ per token" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weight-bits", "16"], "--weight-bits"),
        (["--state-bits", "64"], "--state-bits"),
        (["--target", "truenorth"], "target"),
        (["--prices", "nobody"], "no price profile 'nobody'"),
    ],
)
def test_bad_input_is_one_line(trained, words, said, capsys):
    assert main(["simulate", str(trained), *words]) != 0
    assert said in capsys.readouterr().err


def test_dense_run_is_refused(make_run, capsys):
    dense = make_run(model=MODEL.twin(), steps=1)
    assert main(["simulate", str(dense)]) == 1
    assert "spiking none: its products read real numbers" in capsys.readouterr().err


def test_counts_of_products_are_those_of_the_counter(trained):
    """With the weights that the mantissas stand for, the counter sees the same spikes meet the same weights."""
    model, tokenizer = load_model(trained)
    tokens = tokenizer.encode(b"it was the spring of hope")
    program = make_program(model, tokens, target_of("generic"))
    reader = IntegerReader(program)
    reading = reader.read(tokens)
    product = torch.nn.Linear(MODEL.n_embd, MODEL.n_ffn, bias=False)
    with torch.no_grad():
        product.weight.copy_(torch.from_numpy(program.hidden[1].T.astype(np.float32)))
    with torch.no_grad(), OpCounter(product) as counter:
        product(torch.from_numpy(reading.spikes["blocks.1.ffn.key_neuron"].astype(np.float32))[None])
    wanted = counter.tally().total()
    found = tally_of(model.config, program, reader).total(module="blocks.1.ffn.key", kind="matmul")
    for name in ("dense_ops", "effective_ops", "nonzeros", "events_in", "weights_per_event", "fan_out", "weights_once"):
        assert getattr(found, name) == getattr(wanted, name), name
    # the counter knows the vectors that happen to be ternary
    assert found.unit_acs == wanted.unit_acs + wanted.effective_acs


def test_prices_are_of_the_widths_that_were_simulated(trained):
    model, tokenizer = load_model(trained)
    reader = IntegerReader(make_program(model, tokenizer.encode(b"hope"), target_of("generic")))
    reader.read(tokenizer.encode(b"it was the winter of despair"))
    tally = tally_of(model.config, reader.program, reader)
    neurons = sum(len(fired) for fired in reader.fired.values())
    assert tally.total().neuron_updates == reader.tokens_read * neurons
    assert estimate(tally, "loihi1-presilicon").central_pj > 0
