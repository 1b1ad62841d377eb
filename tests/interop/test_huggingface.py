"""Our models in Hugging Face's clothes: same text, same logits, padding that changes nothing, Trainer and pipeline."""

import json
import sys
from functools import partial

import processes
import pytest
import torch
import transformers
from runs import BLOCKS, MODEL, TRAIN
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_leaves

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig, NeuronConfig, SamplingConfig
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from spikegpt.generate.stream import generate as our_generate
from spikegpt.interop.huggingface import (
    SpikeGPTConfig,
    SpikeGPTForCausalLM,
    SpikeGPTForSequenceClassification,
    from_run,
    to_huggingface_tokenizer,
)
from spikegpt.interop.weights import export_weights
from spikegpt.train.trainer import train

PROMPTS = ["The statement that ", "It"]
ODD = "Tr\u00e8s \u732b\U0001f40d\n\n\t  a\u0301 'quoted'  \x00 end "


@pytest.fixture(scope="module", params=BLOCKS)
def run(request, tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    folder = tmp_path_factory.mktemp("huggingface") / request.param
    config = ModelConfig(n_layer=2, n_embd=16, ctx_len=16, **BLOCKS[request.param])
    return train(config, TRAIN, folder, cache=base / "cache", quiet=True).run


def texts_of(model, tokenizer, **options) -> list[str]:
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    found = model.generate(**batch, max_new_tokens=20, **options)
    return [tokenizer.decode(row[batch.input_ids.shape[1] :]) for row in found]


def test_greedy_text_is_ours_whatever_the_padding(run):
    wanted = our_generate(*load_model(run), PROMPTS, SamplingConfig(max_tokens=20, temperature=0))
    assert texts_of(*from_run(run), do_sample=False) == wanted


@pytest.mark.parametrize("beams", [1, 3])
def test_with_a_carried_state_the_text_is_that_of_reading_all_anew(run, beams):
    generate = partial(texts_of, *from_run(run), do_sample=False, num_beams=beams)
    assert generate(use_cache=True) == generate(use_cache=False)


def test_after_the_prompt_one_token_is_read_at_a_time(run, monkeypatch):
    model, tokenizer = from_run(run)
    read, forward = [], SpikeGPTForCausalLM.forward

    def counting(self, input_ids, **rest):
        read.append(input_ids.shape[1])
        return forward(self, input_ids, **rest)

    monkeypatch.setattr(SpikeGPTForCausalLM, "forward", counting)
    texts_of(model, tokenizer)
    assert read == [len(PROMPTS[0])] + [1] * 19


def test_saved_and_loaded_by_the_auto_classes_it_is_the_same_model(run, tmp_path):
    export_weights(run, tmp_path / "folder", "auto")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    ids = tokenizer(ODD, return_tensors="pt").input_ids
    ours, _ = load_model(run)
    assert ids[0].tolist() == list(ODD.encode())
    assert torch.equal(model(ids).logits, ours(ids).logits)
    assert model.config.to_model_config() == ours.config
    assert {path.suffix for path in (tmp_path / "folder").iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_neither_logits_nor_state(run, side):
    model, tokenizer = from_run(run)
    model.double()
    batch = tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side=side)
    found = model(**batch)
    for row, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([list(prompt.encode())]))
        torch.testing.assert_close(found.logits[row, batch.attention_mask[row].bool()], alone.logits[0])
        for part, wanted in zip(tree_leaves(found.state), tree_leaves(alone.state), strict=True):
            if part is not None:
                torch.testing.assert_close(part[row], wanted[0])


@pytest.mark.parametrize("mask", [[[1, 0, 1]], [[0, 0, 0]]], ids=["hole", "nothing"])
def test_masks_that_are_no_padding_are_refused(run, mask):
    with pytest.raises(ValueError, match="attention_mask"):
        from_run(run)[0](torch.ones(1, 3, dtype=torch.long), attention_mask=torch.tensor(mask))


def test_the_loss_is_that_of_the_next_token_and_leaves_out_what_is_marked(run):
    model, _ = from_run(run)
    ids = torch.tensor([list(b"some words to read")])
    labels = ids.clone()
    labels[:, :5] = -100
    logits = model(ids).logits
    wanted = torch.nn.functional.cross_entropy(logits[0, 4:-1], ids[0, 5:])
    torch.testing.assert_close(model(ids, labels=labels).loss, wanted)


