"""OpenAI's completions: the text is the one that `generate` writes, whatever else is asked of it, and by whom."""

import concurrent.futures
import math
import random

import numpy as np
import pytest
import torch
from runs import MODEL

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.generate import generate
from spikegpt.model import SpikeGPT
from spikegpt.serve.batch import OneByOne, make_batch

WORDS = "It was the best of times, it was the worst of times, é 日本 and so on. "


def expected(run, prompts, **sampling):
    model, tokenizer = load_model(run)
    return generate(model, tokenizer, prompts, SamplingConfig(**{"temperature": 1.0, "top_p": 1.0} | sampling))


def texts_of(answer):
    return [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize("which", [0, 1], ids=["spiking", "twin"])
def test_choices_are_what_generate_writes(served, pair, which):
    asked = {"prompt": ["It was", "Once é"], "max_tokens": 30, "seed": 5, "n": 2, "temperature": 0.9, "top_p": 0.9}
    answer = served.complete(model=pair[which].name, **asked)
    prompts = ["It was", "It was", "Once é", "Once é"]
    assert texts_of(answer) == expected(pair[which], prompts, max_tokens=30, seed=5, temperature=0.9, top_p=0.9)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"] == {"prompt_tokens": 13, "completion_tokens": 120, "total_tokens": 133}


def test_many_clients_get_what_each_would_get_alone(served, pair):
    dice, model, tokenizer = random.Random(0), *load_model(pair[0])
    asked = []
    for number in range(40):
        start = dice.randrange(40)
        prompt, length = WORDS[start : start + dice.randrange(1, 30)], dice.randrange(1, 40)
        asked.append({"prompt": prompt, "max_tokens": length, "seed": number, "temperature": dice.choice([0.5, 1.0])})
    with concurrent.futures.ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda fields: served.complete(model=pair[0].name, **fields), asked))
    for fields, answer in zip(asked, answers, strict=True):
        sampling = {name: value for name, value in fields.items() if name != "prompt"}
        assert texts_of(answer) == generate(model, tokenizer, [fields["prompt"]], SamplingConfig(top_p=1.0, **sampling))


def test_a_stream_joined_is_the_answer(served, pair):
    asked = {"model": pair[0].name, "prompt": "It was", "max_tokens": 25, "seed": 1, "n": 2, "logprobs": 2}
    *chunks, last = served.events("/v1/completions", {**asked, "stream": True})
    joined = ["", ""]
    for chunk in chunks:
        joined[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    whole = served.complete(**asked)
    assert last == "[DONE]" and joined == texts_of(whole)
    tokens = [token for chunk in chunks for token in (chunk["choices"][0]["logprobs"] or {"tokens": []})["tokens"]]
    assert sorted(tokens) == sorted(token for choice in whole["choices"] for token in choice["logprobs"]["tokens"])
    assert {chunk["choices"][0]["finish_reason"] for chunk in chunks} == {None, "length"}


def test_usage_comes_at_the_end_of_a_stream_that_asks_for_it(served, pair):
    asked = {"model": pair[0].name, "prompt": "ab", "max_tokens": 3, "stream": True}
    *_, usage, _ = served.events("/v1/completions", {**asked, "stream_options": {"include_usage": True}})
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}


def test_a_text_ends_before_its_stop_and_its_tokens_with_it(served, pair):
    asked = {"model": pair[0].name, "prompt": "It was", "max_tokens": 40, "seed": 5}
    (text,) = texts_of(served.complete(**asked))
    stop = text[10:12]
    choice = served.complete(**asked, stop=[stop], logprobs=0)["choices"][0]
    assert choice["text"] == text[: text.index(stop)] and choice["finish_reason"] == "stop"
    assert max(choice["logprobs"]["text_offset"]) == len(choice["text"]) - 1


