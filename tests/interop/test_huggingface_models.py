"""What the library's common tests of models demand of each class: outputs, embeddings, losses, saving and loading."""

import json

import pytest
import torch
import transformers
from huggingface_models import CLASSES, MODEL, PADDING, make, pad, some_ids
from runs import BLOCKS
from torch.nn import functional as F

from spikegpt.common.errors import SpikegptError
from spikegpt.interop.huggingface import SpikeGPTConfig

LM, CLASSIFIER = CLASSES
each_class = pytest.mark.parametrize("kind", CLASSES, ids=["lm", "classifier"])
each_block = pytest.mark.parametrize("block", BLOCKS)
TEXTS = [some_ids(5, seed=1), some_ids(2, seed=2), some_ids(3, seed=3)]
LABELS = {LM: some_ids(2, 6, seed=9), CLASSIFIER: torch.tensor([0, 1])}


def same(one, other, **tolerance):
    torch.testing.assert_close(one, other, **tolerance)


@each_class
@each_block
def test_embeddings_in_the_place_of_ids_give_the_same(kind, block):
    model, (ids, mask) = make(kind, block), pad(TEXTS, "left", filler=0)
    embeddings = model.get_input_embeddings()(ids)
    same(model(inputs_embeds=embeddings, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@each_class
@pytest.mark.parametrize("given", [{}, {"input_ids": some_ids(1, 3), "inputs_embeds": torch.zeros(1, 3, 16)}])
def test_ids_or_embeddings_and_not_both(kind, given):
    with pytest.raises(ValueError, match="input_ids or inputs_embeds, one of the two"):
        make(kind)(**given)


@each_class
@pytest.mark.parametrize("side", ["right", "left"])
def test_hidden_states_are_those_of_each_text_alone(kind, side):
    model, (ids, mask) = make(kind), pad(TEXTS, side)
    found = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    alone = model(TEXTS[1][None], output_hidden_states=True).hidden_states
    assert len(found) == MODEL.n_layer + 1
    for theirs, ours in zip(found, alone, strict=True):
        assert theirs.shape == (3, 5, 16)
        same(theirs[1][mask[1].bool()], ours[0])


@each_class
def test_hidden_states_are_given_out_if_the_configuration_says_so(kind):
    assert make(kind, output_hidden_states=True)(some_ids(1, 4)).hidden_states is not None
    assert make(kind)(some_ids(1, 4)).hidden_states is None


@each_class
@pytest.mark.parametrize("asks", ["call", "configuration"])
def test_a_tuple_holds_what_the_dictionary_does(kind, asks):
    model, given = make(kind), {"input_ids": some_ids(2, 6), "labels": LABELS[kind], "output_hidden_states": True}
    wanted = model(**given)
    model.config.return_dict = asks == "call"
    found = model(**given, **({"return_dict": False} if asks == "call" else {}))
    assert isinstance(found, tuple) and len(found) == len(wanted.to_tuple())
    assert torch.equal(found[0], wanted.loss) and torch.equal(found[1], wanted.logits)


def test_the_state_is_given_out_as_the_configuration_says_and_never_while_training():
    model = make()
    assert model(some_ids(1, 4)).state is not None
    assert model.train()(some_ids(1, 4)).state is None
    assert make(use_cache=False)(some_ids(1, 4)).state is None


@pytest.mark.parametrize("kept", [2, torch.tensor([1, 4])], ids=["last", "some"])
def test_only_the_wanted_logits(kept):
    model, ids = make(), some_ids(2, 6)
    every = model(ids).logits
    same(model(ids, logits_to_keep=kept).logits, every[:, -2:] if isinstance(kept, int) else every[:, kept])


@each_class
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lables": 1}, "has no 'lables'"),
        ({"past_key_values": ()}, "is `state`"),
        ({"cu_seq_lens_q": torch.tensor([0, 3])}, "has no 'cu_seq_lens_q'"),
        ({"output_attentions": True}, "no attentions"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]])}, "texts cannot share a row"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, r"attention_mask is \(1, 1, 4, 4\)"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask is \(1, 3\)"),
    ],
)
def test_what_would_be_left_out_is_refused(kind, given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(kind)(some_ids(1, 4), **given)


@each_class
def test_what_changes_nothing_is_taken(kind):
    given = {"token_type_ids": torch.zeros(1, 4), "position_ids": torch.arange(4)[None], "use_cache": True}
    assert torch.equal(make(kind)(some_ids(1, 4), **given).logits, make(kind)(some_ids(1, 4)).logits)


@each_class
@each_block
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("tells", ["mask", "token", "both"])
def test_a_batch_is_its_texts_one_by_one(kind, block, side, tells):
    # in float64: what RWKV-7 divides by the length of keys is sometimes small
    model, (ids, mask) = make(kind, block).double(), pad(TEXTS, side, filler=7 if tells == "mask" else PADDING)
    found = model(ids, **({} if tells == "token" else {"attention_mask": mask})).logits
    for n, text in enumerate(TEXTS):
        same(found[n] if kind is CLASSIFIER else found[n][mask[n].bool()], model(text[None]).logits[0])


def test_what_stands_under_padding_is_never_looked_up():
    model, (ids, mask) = make(), pad(TEXTS, "left", filler=-100)
    same(model(ids, attention_mask=mask).logits[1, 3:], model(TEXTS[1][None]).logits[0])


@each_block
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_state_and_several_new_tokens_are_one_text(block, cut):
    model, ids = make(block=block), some_ids(2, 6)
    begun = model(ids[:, :cut])
    found = model(ids[:, cut:], state=begun.state)
    same(found.logits, model(ids).logits[:, cut:])
    same(
        model(some_ids(2, 1), state=found.state).logits[:, 0], model(torch.cat([ids, some_ids(2, 1)], 1)).logits[:, -1]
    )


@pytest.mark.parametrize("reaches_back", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_state_and_padded_new_tokens(side, reaches_back):
    model, begun = make(), some_ids(3, 4)
    ids, mask = pad(TEXTS, side)
    state = model(begun).state
    whole_mask = torch.cat([torch.ones(3, 4, dtype=torch.long), mask], 1) if reaches_back else mask
    found = model(ids, state=state, attention_mask=whole_mask)
    wanted = model(torch.cat([begun[1], TEXTS[1]])[None])
    same(found.logits[1][mask[1].bool()], wanted.logits[0, 4:])
    same(found.state[1].time_mix.wkv[0][1], wanted.state[1].time_mix.wkv[0][0])


def test_padding_after_a_state_leaves_it_as_it_was():
    model = make()
    state = model(some_ids(2, 4)).state
    found = model(torch.tensor([[3], [PADDING]]), state=state).state
    same(found[1].time_mix.wkv[0][1], state[1].time_mix.wkv[0][1])
    assert not torch.equal(found[1].time_mix.wkv[0][0], state[1].time_mix.wkv[0][0])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_no_loss(side):
    model, (ids, mask) = make(), pad(TEXTS, side)
    found = model(ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    each = [F.cross_entropy(model(text[None]).logits[0, :-1], text[1:], reduction="sum") for text in TEXTS]
    same(found, sum(each) / sum(len(text) - 1 for text in TEXTS))


@pytest.mark.parametrize("label", [PADDING, -1, 10**6])
def test_a_label_that_is_no_token_is_refused(label):
    with pytest.raises(ValueError, match=rf"label {label} is no token of the vocabulary \[0, 64\); set -100"):
        make()(some_ids(1, 3), labels=torch.tensor([[1, 2, label]]))


@each_class
@pytest.mark.parametrize("counted", [None, 0, torch.tensor(0), 5])
def test_nothing_to_learn_is_a_loss_of_zero(kind, counted):
    labels = torch.full_like(LABELS[kind], -100)
    model = make(kind)
    loss = model(some_ids(2, 6), labels=labels, num_items_in_batch=counted).loss
    loss.backward()
    assert loss == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@each_class
def test_the_parts_of_a_batch_add_up(kind):
    model, ids, labels = (
        make(kind),
        some_ids(4, 6),
        {LM: some_ids(4, 6, seed=9), CLASSIFIER: torch.tensor([0, 1, -100, 1])},
    )
    labels = labels[kind]
    if kind is LM:
        labels[0, :4] = labels[2] = -100
    counted = int(((labels[:, 1:] if kind is LM else labels) != -100).sum())
    parts = [model(ids[n : n + 1], labels=labels[n : n + 1], num_items_in_batch=counted).loss for n in range(4)]
    same(sum(parts), model(ids, labels=labels).loss)


@pytest.mark.parametrize(
    ("problem", "num_labels", "labels", "wanted"),
    [
        ("single_label_classification", 3, torch.tensor([2, 0]), lambda x, y: F.cross_entropy(x, y)),
        ("single_label_classification", 3, torch.tensor([2, 0]).int(), lambda x, y: F.cross_entropy(x, y.long())),
        ("regression", 1, torch.tensor([0.5, 2.0]), lambda x, y: F.mse_loss(x[:, 0], y)),
        ("regression", 1, torch.tensor([1, 2]), lambda x, y: F.mse_loss(x[:, 0], y.float())),
        ("regression", 2, torch.tensor([[0.5, 2.0], [1.0, 1.0]]), lambda x, y: F.mse_loss(x, y)),
        (
            "multi_label_classification",
            3,
            torch.tensor([[1, 0, 1], [0, 0, 1]]),
            lambda x, y: F.binary_cross_entropy_with_logits(x, y.float()),
        ),
    ],
)
def test_each_kind_of_problem_has_its_loss_and_adds_up(problem, num_labels, labels, wanted):
    model, ids = make(CLASSIFIER, num_labels=num_labels, problem_type=problem), some_ids(2, 5)
    whole = model(ids, labels=labels)
    same(whole.loss, wanted(whole.logits, labels))
    parts = [model(ids[n : n + 1], labels=labels[n : n + 1], num_items_in_batch=labels.numel()).loss for n in range(2)]
    same(sum(parts), whole.loss)


@each_class
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"new_num_tokens": 70}, 70),
        ({"new_num_tokens": 70, "mean_resizing": False}, 70),
        ({"new_num_tokens": 50}, 50),
        ({"new_num_tokens": 65, "pad_to_multiple_of": 8}, 72),
        ({"pad_to_multiple_of": 8}, 64),
        ({}, 64),
    ],
)
def test_the_vocabulary_grows_and_shrinks(kind, options, size, tmp_path):
    model, ids = make(kind), some_ids(2, 6) % 50
    before = model(ids).logits
    embedding = model.resize_token_embeddings(**options)
    assert embedding is model.get_input_embeddings() and embedding.weight.shape == (size, 16)
    found = model(ids).logits
    if kind is LM:
        assert found.shape[-1] == size and model.get_output_embeddings().weight.shape == (size, 16)
        found, before = found[..., :50], before[..., :50]
    same(found, before)
    assert model.config.vocab_size == model.spikegpt.config.vocab_size == size
    assert torch.isfinite(model(torch.tensor([[size - 1]])).logits).all()
    with pytest.raises(ValueError, match=f"token id {size} is outside"):
        model.spikegpt.embed(torch.tensor([[size]]))
    model.save_pretrained(tmp_path)
    assert torch.equal(kind.from_pretrained(tmp_path).eval()(ids).logits, model(ids).logits)


