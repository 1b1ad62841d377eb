"""The terms of the loss: each worked out by hand, each logged by its name, and what each does to a training."""

import copy
import dataclasses
import json
import math

import pytest
import torch
from golden import GOLDEN
from runs import MODEL, TRAIN, weights_of
from torch import Tensor
from torch.nn import functional as F

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import TrainConfig
from spikegpt.neuron import LIF
from spikegpt.train import language_modelling, loop
from spikegpt.train import trainer as training
from spikegpt.train.convert import anneal
from spikegpt.train.journal import read_metrics
from spikegpt.train.language_modelling import LanguageModelling
from spikegpt.train.losses import Reading, add_up, akl_share, distillation, make_terms, synop_share, synop_weight

READING = Reading(
    step=50,
    cross_entropy=torch.tensor(2.0),
    logits=torch.tensor([[[0.0, 3.0]]]),
    spikes={"emb": torch.ones(1, 1, 4), "a": torch.tensor([[[0.0, 2.0, -1.0, 0.0]]])},
    features=[torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[1.0, -1.0]]])],
    taught=torch.tensor([[[0.0, 3.0]]]),
    taught_features=[torch.tensor([[[5.0, 3.0]]]), torch.tensor([[[7.0, 5.0]]])],
)
ALL = {"l2wrap": 0.5, "firing_rate_target": 0.3, "firing_rate_weight": 2.0, "synop_budget": 0.2, "synop_warmup": 0.1}


def test_each_configured_term_is_worked_out_by_hand():
    config = TrainConfig(steps=100, teacher="a run", teacher_weight=0.25, teacher_features=0.5, **ALL)
    values = {term.name: term(READING).item() for term in make_terms(config, {"a": 10}, emits_spikes=True)}
    assert values == pytest.approx(
        {
            "cross_entropy": 0.75 * 2,
            # the teacher says the same
            "distillation": 0.0,
            # of two channels a layer norm leaves -1 and 1: opposite in the first block, alike in the second
            "features": 0.5 * (2**2 + 0) / 2,
            "l2wrap": 0.5 / 2 * 3**2,
            # half of a's neurons fire; the binary embedding does not count
            "firing_rate": 2 * (0.5 - 0.3) ** 2,
            "synop_budget": 5 * (0.5 - 0.2),
        },
        abs=1e-4,
    )


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"synop_budget": 0.0}, ["cross_entropy"]),
        ({}, ["cross_entropy", "synop_budget"]),
        ({"l2wrap": 1e-4, "teacher": "a run"}, ["cross_entropy", "distillation", "l2wrap", "synop_budget"]),
        ({"firing_rate_target": 0.1}, ["cross_entropy", "firing_rate", "synop_budget"]),
        (
            {"teacher": "a run", "teacher_features": 1.0, "synop_budget": 0.0},
            ["cross_entropy", "distillation", "features"],
        ),
        ({"self_teacher": 1.0}, ["cross_entropy", "distillation", "without_neurons", "synop_budget"]),
        ({"commitment": 1.0}, ["cross_entropy", "commitment", "synop_budget"]),
    ],
)
def test_a_configuration_makes_the_terms_that_it_names(changes, names):
    terms = make_terms(TrainConfig(**changes), {"a": 10}, emits_spikes=True, commits=True)
    assert [term.name for term in terms] == names


def test_neurons_that_cannot_commit_have_no_such_term():
    terms = make_terms(TrainConfig(commitment=1.0, synop_budget=0.0), {}, emits_spikes=True, commits=False)
    assert [term.name for term in terms] == ["cross_entropy"]


def test_the_dense_twin_has_no_rates_no_budget_and_no_neurons_to_leave_out():
    config = TrainConfig(firing_rate_target=0.1, self_teacher=1.0)
    assert [term.name for term in make_terms(config, {}, emits_spikes=False)] == ["cross_entropy"]