def test_log_probabilities_of_a_prompt_are_the_models(served, pair):
    asked = {"model": pair[1].name, "prompt": "It é", "max_tokens": 0, "echo": True, "logprobs": 3}
    choice = served.complete(**asked)["choices"][0]
    model, _ = load_model(pair[1])
    ids = torch.tensor(list("It é".encode()))
    with torch.inference_mode():
        logprobs = model(ids[None]).logits[0].log_softmax(dim=-1)
    wanted = logprobs[:-1].gather(1, ids[1:, None])[:, 0]
    found = choice["logprobs"]
    assert choice["text"] == "It é" and found["token_logprobs"][0] is None
    assert np.allclose(found["token_logprobs"][1:], wanted, atol=1e-5)
    assert found["tokens"] == ["I", "t", " ", "bytes:\\xc3", "bytes:\\xa9"] and found["text_offset"] == [0, 1, 2, 3, 3]
    assert max(found["top_logprobs"][1].values()) == pytest.approx(logprobs[0].max().item(), abs=1e-5)
    assert len(found["top_logprobs"][1]) == 3


def test_token_ids_are_a_prompt(served, pair):
    ids = list(b"It was")
    asked = {"model": pair[0].name, "max_tokens": 9, "seed": 4, "echo": True}
    assert texts_of(served.complete(prompt=ids, **asked)) == texts_of(served.complete(prompt="It was", **asked))
    assert len(served.complete(prompt=[ids, ids], **asked)["choices"]) == 2


def test_a_long_prompt_is_read_in_the_pieces_that_generate_reads(served, pair):
    prompt = (WORDS * 30)[:1500]
    answer = served.complete(model=pair[0].name, prompt=prompt, max_tokens=10, seed=1)
    assert texts_of(answer) == expected(pair[0], [prompt], max_tokens=10, seed=1)


def test_without_a_seed_answers_differ(served, pair):
    asked = {"model": pair[0].name, "prompt": "It was", "max_tokens": 30}
    assert texts_of(served.complete(**asked)) != texts_of(served.complete(**asked))


BY_ROWS = [
    {"mixer": mixer, "spiking": spiking} for mixer in ("rwkv4", "rwkv6", "rwkv7") for spiking in ("input", "none")
]


@pytest.mark.parametrize("kind", [*BY_ROWS, {"mixer": "attention", "spiking": "none"}], ids=str)
@torch.inference_mode()
def test_a_text_in_a_batch_has_the_logits_that_it_has_alone(kind):
    """To the last bit: neighbours come, go and change places."""
    torch.manual_seed(0)
    model = SpikeGPT(ModelConfig(n_layer=2, n_embd=16, ctx_len=16, head_size=8, **kind)).eval()
    states = [model(torch.randint(256, (1, 2 + n))).state for n in range(5)]
    batch, alone, order = make_batch(model, 6), {}, []

    def join(name, state):
        alone[name] = make_batch(model, 1)
        alone[name].put(0, state)
        batch.put(len(order), state)
        order.append(name)

    for name, state in enumerate(states):
        join(name, state)
    for step in range(12):
        tokens = [(7 * step + name) % 256 for name in order]
        for name, token, logits in zip(order, tokens, batch.step(tokens), strict=True):
            assert torch.equal(logits, alone[name].step([token])[0])
        if step in (3, 5):
            batch.move(len(order) - 1, 1)
            order[1] = order.pop()
        if step in (6, 8):
            join(100 + step, states[step % 5])


def test_what_cannot_be_decoded_by_rows_is_read_one_by_one():
    model = SpikeGPT(ModelConfig(n_layer=1, n_embd=16, ctx_len=16, head_size=8, mixer="attention", spiking="none"))
    assert isinstance(make_batch(model.eval(), 2), OneByOne)
    assert not isinstance(make_batch(SpikeGPT(MODEL).eval(), 2), OneByOne)


def test_surprise_is_in_bits():
    from spikegpt.serve.texts import score

    found = score(1, torch.tensor([0.0, math.log(3.0)]), top=1)
    assert found.bits == pytest.approx(2 - math.log2(3)) and found.top[0][0] == 1
