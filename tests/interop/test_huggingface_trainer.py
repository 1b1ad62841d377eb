"""What `Trainer` and the collators demand: accumulated gradients, evaluation, smoothing, half precision, resuming."""

import numpy as np
import pytest
import torch
import transformers
from huggingface_models import CLASSES, make, some_ids
from torch.nn import functional as F

from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.interop.huggingface import to_huggingface_tokenizer

LM, CLASSIFIER = CLASSES
each_class = pytest.mark.parametrize("kind", CLASSES, ids=["lm", "classifier"])
LENGTHS = (6, 2, 4, 3, 6, 5, 2, 4)


def examples(kind, *, varied: bool = True) -> list[dict]:
    """Texts of several lengths, some of whose labels are left out."""
    found = []
    for n, length in enumerate(LENGTHS):
        ids = some_ids(length if varied else 6, seed=n).tolist()
        labels = [-100, *ids[1:]] if kind is LM else n % 2
        found.append({"input_ids": ids, "labels": labels})
    found[3]["labels"] = [-100] * len(found[3]["input_ids"]) if kind is LM else -100
    return found


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(one["input_ids"]) for one in batch)

    def filled(values, filler):
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in values])

    labels = [one["labels"] for one in batch]
    return {
        "input_ids": filled((one["input_ids"] for one in batch), 0),
        "attention_mask": filled(([1] * len(one["input_ids"]) for one in batch), 0),
        "labels": torch.tensor(labels) if isinstance(labels[0], int) else filled(labels, -100),
    }


def trainer(model, folder, data=None, **options):
    options = {
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        **options,
    }
    others = {
        name: options.pop(name)
        for name in ("eval_dataset", "processing_class", "compute_metrics", "data_collator")
        if name in options
    }
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        report_to=[],
        use_cpu=True,
        logging_steps=1,
        max_grad_norm=1e9,
        disable_tqdm=True,
        **options,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=data, **{"data_collator": collate, **others})


def first_step(model, folder, data, **options) -> dict:
    run = trainer(model, folder, data, **options)
    run.train()
    return run.state.log_history[0]


@each_class
@pytest.mark.parametrize(("size", "steps", "varied"), [(2, 4, False), (1, 8, True)])
def test_accumulated_batches_are_one_batch(kind, size, steps, varied, tmp_path):
    data = examples(kind, varied=varied)
    whole, parts = make(kind, "none"), make(kind, "none")
    one = first_step(whole, tmp_path, data, per_device_train_batch_size=8)
    many = first_step(parts, tmp_path, data, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
    assert many["loss"] == pytest.approx(one["loss"], rel=1e-4)
    assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    for ours, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_the_loss_is_the_mean_over_all_labels(tmp_path):
    data, model = examples(LM), make(LM, "none")
    losses = [
        F.cross_entropy(
            model(torch.tensor([one["input_ids"]])).logits[0, :-1], torch.tensor(one["labels"][1:]), reduction="sum"
        )
        for one in data
    ]
    found = first_step(model, tmp_path, data, per_device_train_batch_size=1, gradient_accumulation_steps=8)
    assert found["loss"] == pytest.approx(float(sum(losses)) / sum(n - 1 for n in LENGTHS[:3] + LENGTHS[4:]), rel=1e-4)


@pytest.mark.filterwarnings("error:texts are padded on the left")
@pytest.mark.parametrize(
    ("side", "size", "steps"),
    [("left", 8, 1), ("left", 1, 8), ("right", 8, 1), ("right", 1, 8), ("right", 2, 4), ("right", 4, 2)],
)
def test_the_loss_is_the_mean_over_all_labels_whatever_the_padding(side, size, steps, tmp_path):
    found, wanted = loss_of_texts(side, size, steps, tmp_path)
    assert found == pytest.approx(wanted, rel=1e-4)


def test_first_tokens_that_weigh_in_accumulated_batches_are_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"texts are padded on the left.*set tokenizer.padding_side = 'right'"):
        loss_of_texts("left", 4, 2, tmp_path)


def loss_of_texts(side, size, steps, tmp_path) -> tuple[float, float]:
    """(loss that Trainer logs for a step over texts of several lengths, mean over all that is learned)."""
    tokenizer, model = to_huggingface_tokenizer(ByteTokenizer()), make(LM, "none", pad_token_id=256)
    model.resize_token_embeddings(256)
    texts = ["a longer text", "wow", "some words", "ab", "abc", "a text", "it", "is"]
    data = [dict(tokenizer(text)) for text in texts]
    losses = [
        F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        for ids in (torch.tensor([one["input_ids"]]) for one in data)
    ]
    tokenizer.padding_side = side
    collate = transformers.DataCollatorForLanguageModeling(tokenizer, mlm=False)
    options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "data_collator": collate}
    found = first_step(model, tmp_path, data, **options)
    return found["loss"], float(sum(losses)) / sum(len(text) - 1 for text in texts)


