"""What the runs of tax.py come to, worked out by hand; and that what is compared reads as many tokens."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from benchmarks import tax
from neuromorphic import OpCounter
from spikegpt.config import ModelConfig
from spikegpt.model.network import SpikeGPT


def run(bits: float, firing: float | None = None, macs: float = 0.0, acs: float = 0.0) -> dict:
    return {"bits": bits, "firing": firing, "macs": macs, "acs": acs, "width": 192}


FOUND = {
    "twin-0": run(1.6, macs=400.0),
    "twin-1": run(2.0, macs=400.0),
    f"student-0-{tax.COMPARED}": run(1.7, 0.18, 50.0, 50.0),
    f"student-1-{tax.COMPARED}": run(2.1, 0.20, 50.0, 150.0),
    f"student-0-{tax.SMALL}": run(1.8, 0.09),
    f"student-1-{tax.SMALL}": run(2.2, 0.11),
    "healed-0": run(1.61, 0.19),
    "healed-1": run(2.03, 0.19),
    "untaught": run(1.76, 0.19),
    "converted": run(1.84, 0.19),
    "narrow-96": run(1.9, macs=25.0),
}


def test_taxes_are_of_means_over_seeds_and_gains_of_one_seed():
    found = tax.summarise(FOUND, [0, 1])
    assert found["dense_bits"] == pytest.approx(1.8)
    assert found["tax"] == pytest.approx(1.9 / 1.8 - 1)
    assert found["tax_by_seed"] == pytest.approx([0.0625, 0.05])
    assert (found["firing"], found["firing_at_0.10"]) == (pytest.approx(0.19), pytest.approx(0.10))
    assert found["tax_at_0.10"] == pytest.approx(2.0 / 1.8 - 1)
    assert found["healing_tax"] == pytest.approx(1.82 / 1.8 - 1)
    assert (found["tax_untaught"], found["tax_converted"]) == (pytest.approx(0.1), pytest.approx(0.15))
    # 100 operations lie half way from 25 to 400 in logarithms: 1.75 bits
    assert found["gain_equal_operations"] == pytest.approx(1 - 1.7 / 1.75)


def test_operations_are_all_that_is_counted_each_once():
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16, vocab_size=32, spiking="none"))
    with OpCounter(model) as counter, counter.phase("prefill"), torch.inference_mode():
        model(torch.arange(8).unsqueeze(0))
    tally = counter.tally()
    found, total, scans = tax.operations(tally), tally.total(), tally.total(kind="scan")
    assert found["macs"] + found["acs"] == pytest.approx(total.effective_ops / 8)
    assert found["state"] + found["elementwise"] == pytest.approx(sum(total.elementwise.values()) / 8)
    assert found["state"] == pytest.approx(sum(scans.elementwise.values()) / 8) and found["state"] > 0


def options(pair: bool) -> Namespace:
    return Namespace(data=["novels"], steps=2000, seeds=[3, 5], sizes=tax.SIZES["2.0M"], narrow=(96,), pair=pair)


def test_a_pair_is_the_twin_and_the_student_that_is_compared():
    (begun,) = tax.configurations(options(pair=True), Path("out"))
    assert list(begun) == ["twin-3", f"student-3-{tax.COMPARED}", "twin-5", f"student-5-{tax.COMPARED}"]
    everything, _ = tax.configurations(options(pair=False), Path("out"))
    assert begun.items() <= everything.items()
    # nothing is asked of runs that are not there
    found = {name: facts for name, facts in FOUND.items() if name.startswith("twin") or name.endswith("0.19")}
    assert tax.summarise(found, [0, 1])["tax"] == pytest.approx(1.9 / 1.8 - 1)


def test_each_run_keeps_what_was_found_of_it(tmp_path):
    for budget, bits in ((0.19, 1.7), (0.3, 1.6)):
        (tmp_path / f"student-0-{budget}.valid.json").write_text(json.dumps(run(bits)))
    found = [tax.evaluate(tmp_path / f"student-0-{budget}", [])["bits"] for budget in (0.19, 0.3)]
    assert found == [1.7, 1.6]


def test_a_student_with_what_it_begins_as_reads_as_many_tokens_as_the_twin():
    begun, healed = tax.configurations(options(pair=False), Path("out"))
    for seed in (3, 5):
        student, twin = begun[f"student-{seed}-{tax.COMPARED}"], begun[f"twin-{seed}"]
        assert student["steps"] == twin["steps"] == 2000 and student["seed"] == twin["seed"] == seed
        assert student["self_teacher"] > 0 and not {"from", "teacher"} & student.keys()
    converted = healed["converted"]
    assert begun["start"]["steps"] + converted["steps"] == begun["narrow-96"]["steps"] == 2000
    assert converted["teacher"] == converted["from"] == str((Path("out") / "start").absolute())
    assert begun["start"]["seed"] == converted["seed"] == begun["untaught"]["seed"] == 3
    assert begun["untaught"]["self_teacher"] == 0
