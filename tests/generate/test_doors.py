"""What `generate` is given: texts in their order, and nothing in another's place."""

import pytest
from runs import MODEL

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import SamplingConfig
from spikegpt.generate import generate
from spikegpt.generate.stream import stream


@pytest.fixture(scope="module")
def loaded(trained):
    return load_model(trained)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("abc", r"prompts is the string 'abc'; give a list of strings"),
        (b"abc", "prompts is a bytes; give a list of strings"),
        (None, "prompts is a NoneType"),
        ({"a", "b"}, "prompts is a set"),
        ({"a": 1}, "prompts is a dict"),
        ((prompt for prompt in ("a", "b")), "prompts is a generator"),
        (7, "prompts is a int"),
        ([], "no prompt given"),
        ([b"a"], "a prompt is b'a'; give strings"),
        (["a", None], "a prompt is None"),
        ([["a"]], r"a prompt is \['a'\]"),
    ],
)
def test_prompts_of_another_kind_are_refused(loaded, prompts, message):
    with pytest.raises(SpikegptError, match=message):
        generate(*loaded, prompts)
    if not hasattr(prompts, "send"):
        with pytest.raises(SpikegptError, match=message):
            next(stream(*loaded, prompts))


def test_arguments_in_another_order_are_refused(loaded):
    model, tokenizer = loaded
    with pytest.raises(SpikegptError, match="model is a ByteTokenizer, want a SpikeGPT"):
        generate(tokenizer, model, ["a"])
    with pytest.raises(SpikegptError, match="tokenizer is a list, want a Tokenizer"):
        generate(model, ["a"], tokenizer)
    for sampling in (50, {"max_tokens": 5}, SamplingConfig, MODEL):
        with pytest.raises(SpikegptError, match="want a SamplingConfig"):
            generate(model, tokenizer, ["a"], sampling)
    for draws in ([1], ["a", "b"]):
        with pytest.raises(SpikegptError, match="give a whole number for each of the 2 prompt"):
            generate(model, tokenizer, ["a", "b"], draws=draws)
