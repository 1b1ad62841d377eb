"""What the library's common tests of tokenizers demand of ours: ids, padding, files, special tokens, offsets."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from world import TEXT, by_trying_lengths, vocabulary, world

from spikegpt.checkpoint import load_model, save_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, WorldTokenizer
from spikegpt.interop.huggingface import SpikeGPTForCausalLM, from_run, to_huggingface_tokenizer
from spikegpt.interop.tokenizer_files import PADDING, UNKNOWN, read_tokenizer, write_tokenizer
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.model.network import SpikeGPT

ODD = "\nabc wow!  Tr\u00e8s \u0100b \u732b\U0001f40d a\u0301 , 'quoted' . n't \x00\t\r\n end "
TEXTS = [ODD, "wow\nab", "", "a", " , . ! ?"]


def with_end(tokenizer: BPETokenizer) -> BPETokenizer:
    """The same with an end-of-text token, as those of others have."""
    token = {"id": tokenizer.vocab_size, "content": "<|endoftext|>", "special": True, "normalized": False}
    token |= {"single_word": False, "lstrip": False, "rstrip": False}
    return BPETokenizer({**tokenizer.to_json(), "added_tokens": [token]})


BPE = BPETokenizer.train((ODD * 30).encode(), 300)
OURS = {
    "byte": ByteTokenizer(),
    "char": CharTokenizer.from_text("".join([*TEXTS, "?"]).encode()),
    "bpe": BPE,
    "bpe with an end": with_end(BPE),
    "world": world(),
}
each = pytest.mark.parametrize("ours", OURS.values(), ids=OURS.keys())


def made(ours, folder):
    return to_huggingface_tokenizer(ours)


def written(ours, folder):
    write_tokenizer(ours, folder, pads=True)
    return transformers.AutoTokenizer.from_pretrained(folder)


def saved(ours, folder):
    to_huggingface_tokenizer(ours).save_pretrained(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def hf(ours, tmp_path):
    return written(ours, tmp_path)


@each
@pytest.mark.parametrize("way", [made, written, saved])
def test_ids_and_texts_are_ours(ours, way, tmp_path):
    hf = way(ours, tmp_path)
    for text in TEXTS:
        ids = hf(text).input_ids
        assert ids == ours.encode(text.encode()).tolist() == hf.encode(text)
        assert hf.decode(ids) == hf.decode(ids, skip_special_tokens=True) == text
        assert hf.convert_tokens_to_string(hf.convert_ids_to_tokens(ids)) == text
        assert hf.convert_tokens_to_ids(hf.tokenize(text)) == ids
    assert hf.pad_token_id == len(hf) - 1


@each
def test_padding_is_no_token_of_any_text(hf, ours):
    assert hf.pad_token == PADDING and hf.pad_token_id >= ours.vocab_size
    assert hf.pad_token_id not in hf(TEXTS[0]).input_ids
    assert len(hf) == hf.pad_token_id + 1 and len({*hf.get_vocab().values()}) == len(hf.get_vocab())


@each
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_texts_come_back(hf, ours, side):
    batch = hf(TEXTS, padding=True, padding_side=side, return_tensors="np")
    assert hf.batch_decode(batch.input_ids, skip_special_tokens=True) == TEXTS
    assert np.array_equal(batch.input_ids == hf.pad_token_id, batch.attention_mask == 0)
    assert (batch.input_ids[1, 0] == hf.pad_token_id) == (side == "left")
    assert hf.padding_side == "left"


@each
def test_padding_to_a_length_and_to_a_multiple(hf, ours):
    assert len(hf("abc", padding="max_length", max_length=20).input_ids) == 20
    assert len(hf("abc", padding=True, pad_to_multiple_of=8).input_ids) % 8 == 0
    assert hf.pad([{"input_ids": [1]}, {"input_ids": [1, 2]}]).attention_mask == [[0, 1], [1, 1]]


@each
@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_keeps_the_other_end(hf, ours, side):
    ids = hf(ODD).input_ids
    hf.truncation_side = side
    assert hf(ODD, truncation=True, max_length=7).input_ids == (ids[-7:] if side == "left" else ids[:7])
    assert hf(ODD).input_ids == ids


@each
def test_offsets_are_characters_of_the_text(hf, ours):
    text = "a \u0100b \u732b\n"
    found = hf(text, return_offsets_mapping=True)
    for id, (begin, end) in zip(found.input_ids, found.offset_mapping, strict=True):
        assert ours.decode([id]).strip() in text[begin:end].encode() and begin < end
    assert [begin for begin, _ in found.offset_mapping] == sorted(begin for begin, _ in found.offset_mapping)


@each
def test_tokens_are_added(hf, ours, tmp_path):
    size = len(hf)
    assert hf.add_tokens(["<new>"]) == 1
    assert hf.add_special_tokens({"additional_special_tokens": ["<user>"]}) == 1
    ids = hf("a<user><new>b").input_ids
    assert ids[1:-1] == [size + 1, size]
    assert hf.decode(ids) == "a<user><new>b" and hf.decode(ids, skip_special_tokens=True) == "a<new>b"
    hf.save_pretrained(tmp_path / "again")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "again")("a<user><new>b").input_ids == ids


@each
def test_special_tokens_are_masked_as_such(hf, ours):
    batch = hf(["abc", "a"], padding=True, return_special_tokens_mask=True)
    assert np.array_equal(np.array(batch.special_tokens_mask) == 1, np.array(batch.attention_mask) == 0)
    assert hf.num_special_tokens_to_add() == 0


@each
def test_a_language_modelling_collator_leaves_out_padding_alone(hf, ours):
    collate = transformers.DataCollatorForLanguageModeling(hf, mlm=False)
    batch = collate([hf("\nwow"), hf("a" + (hf.eos_token or ""))])
    assert torch.equal(batch["labels"] == -100, batch["attention_mask"] == 0)


@each
def test_an_end_of_text_is_a_token_and_no_padding(hf, ours):
    assert (hf.eos_token_id is None) == (ours not in (OURS["bpe with an end"], OURS["world"]))
    assert hf.eos_token_id == hf.bos_token_id != hf.pad_token_id


def test_nothing_is_added_to_a_text_or_cut_off():
    library = tokenizers.Tokenizer.from_str(json.dumps(BPE.to_json()))
    library.add_special_tokens(["<s>"])
    begin = ("<s>", library.token_to_id("<s>"))
    library.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[begin])
    library.enable_truncation(2)
    library.enable_padding()
    ours = BPETokenizer(json.loads(library.to_str()))
    assert to_huggingface_tokenizer(ours)(ODD).input_ids == ours.encode(ODD.encode()).tolist()


def unigram():
    """A tokenizer whose vocabulary is a list, and not byte-level."""
    letters = [(letter, -2.0) for letter in sorted(set("".join(TEXTS)))]
    library = tokenizers.Tokenizer(tokenizers.models.Unigram([("wow", -1.0), *letters]))
    library.decoder = tokenizers.decoders.Fuse()
    return BPETokenizer(json.loads(library.to_str()))


@pytest.mark.parametrize("ours", [*OURS.values(), unigram()], ids=[*OURS, "unigram"])
@pytest.mark.parametrize("more_rows", [0, 3])
def test_tokens_that_were_added_keep_their_ids(ours, more_rows, tmp_path):
    hf = to_huggingface_tokenizer(ours, ours.vocab_size + more_rows)
    hf.add_tokens(["<new>", "\u03a9"])
    hf.add_special_tokens({"additional_special_tokens": ["<user>"]})
    hf.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path / "tokenizer.json")
    ids = hf("a<user><new>\u03a9" + ODD).input_ids
    assert again.encode("a<user><new>\u03a9" + ODD).tolist() == ids
    assert again.decode(ids).decode() == "a<user><new>\u03a9" + ODD
    assert again.vocab_size == len(hf) and not again.has_token[ours.vocab_size : ours.vocab_size + more_rows + 1].any()
    once_more = to_huggingface_tokenizer(again)
    assert once_more("a<user><new>\u03a9" + ODD).input_ids == ids and once_more.pad_token_id == len(hf)


def test_an_unknown_character_is_refused_with_added_tokens_too(tmp_path):
    hf = to_huggingface_tokenizer(CharTokenizer("\nab"))
    hf.add_tokens(["<new>"])
    hf.save_pretrained(tmp_path)
    with pytest.raises(SpikegptError, match="'\u03a9' is no token of the alphabet"):
        read_tokenizer(tmp_path / "tokenizer.json").encode("ab<new>\u03a9b")


@each
def test_a_model_with_added_tokens_is_imported_with_them(run, ours, tmp_path):
    model, hf = from_run(run)
    hf.add_tokens(["<new>"])
    model.resize_token_embeddings(len(hf))
    model.save_pretrained(tmp_path / "out")
    hf.save_pretrained(tmp_path / "out")
    import_weights(tmp_path / "out", tmp_path / "back")
    again, tokenizer = load_model(tmp_path / "back")
    ids = torch.tensor([hf("ab<new>a").input_ids])
    assert tokenizer.encode("ab<new>a").tolist() == ids[0].tolist()
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert not tokenizer.has_token[ours.vocab_size : -1].any()


@pytest.mark.parametrize("seed", range(3))
def test_the_library_takes_the_longest_token_of_the_world(seed):
    tokens = vocabulary(seed, n_longer=300)
    hf = to_huggingface_tokenizer(WorldTokenizer(tokens))
    text = "".join(TEXT[at : at + 17] + " " * at for at in range(0, 100, 7))
    assert hf(text).input_ids == by_trying_lengths(tokens, text.encode())
    assert hf.decode([0, *hf(text).input_ids], skip_special_tokens=True) == text


def test_a_token_of_the_world_that_holds_a_place_to_cut_stays_whole_beside_added_ones(tmp_path):
    tokens = vocabulary() | {b"e t": 900}
    hf = to_huggingface_tokenizer(WorldTokenizer(tokens))
    hf.add_tokens(["<new>"])
    hf.save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert again.encode("see the time").tolist() == by_trying_lengths(tokens, b"see the time")


def test_tokens_that_the_library_cannot_look_for_are_refused():
    with pytest.raises(SpikegptError, match="more than 400 bytes, which Hugging Face's library cannot look for"):
        to_huggingface_tokenizer(WorldTokenizer({b"a" * 401: 1}))


@pytest.mark.parametrize("unknown", ["\u03a9", "aXb\u03a9"])
def test_an_unknown_character_is_an_unknown_token(unknown):
    ours = CharTokenizer("\nab")
    hf = to_huggingface_tokenizer(ours)
    ids = hf(unknown).input_ids
    assert [id for id in ids if id == hf.unk_token_id] == [3] * sum(letter not in "\nab" for letter in unknown)
    assert hf.unk_token == UNKNOWN and hf.decode([0, 3]) == "\n" + UNKNOWN


@pytest.fixture
def run(ours, tmp_path):
    """A dense model with some rows more than tokens."""
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, ctx_len=16, vocab_size=ours.vocab_size + 3, spiking="none"))
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", model, ours)
    return tmp_path / "run"


@each
@pytest.mark.parametrize("layout", ["auto", "huggingface"])
def test_every_exported_folder_is_read(run, ours, layout, tmp_path):
    export_weights(run, tmp_path / "out", layout)
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = hf(ODD, return_tensors="pt").input_ids
    assert ids[0].tolist() == ours.encode(ODD.encode()).tolist()
    torch.testing.assert_close(model(ids).logits, load_model(run)[0](ids).logits, rtol=1e-4, atol=1e-5)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == hf.eos_token_id
    assert model.config.bos_token_id == hf.bos_token_id
    assert hf.pad_token_id == (model.config.pad_token_id if layout == "auto" else None)
    pipeline = transformers.pipeline("text-generation", str(tmp_path / "out"))
    assert pipeline("\nab", max_new_tokens=3)[0]["generated_text"].startswith("\nab")


@each
def test_what_was_exported_is_imported_as_it_was(run, ours, tmp_path):
    export_weights(run, tmp_path / "out", "huggingface")
    import_weights(tmp_path / "out", tmp_path / "back")
    model, tokenizer = load_model(tmp_path / "back")
    assert tokenizer.vocab_size == ours.vocab_size
    assert tokenizer.encode(ODD.encode()).tolist() == ours.encode(ODD.encode()).tolist()
    assert all(torch.equal(value, load_model(run)[0].state_dict()[name]) for name, value in model.state_dict().items())


@each
def test_a_tokenizer_that_the_library_saved_is_read_as_ours(ours, tmp_path):
    to_huggingface_tokenizer(ours).save_pretrained(tmp_path)
    again = read_tokenizer(tmp_path / "tokenizer.json")
    assert (
        again.vocab_size == ours.vocab_size
        and again.encode(ODD.encode()).tolist() == ours.encode(ODD.encode()).tolist()
    )


@each
def test_rows_without_a_token_are_never_chosen(run, ours):
    model, hf = from_run(run)
    with torch.no_grad():
        model.spikegpt.head.weight[ours.vocab_size :] *= 1e4
    for options in ({}, {"suppress_tokens": [1]}, {"generation_config": transformers.GenerationConfig(top_k=5)}):
        found = model.generate(hf("abc", return_tensors="pt").input_ids, max_new_tokens=20, do_sample=True, **options)
        assert int(found.max()) < ours.vocab_size


@each
def test_padding_and_unknown_characters_lie_behind_the_rows(run, ours):
    model, hf = from_run(run)
    batch = hf(["abc", "a"], padding=True, return_tensors="pt")
    assert hf.pad_token_id >= model.config.vocab_size
    assert torch.equal(model(batch.input_ids).logits, model(**batch).logits)
    if hf.unk_token_id is not None:
        with pytest.raises(ValueError, match="outside the vocabulary"):
            model(hf("\u03a9", return_tensors="pt").input_ids)


@each
@pytest.mark.parametrize("layout", ["auto", "huggingface"])
def test_rows_without_a_token_are_never_chosen_after_an_export(run, ours, layout, tmp_path):
    model, own = load_model(run)
    with torch.no_grad():
        model.head.weight[ours.vocab_size :] *= 1e4
    save_model(run, model, own)
    export_weights(run, tmp_path / "out", layout)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    found = model.generate(hf("abc", return_tensors="pt").input_ids, max_new_tokens=20, do_sample=True)
    assert int(found.max()) < ours.vocab_size


@each
def test_a_resized_model_draws_neither_padding_nor_rows_without_a_token(run, ours):
    model, hf = from_run(run)
    model.resize_token_embeddings(len(hf))
    with torch.no_grad():
        model.spikegpt.head.weight[ours.vocab_size :] *= 1e6
    found = model.generate(hf("abc", return_tensors="pt").input_ids, max_new_tokens=20, do_sample=True)
    assert int(found.max()) < ours.vocab_size


@each
@pytest.mark.parametrize("layout", ["auto", "huggingface"])
def test_export_and_loading_warn_of_nothing(run, ours, layout, tmp_path, caplog, capfd):
    transformers.utils.logging.enable_propagation()
    transformers.utils.logging.warning_once.cache_clear()
    export_weights(run, tmp_path / "out", layout)
    printed = capfd.readouterr()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    hf = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model.generate(hf("abc", return_tensors="pt").input_ids, max_new_tokens=2)
    model.save_pretrained(tmp_path / "again")
    assert printed.out == "" and "it/s" not in printed.err
    assert not [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("ours", [OURS["byte"]])
def test_a_run_of_before_is_still_read(run, ours, tmp_path):
    """An export of before: token 0 is padding, in config.json and in the tokenizer's files."""
    export_weights(run, tmp_path / "out", "auto")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"pad_token_id": 0}))
    model = SpikeGPTForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[0, 7, 0, 9]])
    assert torch.equal(model(ids).logits, load_model(run)[0](ids).logits)


@pytest.mark.parametrize("ours", [OURS["byte"]])
def test_tokens_that_are_added_may_be_chosen(run, ours):
    model, hf = from_run(run)
    hf.add_tokens(["<new>", "<newer>", "<newest>"])
    model.resize_token_embeddings(len(hf))
    with torch.no_grad():
        model.spikegpt.head.weight[-1] *= 1e6
    found = model.generate(hf("abc", return_tensors="pt").input_ids, max_new_tokens=20, do_sample=True)
    assert "<newest>" in hf.decode(found[0])