@pytest.mark.parametrize("grad_accumulation", [1, 2])
def test_every_term_is_logged_and_their_sum_is_what_was_differentiated(make_run, monkeypatch, grad_accumulation):
    differentiated = []

    def watched(terms: dict[str, Tensor]) -> Tensor:
        differentiated.append(add_up(terms))
        return differentiated[-1]

    monkeypatch.setattr(loop, "add_up", watched)
    teacher = make_run("teacher", model=MODEL.twin(), steps=1)
    differentiated.clear()
    changes = {**ALL, "teacher": str(teacher), "grad_accumulation": grad_accumulation, "log_every": 1}
    lines = [line for line in read_metrics(make_run("pupil", **changes)) if line["kind"] == "train"]
    assert {tuple(line["losses"]) for line in lines} == {
        ("cross_entropy", "distillation", "l2wrap", "firing_rate", "synop_budget")
    }
    wanted = torch.stack(differentiated).reshape(TRAIN.steps, grad_accumulation).mean(dim=1)
    assert [sum(line["losses"].values()) for line in lines] == pytest.approx(wanted.tolist(), rel=1e-6)


def test_the_cross_entropy_of_the_text_is_logged_whole_where_a_teacher_takes_half_of_the_loss(make_run):
    teacher = make_run("teacher", model=MODEL.twin(), steps=1)
    line = read_metrics(make_run("pupil", teacher=str(teacher), teacher_weight=0.5))[0]
    assert line["losses"]["cross_entropy"] == pytest.approx(line["loss"] / 2, rel=1e-6)


def test_a_model_teaches_itself_in_two_passes_over_one_batch(make_run, monkeypatch):
    """The pass without neurons learns the text, the one with them the text and what the other predicts."""
    plain, checked = LanguageModelling.forward, []

    def forward(self: LanguageModelling, step: int):
        model = copy.deepcopy(self.bare_model)
        ids, targets = copy.deepcopy(self.sampler).next()
        found = plain(self, step)
        logits = {}
        for share in (0.0, 1.0):
            anneal(model, share)
            logits[share] = model(ids).logits
        text = {share: F.cross_entropy(out.flatten(0, 1), targets.flatten()) for share, out in logits.items()}
        wanted = {
            "cross_entropy": 0.75 * text[1.0],
            "distillation": 0.25 * distillation(logits[1.0], logits[0.0].detach(), "reverse"),
            "without_neurons": 2.0 * text[0.0],
        }
        torch.testing.assert_close(found.terms, wanted)
        torch.testing.assert_close(found.cross_entropy, text[1.0])
        gradients = [
            torch.autograd.grad(add_up(terms), list(of.parameters()), retain_graph=True, allow_unused=True)
            for terms, of in ((found.terms, self.bare_model), (wanted, model))
        ]
        torch.testing.assert_close(*gradients)
        checked.append(step)
        return found

    monkeypatch.setattr(LanguageModelling, "forward", forward)
    changes = {"self_teacher": 2.0, "teacher_weight": 0.25, "teacher_loss": "reverse", "synop_budget": 0.0}
    make_run(model=dataclasses.replace(MODEL, dropout=0.0), steps=2, precision="no", **changes)
    assert checked == [0, 1]


@pytest.mark.parametrize("changes", [{}, {"self_teacher": 1.0}])
def test_currents_are_drawn_to_what_their_spikes_stand_for(make_run, monkeypatch, changes):
    """Once per layer and batch, in the pass with neurons; nothing is left of an evaluation."""
    plain, checked = LanguageModelling.forward, []

    def forward(self: LanguageModelling, step: int):
        model, (ids, _) = copy.deepcopy(self.bare_model), copy.deepcopy(self.sampler).next()
        found, errors = plain(self, step), []
        for neuron in (module for module in model.modules() if isinstance(module, LIF)):
            neuron._forward_hooks.clear()
            neuron.register_forward_hook(lambda neuron, inputs, _: errors.append(neuron.commitment_error(inputs[0])))
        anneal(model, 1.0)
        model(ids)
        wanted = 0.5 * torch.stack(errors).mean()
        torch.testing.assert_close(found.terms["commitment"], wanted)
        assert 0 < wanted < 0.5
        learned = [name for name, _ in model.named_parameters() if name.endswith("ln1.weight")]
        of = [
            torch.autograd.grad(term, [network.get_parameter(name) for name in learned], retain_graph=True)
            for term, network in ((found.terms["commitment"], self.bare_model), (wanted, model))
        ]
        torch.testing.assert_close(*of)
        assert of[0][0].any()
        checked.append(len(errors))
        return found

    monkeypatch.setattr(LanguageModelling, "forward", forward)
    model = dataclasses.replace(MODEL, dropout=0.0)
    run = make_run(model=model, steps=2, eval_every=1, precision="no", commitment=0.5, **changes)
    assert checked == [8 * model.n_layer] * 2
    assert all("commitment" in line["losses"] for line in read_metrics(run) if line["kind"] == "train")