@pytest.mark.parametrize(("problem", "label"), [("regression", 0.5), ("multi_label_classification", [1.0, 0.0])])
def test_accumulation_of_other_problems(problem, label, tmp_path):
    labels = 1 if problem == "regression" else 2
    data = [{"input_ids": some_ids(5, seed=n), "labels": label} for n in range(8)]
    given = {"data_collator": transformers.default_data_collator, "per_device_train_batch_size": 8}
    found = [
        first_step(make(CLASSIFIER, "none", num_labels=labels, problem_type=problem), tmp_path, data, **(given | part))
        for part in ({}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4})
    ]
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-4)
    assert found[1]["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-3)


@each_class
def test_label_smoothing_is_of_the_next_token(kind, tmp_path):
    data, model = examples(kind, varied=False), make(kind, "none")
    batch = collate(data)
    logits = model(batch["input_ids"]).logits
    logits, labels = (logits[:, :-1], batch["labels"][:, 1:]) if kind is LM else (logits, batch["labels"])
    wanted = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), label_smoothing=0.1)
    found = first_step(model, tmp_path, data, per_device_train_batch_size=8, label_smoothing_factor=0.1)
    assert found["loss"] == pytest.approx(float(wanted), rel=1e-4)


@each_class
def test_evaluation_and_prediction(kind, tmp_path):
    model, data = make(kind), examples(kind, varied=False)
    seen = []

    def metrics(found):
        seen.append(found.predictions)
        return {"count": len(found.predictions)}

    run = trainer(model, tmp_path, eval_dataset=data, compute_metrics=metrics, per_device_eval_batch_size=3)
    assert np.isfinite(run.evaluate()["eval_loss"]) and run.evaluate()["eval_count"] == 8
    batch = collate(data)
    predictions = run.predict(data).predictions
    wanted = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.detach().numpy()
    np.testing.assert_allclose(predictions, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen[0], wanted, rtol=1e-4, atol=1e-5)


def test_predictions_of_several_lengths(tmp_path):
    run = trainer(make(), tmp_path, per_device_eval_batch_size=2)
    assert run.predict(examples(LM)).predictions.shape == (8, 6, 64)


@each_class
def test_the_loss_of_an_evaluation_is_finite_where_a_batch_has_no_labels(kind, tmp_path):
    run = trainer(make(kind), tmp_path, eval_dataset=examples(kind), per_device_eval_batch_size=1)
    assert np.isfinite(run.evaluate()["eval_loss"])


@pytest.mark.parametrize(("kind", "precision"), [(LM, "bf16"), (CLASSIFIER, "fp16")], ids=["bf16", "fp16"])
def test_half_precision(kind, precision, tmp_path):
    model = make(kind)
    before = [parameter.clone() for parameter in model.parameters()]
    found = first_step(model, tmp_path, examples(kind), per_device_train_batch_size=4, **{precision: True})
    assert np.isfinite(found["loss"]) and np.isfinite(found["grad_norm"])
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_a_broken_off_training_goes_on_as_the_unbroken_one(tmp_path):
    data, options = examples(LM), {"per_device_train_batch_size": 2, "optim": "adamw_torch", "learning_rate": 1e-2}
    unbroken, broken, resumed = (make(LM, "none") for _ in range(3))
    trainer(unbroken, tmp_path / "a", data, max_steps=4, **options).train()
    trainer(broken, tmp_path / "b", data, max_steps=2, save_strategy="steps", save_steps=2, **options).train()
    trainer(resumed, tmp_path / "b", data, max_steps=4, **options).train(resume_from_checkpoint=True)
    for ours, theirs in zip(resumed.parameters(), unbroken.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_saved_is_loaded_with_its_tokenizer(tmp_path):
    tokenizer = to_huggingface_tokenizer(ByteTokenizer())
    model = make(LM)
    run = trainer(model, tmp_path, examples(LM), processing_class=tokenizer)
    run.train()
    run.save_model(str(tmp_path / "saved"))
    again = LM.from_pretrained(tmp_path / "saved").eval()
    ids = some_ids(1, 5)
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)
    assert again.config.pad_token_id == 256
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")("ab").input_ids == [97, 98]


def test_columns_that_the_model_does_not_read_are_left_out(tmp_path):
    data = [{**one, "text": "abc", "idx": 3} for one in examples(LM)]
    assert np.isfinite(first_step(make(LM), tmp_path, data, data_collator=collate)["loss"])


@pytest.mark.parametrize(
    "collator",
    [
        transformers.DataCollatorForLanguageModeling,
        transformers.DataCollatorForSeq2Seq,
        transformers.DataCollatorWithPadding,
    ],
)
def test_the_librarys_collators(collator, tmp_path):
    tokenizer = to_huggingface_tokenizer(ByteTokenizer())
    kind = CLASSIFIER if collator is transformers.DataCollatorWithPadding else LM
    model = make(kind, pad_token_id=tokenizer.pad_token_id)
    model.resize_token_embeddings(256)
    data = [dict(tokenizer(text)) for text in ("\x00wow", "a", "longer text")]
    for n, one in enumerate(data):
        if collator is not transformers.DataCollatorForLanguageModeling:
            one["labels"] = n % 2 if kind is CLASSIFIER else one["input_ids"]
    collate = (
        collator(tokenizer, mlm=False)
        if collator is transformers.DataCollatorForLanguageModeling
        else collator(tokenizer)
    )
    assert np.isfinite(first_step(model, tmp_path, data, data_collator=collate, per_device_train_batch_size=3)["loss"])


def test_packed_texts_are_refused(tmp_path):
    data = [{"input_ids": one["input_ids"], "labels": one["labels"]} for one in examples(LM)]
    collate = transformers.DataCollatorWithFlattening()
    with pytest.raises(ValueError, match="texts cannot share a row here: pad them"):
        first_step(make(), tmp_path, data, data_collator=collate, per_device_train_batch_size=4)


def test_activation_checkpoints_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        first_step(make(), tmp_path, examples(LM), gradient_checkpointing=True)