def test_a_configuration_comes_back_whole():
    config = ModelConfig(
        n_layer=3,
        n_embd=24,
        vocab_size=99,
        hidden_levels=3,
        shared_neurons=True,
        neuron=NeuronConfig(membrane_decay=0.25, learnable_threshold=True),
    )
    theirs = SpikeGPTConfig.from_model_config(config)
    again = SpikeGPTConfig.from_dict(json.loads(theirs.to_json_string(use_diff=False)))
    assert again.to_model_config() == config
    assert (again.hidden_size, again.num_hidden_layers, again.vocab_size) == (24, 3, 99)


def test_an_unknown_size_is_refused_by_our_own_check():
    with pytest.raises(ValueError, match="n_layer must be a whole number from 1 to 1,024, got 0"):
        SpikeGPTConfig(n_layer=0)


def test_a_fresh_model_has_our_initialisation():
    config = SpikeGPTConfig.from_model_config(MODEL)
    torch.manual_seed(0)
    model = SpikeGPTForCausalLM(config)
    # power law of RWKV: the decays of the first layer begin at -5
    assert model.spikegpt.blocks[0].att.time_decay[0] == -5
    assert not any(torch.isnan(parameter).any() for parameter in model.parameters())


@pytest.mark.parametrize(
    "tokenizer",
    [ByteTokenizer(), CharTokenizer.from_text((ODD * 2).encode()), BPETokenizer.train((ODD * 30).encode(), 300)],
    ids=["byte", "char", "bpe"],
)
def test_the_tokenizers_agree_on_odd_text(tokenizer):
    theirs = to_huggingface_tokenizer(tokenizer)
    ids = theirs(ODD).input_ids
    assert ids == tokenizer.encode(ODD.encode()).tolist()
    assert theirs.decode(ids, clean_up_tokenization_spaces=False) == ODD


def trained_by_trainer(model, examples, folder, steps: int):
    options = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        logging_steps=1,
    )
    trainer = transformers.Trainer(model=model, args=options, train_dataset=examples)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_trainer_trains_the_language_model(run, tmp_path):
    model, _ = from_run(run)
    ids = torch.tensor(list(b"the same line again "))
    losses = trained_by_trainer(model, [{"input_ids": ids, "labels": ids}] * 8, tmp_path, 25)
    assert losses[-1] < losses[0] - 1


def test_trainer_trains_a_classifier_and_the_pipeline_uses_it(run, tmp_path):
    export_weights(run, tmp_path / "folder", "auto")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "folder", num_labels=2)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert isinstance(model, SpikeGPTForSequenceClassification)
    texts = ["this is good", "this is awful, really"] * 8
    batch = tokenizer(texts, padding=True)
    examples = [
        {"input_ids": batch.input_ids[n], "attention_mask": batch.attention_mask[n], "labels": n % 2}
        for n in range(len(texts))
    ]
    losses = trained_by_trainer(model, examples, tmp_path / "out", 30)
    assert losses[-1] < 0.5 * losses[0]
    found = transformers.pipeline("text-classification", model=model.eval(), tokenizer=tokenizer)(texts[:2])
    assert [label["label"] for label in found] == ["LABEL_0", "LABEL_1"]


def test_a_text_is_classified_alone_as_in_a_padded_batch(run):
    model = SpikeGPTForSequenceClassification(
        SpikeGPTConfig.from_model_config(load_model(run)[0].config, num_labels=3)
    ).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    found = model(ids, attention_mask=torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])).logits
    torch.testing.assert_close(found[1], model(ids[1:, :2]).logits[0])


def test_a_label_outside_the_classes_is_named(run):
    model = SpikeGPTForSequenceClassification(SpikeGPTConfig.from_model_config(load_model(run)[0].config, num_labels=2))
    with pytest.raises(ValueError, match=r"label 5 is outside \[0, 2\); set num_labels"):
        model(torch.ones(1, 3, dtype=torch.long), labels=torch.tensor([5]))


def test_the_text_pipeline_continues_a_prompt(run):
    model, tokenizer = from_run(run)
    (found,) = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)(
        "The ", max_new_tokens=5, do_sample=False
    )
    assert found["generated_text"].startswith("The ") and len(found["generated_text"]) > 4


def test_a_checkpoint_without_some_weights_is_refused(run, tmp_path):
    export_weights(run, tmp_path / "folder", "auto")
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    del weights["spikegpt.blocks.1.ffn.key.weight"]
    save_file(weights, tmp_path / "folder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpikegptError, match="lacks weights of the network"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder")


def test_without_transformers_it_says_what_to_install():
    code = "import sys; sys.modules['transformers'] = None; import spikegpt.huggingface"
    done = processes.run([sys.executable, "-c", code])
    assert "spikegpt.huggingface needs transformers: pip install 'spikegpt[hf]'" in done.stderr
