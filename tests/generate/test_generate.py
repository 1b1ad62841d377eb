"""Sampling, streaming and batches: what a prompt yields depends on the prompt, the seed and the settings only."""

import json

import numpy as np
import pytest
import torch
from command_line import spikegpt

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import SPIKING, ModelConfig, SamplingConfig
from spikegpt.data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer
from spikegpt.generate import stream
from spikegpt.generate.engine import why_not_by_rows
from spikegpt.generate.sample import Chooser, sample
from spikegpt.generate.stream import generate
from spikegpt.model.network import SpikeGPT


@pytest.fixture(scope="module")
def model(trained):
    return load_model(trained)[0]


class Scripted(SpikeGPT):
    """A model that continues with the given bytes whatever it reads."""

    def __init__(self, text: bytes):
        super().__init__(ModelConfig(n_layer=1, n_embd=4), init=False)
        self.text = text

    def forward(self, ids, state=None, last_only=False):
        position = 0 if state is None else int(state[0]) + 1
        logits = torch.zeros(ids.shape[0], 1, 256)
        logits[:, 0, self.text[min(position, len(self.text) - 1)]] = 50.0
        return type("Output", (), {"logits": logits, "state": (torch.tensor([position]),)})


def options(**changes) -> SamplingConfig:
    return SamplingConfig(**{"max_tokens": 12, "temperature": 0, **changes})


def test_the_same_seed_gives_the_same_text(model):
    texts = [
        generate(model, ByteTokenizer(), ["The "], SamplingConfig(max_tokens=40, temperature=1.5, seed=seed))[0]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("spiking", SPIKING)
def test_a_prompt_does_not_feel_its_neighbours(spiking):
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, spiking=spiking))
    prompts = ["The ", "import sys; a much longer prompt", "x"]
    together = generate(model, ByteTokenizer(), prompts, options(max_tokens=20))
    alone = [generate(model, ByteTokenizer(), [prompt], options(max_tokens=20))[0] for prompt in prompts]
    assert together == alone


def test_generation_is_the_parallel_models_most_likely_token(model):
    text = generate(model, ByteTokenizer(), ["def f"], options(max_tokens=8))[0]
    ids = torch.tensor([list(b"def f")])
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert text == bytes(ids[0, 5:].tolist()).decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.parametrize("block", [{"spiking": spiking} for spiking in SPIKING] + [{"state_neurons": True}], ids=str)
def test_a_run_of_rwkv7_is_written_on_by_its_token_step(block, make_run):
    run = make_run(model=ModelConfig(mixer="rwkv7", head_size=8, n_layer=2, n_embd=16, ctx_len=16, **block), steps=4)
    model, _ = load_model(run)
    assert why_not_by_rows(model) == ""
    done = spikegpt("generate", run, "def f", "--max-tokens", 8, "--temperature", 0, "--threads", 1, "--json")
    ids = torch.tensor([list(b"def f")])
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert [found["text"] for found in json.loads(done.stdout)] == [
        bytes(ids[0, 5:].tolist()).decode("utf-8", "replace")
    ]


def test_multi_byte_characters_stream_whole():
    text = "né 語 👍"
    pieces = [
        piece.text
        for piece in stream(Scripted(text.encode()), ByteTokenizer(), ["a"], options(max_tokens=len(text.encode())))
    ]
    assert pieces == list(text)


def test_character_cut_off_at_the_end_is_marked_not_broken():
    assert generate(Scripted("語".encode()), ByteTokenizer(), ["a"], options(max_tokens=2)) == ["\ufffd"]


@pytest.mark.parametrize(
    ("stop", "text"), [(("END",), "one EN two "), (("two", "zzz"), "one EN "), (("nothing",), "one EN two END!")]
)
def test_stop_string_ends_the_text_before_it(stop, text):
    assert generate(Scripted(b"one EN two END!"), ByteTokenizer(), ["a"], options(stop=stop, max_tokens=15)) == [text]


def test_nothing_of_a_stop_string_is_streamed():
    pieces = [piece.text for piece in stream(Scripted(b"abEND"), ByteTokenizer(), ["a"], options(stop=("END",)))]
    assert "".join(pieces) == "ab"


def draws(logits, n=400, seen=(), **changes) -> set[int]:
    """What is drawn for evenly spread numbers, by the definition and in compiled code, which must agree."""
    logits, sampling = torch.tensor(logits), SamplingConfig(**changes)
    mask = torch.zeros(len(logits), dtype=torch.bool)
    mask[list(seen)] = True
    all_tokens, found = torch.ones(len(logits), dtype=torch.bool), set()
    chooser = Chooser(sampling, 0, all_tokens, torch.empty(0, dtype=torch.long))
    for uniform in (np.arange(n) + 0.5) / n:
        token = sample(logits, sampling, mask, uniform)
        chooser.seen[:], chooser.uniforms = mask, lambda count, one=uniform: np.full(count, one)
        assert chooser.choose(logits) == token
        found.add(token)
    return found


def test_top_k_keeps_k():
    assert draws([1.0, 0.9, 0.8, 0.7], top_k=2, top_p=1.0, temperature=1.0) == {0, 1}


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    # probabilities 0.5, 0.3, 0.2: 0.5 does not reach 0.6, 0.5 + 0.3 does
    assert draws(np.log([0.5, 0.3, 0.2]).tolist(), top_p=0.6, temperature=1.0) == {0, 1}


def test_tiny_top_p_still_leaves_the_most_likely():
    assert draws([0.0, 1.0], top_p=1e-9) == {1}


