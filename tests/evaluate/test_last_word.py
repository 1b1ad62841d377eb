"""Last words of passages: what counts as one, and figures against one plain forward pass per passage."""

import json
import math

import pytest
import torch
from command_line import spikegpt

from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from spikegpt.evaluate.last_word import encode_passage, evaluate_last_words, read_passages, table
from spikegpt.model.network import SpikeGPT

PASSAGES = ["the cat sat on the mat", 'She said:\n"No, never!"', "ein Satz mit  zwei\tÄpfeln", "a b"]


@pytest.fixture
def passages(tmp_path):
    file = tmp_path / "passages.jsonl"
    file.write_text("".join(json.dumps({"text": text, "id": 3}) + "\n" for text in PASSAGES), encoding="utf-8")
    return file


def test_the_last_word_has_the_white_space_before_it(passages):
    assert [passage[1:] for passage in read_passages(passages)] == [
        ("the cat sat on the", " mat"),
        ('She said:\n"No,', ' never!"'),
        ("ein Satz mit  zwei", "\tÄpfeln"),
        ("a", " b"),
    ]


def test_plain_text_has_a_passage_per_line(tmp_path):
    file = tmp_path / "passages.txt"
    file.write_text("one two \r\n\n  three four five\n")
    assert read_passages(file) == [(f"{file}, line 1", "one", " two"), (f"{file}, line 3", "three four", " five")]


def plain(run, text: str) -> tuple[float, bool]:
    """Of a byte model: nats of the last word and whether every byte is the most likely one."""
    model, _ = load_model(run)
    cut = len(text.rstrip()) - len(text.split()[-1]) - 1
    before, ids = len(text[:cut].encode()), torch.tensor(list(text.encode()))
    with torch.no_grad():
        logits = model(ids[None]).logits[0, before - 1 : -1].double()
    losses = torch.nn.functional.cross_entropy(logits, ids[before:], reduction="sum")
    return losses.item(), bool((logits.argmax(-1) == ids[before:]).all())


def test_figures_are_those_of_a_plain_forward_pass_per_passage(trained, passages):
    nats, found = zip(*(plain(trained, text) for text in PASSAGES), strict=True)
    result = evaluate_last_words(trained, passages)
    assert (result["passages"], result["found"]) == (4, sum(found))
    assert result["nats"] == pytest.approx(sum(nats), abs=1e-4)
    assert result["perplexity"] == pytest.approx(math.exp(sum(nats) / 4), rel=1e-5)


def test_a_word_is_found_if_every_token_of_it_is_the_most_likely(tmp_path):
    # an untrained dense model adds nothing to its embeddings, so the head alone says what follows a byte: b, space, x,
    # y in turn
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=32, spiking="none"))
    with torch.no_grad():
        model.emb.weight.normal_()
        model.head.weight.zero_()
        for before, after in ("b ", " x", "xy"):
            model.head.weight[ord(after)] = model.ln_out(model.blocks[0].ln0(model.emb.weight[ord(before)]))
    save_model(tmp_path, model, ByteTokenizer())
    file = tmp_path / "passages.txt"
    file.write_text("ab xy\nab x\nab xz\nab yx\n")
    result = evaluate_last_words(tmp_path, file)
    assert (result["found"], result["accuracy"]) == (2, 0.5)


def test_the_table_states_the_protocol(trained, passages):
    shown = table([evaluate_last_words(trained, passages)])
    assert (
        "accuracy" in shown and "perplexity per last word" in shown and "protocol: last word after white space" in shown
    )


def test_byte_pairs_are_cut_between_tokens_of_the_whole_passage():
    tokenizer = BPETokenizer.train(b"the cat sat on the mat " * 30, 300)
    context, word = encode_passage(tokenizer, "line 1", "the cat sat on the", " mat")
    assert tokenizer.decode(context) == b"the cat sat on the" and tokenizer.decode(word) == b" mat"
    assert [*context, *word] == tokenizer.encode(b"the cat sat on the mat").tolist()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "\n", "empty.jsonl holds no passage"),
        ("word.jsonl", '{"text": "two words"}\n{"text": " one "}\n', "word.jsonl, line 2: 'one' has no word before"),
        ("column.jsonl", '{"sentence": "two words"}\n', 'column.jsonl, line 1, has the keys sentence, and no "text"'),
        ("number.jsonl", '{"text": 3}\n', 'line 1, has the keys text, and no "text" that is a string'),
        ("list.jsonl", "[1]\n", "line 1, is not an object but a list"),
        ("broken.jsonl", '{"text": "a b"}\n{"text": \n', "broken.jsonl, line 2, is not JSON"),
        ("latin.txt", b"gr\xfc\xdfe an", "latin.txt, line 1, is not UTF-8 \\(0xfc\\)"),
    ],
)
def test_bad_lines_are_named(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpikegptError, match=message):
        read_passages(file)


def test_a_passage_that_cannot_be_encoded_is_named():
    with pytest.raises(SpikegptError, match=r"file, line 7: character 'z'"):
        encode_passage(CharTokenizer("ab "), "file, line 7", "a b", " zz")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpikegptError, match=r"cannot read .*missing\.jsonl: No such file"):
        read_passages(tmp_path / "missing.jsonl")


def test_the_command_line_prints_the_same_figures(trained, passages):
    done = spikegpt("evaluate", trained, "--last-word", passages, "--json")
    assert json.loads(done.stdout) == [evaluate_last_words(trained, passages)]