@each_class
def test_the_embedding_is_set(kind):
    model = make(kind)
    model.set_input_embeddings(torch.nn.Embedding(10, 16))
    assert model(torch.tensor([[9]])).logits is not None
    assert model.spikegpt.config.vocab_size == 10


@each_class
@pytest.mark.parametrize(
    "options",
    [{}, {"max_shard_size": "5KB"}, {"variant": "fp16"}],
    ids=["one file", "shards", "variant"],
)
def test_saved_and_loaded_it_is_the_same(kind, options, tmp_path):
    model, ids = make(kind), some_ids(2, 6)
    model.save_pretrained(tmp_path, **options)
    again = kind.from_pretrained(tmp_path, variant=options.get("variant")).eval()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or "max_shard_size" in options


@each_class
@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"device_map": "auto"}, {"low_cpu_mem_usage": True}])
def test_ways_to_place_it(kind, options, tmp_path):
    model, ids = make(kind), some_ids(2, 6)
    model.save_pretrained(tmp_path)
    assert torch.equal(kind.from_pretrained(tmp_path, **options).eval()(ids).logits, model(ids).logits)


@each_class
def test_what_does_not_fit_lies_on_the_disk(kind, tmp_path):
    model, ids = make(kind), some_ids(2, 6)
    model.save_pretrained(tmp_path / "model")
    places = {"spikegpt.emb": "cpu", "spikegpt.blocks.0": "cpu", "spikegpt.blocks.1": "disk", "spikegpt.ln_out": "cpu"}
    places |= {"score": "cpu"} if kind is CLASSIFIER else {"spikegpt.head": "cpu"}
    again = kind.from_pretrained(tmp_path / "model", device_map=places, offload_folder=tmp_path / "disk").eval()
    same(again(ids).logits, model(ids).logits)