@pytest.mark.parametrize("temperature", [1e-38, 1e-45, 1e-320])
@pytest.mark.parametrize("logits", [[1.0, 3.0, 2.0], [-1.0, -0.5, -2.0], [0.0, 3.0, -2.0]])
def test_a_tiny_temperature_acts_as_zero(temperature, logits):
    assert draws(logits, n=20, temperature=temperature) == {1}


def test_a_huge_temperature_takes_all_tokens_alike():
    assert draws([9.0, 0.0, float("-inf")], temperature=3e38, top_p=1.0) == {0, 1}


@pytest.mark.parametrize("top_p", [1e-45, 1e-320])
def test_a_top_p_below_what_float32_knows_leaves_the_most_likely(top_p):
    assert draws([0.0, 1.0], top_p=top_p) == {1}


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize(("penalty", "chosen"), [(1000.0, {2}), (0.001, {0})])
def test_an_extreme_repetition_penalty_is_an_order_and_no_nan(temperature, penalty, chosen):
    # seen are a positive and a negative logit, and 0, which stays 0
    assert draws([50.0, -1.0, 20.0], seen=[0, 1], repetition_penalty=penalty, temperature=temperature) == chosen
    assert draws([0.0, -1.0, -99.0], seen=[0, 1], repetition_penalty=1000.0, temperature=temperature) == {0}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_predictions_that_are_not_finite_are_an_error(wrong, temperature):
    with pytest.raises(SpikegptError, match="NaN or infinity"):
        draws([0.0, wrong], temperature=temperature)


def test_every_seed_that_training_takes_is_one(model):
    def text(seed, prompts):
        return generate(model, ByteTokenizer(), prompts, SamplingConfig(max_tokens=20, temperature=1.5, seed=seed))

    # the second prompt draws with the seed after it, and after the last comes the first
    assert text(2**64 - 1, ["a", "a"])[1] == text(0, ["a"])[0] != text(2**64 - 1, ["a"])[0]


def test_equal_prompts_are_continued_by_their_draws(model):
    sampling = SamplingConfig(max_tokens=20, temperature=1.5)
    alike = generate(model, ByteTokenizer(), ["a"] * 3, sampling, draws=[4, 5, 4])
    assert alike[0] == alike[2] != alike[1]
    assert alike[1] == generate(model, ByteTokenizer(), ["a"], sampling, draws=[5])[0]


class Preferring(SpikeGPT):
    """A model that finds the last of its ids the most likely ones."""

    def __init__(self, vocab_size: int):
        super().__init__(ModelConfig(n_layer=1, n_embd=4, vocab_size=vocab_size))

    def forward(self, ids, state=None, last_only=False):
        output = super().forward(ids, state, last_only=last_only)
        return output._replace(logits=output.logits + 100.0 * torch.arange(self.config.vocab_size))


@pytest.mark.parametrize("changes", [{}, {"temperature": 1.0, "top_k": 2}, {"repetition_penalty": 1000.0}])
def test_ids_without_a_token_are_never_chosen(changes):
    (text,) = generate(Preferring(300), ByteTokenizer(), ["a"], options(**changes))
    assert text == ByteTokenizer().decode([255]).decode("utf-8", "replace") * 12 or "temperature" in changes


def test_holes_of_a_vocabulary_are_never_chosen():
    values = {"version": "1.0", "added_tokens": []}
    values["model"] = {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 9}, "unk_token": "a"}
    tokenizer = BPETokenizer(values)
    model = Preferring(12)
    assert set("".join(generate(model, tokenizer, ["a"], options()))) <= set("c ")
    assert tokenizer.has_token.tolist() == [True, True, *[False] * 7, True]


def test_rows_that_the_engine_decodes_have_no_stray_ids_either():
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=8, vocab_size=5000, spiking="none"))
    generate(model, CharTokenizer("abc"), ["a", "b"], options(max_tokens=30, temperature=1.0))


def test_one_string_is_not_a_list_of_prompts(model):
    with pytest.raises(SpikegptError, match=r"give a list of strings, \['abc'\]"):
        generate(model, ByteTokenizer(), "abc")


def test_half_a_character_in_a_prompt_is_named(model):
    with pytest.raises(SpikegptError, match="half a character"):
        generate(model, ByteTokenizer(), ["a\ud800"])


def test_a_prompt_in_tokens_of_another_model_is_named():
    with pytest.raises(SpikegptError, match=r"'abc' holds token 99, the model knows 3: this is not its tokenizer"):
        generate(SpikeGPT(ModelConfig(n_layer=1, n_embd=4, vocab_size=3)), ByteTokenizer(), ["abc"])


def test_repetition_penalty_lowers_seen_tokens_of_either_sign():
    # 3/2 = 1.5 falls below 2;  -1 * 2 = -2 falls below -1.5
    assert draws([3.0, 2.0], seen=[0], repetition_penalty=2.0, temperature=0) == {1}
    assert draws([-1.0, -1.5], seen=[0], repetition_penalty=2.0, temperature=0) == {1}


def test_prompt_outside_a_character_vocabulary_is_named(model):
    with pytest.raises(SpikegptError, match="z"):
        generate(model, CharTokenizer("abc"), ["abz"])


@pytest.mark.parametrize("prompts", [[], [""]])
def test_empty_prompt_is_refused(model, prompts):
    with pytest.raises(SpikegptError, match=r"no prompt given|is empty"):
        generate(model, ByteTokenizer(), prompts)