def test_a_rehearsal_leaves_no_commitment_behind(make_run, monkeypatch):
    """It reads the model as a step does, and its graph is gone when the next step is learned from."""
    plain = LanguageModelling.forward

    def forward(self: LanguageModelling, step: int):
        self.rehearse()
        return plain(self, step)

    wanted = weights_of(make_run("plain", steps=2, commitment=1.0))
    monkeypatch.setattr(LanguageModelling, "forward", forward)
    assert weights_of(make_run("rehearsed", steps=2, commitment=1.0)) == wanted


def test_neurons_commit_before_they_are_annealed_in(make_run):
    run = make_run(steps=3, log_every=1, anneal=0.7, commitment=1.0)
    assert all(line["losses"]["commitment"] > 0 for line in read_metrics(run) if line["kind"] == "train")


class Toy:
    name = "toy"

    def __call__(self, reading: Reading) -> Tensor:
        return 0.25 * reading.logits.square().mean()


def test_another_term_is_one_class_and_one_line(make_run, monkeypatch):
    monkeypatch.setattr(language_modelling, "make_terms", lambda *a, **options: [*make_terms(*a, **options), Toy()])
    line = read_metrics(make_run())[0]
    assert list(line["losses"]) == ["cross_entropy", "synop_budget", "toy"] and line["losses"]["toy"] > 0


@pytest.mark.slow
def test_firing_rate_target_pulls_the_rate(make_run):
    rates = [
        read_metrics(make_run(str(t), steps=80, lr=1e-2, firing_rate_target=t, firing_rate_weight=50))[-1][
            "firing_rate"
        ]
        for t in (0.05, 0.5)
    ]
    assert rates[0] < 0.2 < 0.35 < rates[1]


def test_the_share_of_synaptic_operations_is_worked_out_by_hand():
    spikes = {
        "a": torch.tensor([[[0.0, 2.0, -1.0, 0.0]]]),
        "b": torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        "silent": torch.zeros(1, 1, 4),
    }
    # half of a's neurons fire into 300 weights, a quarter of b's into 100
    assert synop_share(spikes, {"a": 300, "b": 100}).item() == pytest.approx((0.5 * 300 + 0.25 * 100) / 400)


@pytest.mark.slow
def test_the_budget_silences_neurons(make_run):
    rates = {}
    for budget in (0.0, 0.02):
        run = make_run(f"budget{budget}", steps=40, synop_budget=budget, synop_weight=10.0, synop_warmup=0.1, lr=1e-2)
        rates[budget] = [line["firing_rate"] for line in read_metrics(run) if line["kind"] == "valid"][-1]
    assert rates[0.02] < 0.7 * rates[0.0]


@pytest.mark.parametrize("budget, weight", [(0.05, 20.0), (0.1, 10.0), (0.2, 5.0), (0.4, 5.0)])
def test_an_excess_over_a_small_budget_counts_in_proportion(budget, weight):
    assert synop_weight(TrainConfig(synop_budget=budget)) == pytest.approx(weight)