@each_class
@each_block
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kind, block, dtype, tmp_path):
    make(kind, block).save_pretrained(tmp_path)
    model = kind.from_pretrained(tmp_path, dtype=dtype).eval()
    found = model(some_ids(2, 6)).logits
    assert found.dtype == model.dtype == dtype and torch.isfinite(found).all()
    loss = model(some_ids(2, 6), labels=LABELS[kind]).loss
    loss.backward()
    assert torch.isfinite(loss)


@each_class
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_made_in_half_precision(kind, dtype):
    auto = transformers.AutoModelForCausalLM if kind is LM else transformers.AutoModelForSequenceClassification
    model = auto.from_config(make(kind).config, dtype=dtype)
    assert isinstance(model, kind) and model.dtype == dtype
    assert torch.isfinite(model(some_ids(2, 6)).logits).all()


@each_class
def test_sizes_that_do_not_match_are_made_anew_when_asked_to(kind, tmp_path):
    make(kind).save_pretrained(tmp_path)
    changed = {"vocab_size": 80} | ({"num_labels": 5} if kind is CLASSIFIER else {})
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(tmp_path, **changed)
    model = kind.from_pretrained(tmp_path, ignore_mismatched_sizes=True, **changed).eval()
    assert model(some_ids(1, 4)).logits.shape[-1] == (80 if kind is LM else 5)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert model.get_input_embeddings().weight.abs().max() <= 1e-4


