"""OpenAI's own client library talks to the server."""

import pytest

openai = pytest.importorskip("openai", reason="openai is not installed")


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_it_lists_the_models(client, pair):
    assert [model.id for model in client.models.list()] == [run.name for run in pair]
    assert client.models.retrieve(pair[0].name).owned_by == "spikegpt"


def test_it_gets_choices_with_log_probabilities(client, pair, served):
    asked = {"model": pair[0].name, "prompt": "It was", "max_tokens": 12, "seed": 3, "n": 2, "logprobs": 2}
    answer = client.completions.create(**asked)
    assert [choice.text for choice in answer.choices] == [c["text"] for c in served.complete(**asked)["choices"]]
    assert len(answer.choices[0].logprobs.token_logprobs) == 12 and answer.usage.total_tokens == 30
    assert answer.choices[0].finish_reason == "length"


def test_it_streams(client, pair, served):
    asked = {"model": pair[0].name, "prompt": "It was", "max_tokens": 20, "seed": 3}
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True))
    assert text == served.complete(**asked)["choices"][0]["text"]


def test_it_may_leave_in_the_middle(client, pair):
    stream = client.completions.create(model=pair[0].name, prompt="It", max_tokens=400, stream=True)
    next(iter(stream))
    stream.close()
    assert client.completions.create(model=pair[0].name, prompt="It", max_tokens=1).choices


def test_its_errors_are_those_it_knows(client, pair):
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt-4'"):
        client.completions.create(model="gpt-4", prompt="It")
    with pytest.raises(openai.BadRequestError) as found:
        client.completions.create(model=pair[0].name, prompt="It", temperature=-1)
    assert found.value.param == "temperature"