def test_distillation_is_the_divergence_worked_out_by_hand():
    ours, theirs = torch.tensor([[[0.0, 0.0]]]), torch.log(torch.tensor([[[0.25, 0.75]]]))
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert distillation(ours, theirs).item() == pytest.approx(wanted, rel=1e-6)
    assert distillation(theirs, theirs).item() == pytest.approx(0.0, abs=1e-7)
    reverse = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert distillation(ours, theirs, "reverse").item() == pytest.approx(reverse, rel=1e-6)
    assert distillation(ours, theirs, "both").item() == pytest.approx(0.2 * wanted + 0.8 * reverse, rel=1e-6)
    # head: the teacher's 0.75, which is one gap of two equal ones
    assert distillation(ours, theirs, "akl").item() == pytest.approx((wanted + reverse) / 2, rel=1e-6)


def test_adaptive_kl_is_the_public_codes_number_by_number():
    golden = json.loads((GOLDEN / "akl_a.json").read_text())
    given, wanted = golden["input"], golden["expected"]
    theirs, ours = (torch.tensor(given[name], dtype=torch.float64) for name in ("teacher_logits", "student_logits"))
    log_p, log_q = (logits.log_softmax(dim=-1) for logits in (theirs, ours))
    shares = torch.tensor([token["weights"][0] for token in wanted["tokens"]], dtype=torch.float64)
    torch.testing.assert_close(akl_share(log_q, log_p, given["mu"]), shares, rtol=1e-9, atol=1e-9)
    # the last token has no label
    logits = ours[:-1].requires_grad_()
    loss = distillation(logits, theirs[:-1], "akl")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(wanted["loss"], rel=1e-6)
    torch.testing.assert_close(gradient, torch.tensor(wanted["gradient"][:-1]).double(), rtol=1e-5, atol=1e-6)


def test_adaptive_kl_of_equal_predictions_is_nothing():
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    loss = distillation(logits, logits.detach(), "akl")
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-7) and logits.grad.abs().max() < 1e-6


def test_only_a_teacher_of_the_same_shape_teaches_its_stream(make_run):
    teacher = make_run("teacher", model=dataclasses.replace(MODEL.twin(), n_embd=8), steps=1)
    with pytest.raises(SpikegptError, match=r"teacher has n_embd 8, the model 16: .* leave out --teacher-features"):
        make_run("pupil", teacher=str(teacher), teacher_features=1.0)


@pytest.mark.slow
def test_a_pupil_comes_near_its_teachers_stream(make_run):
    teacher = make_run("teacher", model=MODEL.twin(), steps=120, lr=1e-2)
    distances = {}
    for weight in (1e-9, 3.0):
        run = make_run(f"pupil{weight}", steps=40, lr=1e-2, teacher=str(teacher), teacher_features=weight)
        last = [line for line in read_metrics(run) if line["kind"] == "train"][-1]
        distances[weight] = last["losses"]["features"] / weight
    assert distances[3.0] < 0.7 * distances[1e-9]


@pytest.mark.slow
def test_a_pupil_learns_what_its_teacher_predicts(make_run):
    teacher = make_run("teacher", model=MODEL.twin(), steps=120, lr=1e-2)
    alone = make_run("alone", steps=40, lr=1e-2)
    pupil = make_run("pupil", steps=40, lr=1e-2, teacher=str(teacher), teacher_weight=1.0)
    ids = torch.randint(97, 122, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taught, *others = (load_model(run)[0](ids).logits for run in (teacher, alone, pupil))
    assert distillation(others[1], taught) < distillation(others[0], taught)


@pytest.mark.slow
def test_a_resumed_pupil_ends_as_an_unbroken_one(make_run, cache):
    teacher = str(make_run("teacher", model=MODEL.twin()))
    whole = make_run("whole", teacher=teacher)
    broken = make_run("broken", teacher=teacher)
    for file in (broken / "checkpoints" / "step-00000012").iterdir():
        file.unlink()
    training.resume(broken, cache=cache, quiet=True)
    assert weights_of(broken) == weights_of(whole)


def test_a_teacher_with_another_tokenizer_is_refused(make_run):
    teacher = make_run("teacher", model=MODEL.twin(), tokenizer="char")
    with pytest.raises(SpikegptError, match="has another tokenizer"):
        make_run("pupil", teacher=str(teacher))
    with pytest.raises(SpikegptError, match="nowhere is not the folder of a run"):
        make_run("orphan", teacher="nowhere")