@each_class
@pytest.mark.parametrize("missing", ["emb.weight", "ln_out.bias", "blocks.1.att.time_decay"])
def test_missing_weights_are_named(kind, missing, tmp_path):
    model = make(kind)
    weights = {name: value for name, value in model.state_dict().items() if name != f"spikegpt.{missing}"}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(SpikegptError, match=missing.rpartition(".")[0]):
        kind.from_pretrained(tmp_path)


def test_a_language_model_gives_a_classifier_and_not_the_other_way_round(tmp_path):
    make().save_pretrained(tmp_path / "lm")
    model, found = CLASSIFIER.from_pretrained(tmp_path / "lm", num_labels=3, output_loading_info=True)
    assert found["missing_keys"] == {"score.weight", "score.bias"} and model.config.num_labels == 3
    assert model.score.weight.std() > 0
    make(CLASSIFIER).save_pretrained(tmp_path / "classifier")
    with pytest.raises(SpikegptError, match=r"lacks weights of the network: spikegpt\.head\.weight"):
        LM.from_pretrained(tmp_path / "classifier")


@each_class
def test_gradients_reach_every_parameter(kind):
    model = make(kind, "none")
    model(some_ids(2, 6), labels=LABELS[kind]).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_the_librarys_names_are_ours():
    config = SpikeGPTConfig(hidden_size=24, num_hidden_layers=3, max_position_embeddings=7)
    assert (config.n_embd, config.n_layer, config.ctx_len) == (24, 3, 7)
    config.hidden_size = 32
    assert config.to_model_config().n_embd == 32


@pytest.mark.parametrize("wrong", [{"hidden_size": 0}, {"n_layer": "3"}, {"spiking": "maybe"}])
def test_the_configuration_checks_itself(wrong):
    with pytest.raises(ValueError, match="must be"):
        SpikeGPTConfig(**wrong)


def test_tied_embeddings_are_refused():
    with pytest.raises(ValueError, match="the head is never the embedding"):
        SpikeGPTConfig(tie_word_embeddings=True)


def test_a_configuration_is_saved_and_loaded_whole(tmp_path):
    config = SpikeGPTConfig(n_embd=24, num_labels=3, use_cache=False, pad_token_id=9, eos_token_id=3)
    config.save_pretrained(tmp_path)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    wanted = config.to_dict()
    assert {name: again.to_dict()[name] for name in wanted} == {**wanted, "_name_or_path": str(tmp_path)}
    assert again.num_labels == 3 and not again.use_cache
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "spikegpt"


def test_a_padding_token_with_a_row_is_text_unless_a_mask_says_otherwise():
    # exports of before padded with token 0
    ids = torch.tensor([[0, 5, 0, 7]])
    same(make(pad_token_id=0)(ids).logits, make(pad_token_id=None)(ids).logits)
