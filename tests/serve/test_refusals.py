"""What is no proper request gets a clear 4xx in OpenAI's form, and the server lives."""

import socket

import pytest
from served import serving_runs

from spikegpt.serve.guard import Hosts

PROMPT = {"prompt": "It was"}


@pytest.fixture(autouse=True)
def lives(served, pair):
    """After each of these tests the server still answers."""
    yield
    assert served.complete(model=pair[0].name, prompt="It", max_tokens=1)["choices"][0]["text"] is not None
    assert served.json("GET", "/health") == (200, {"status": "ok", "version": "0.1.0"})


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "prompt", "missing"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": []}, "prompt", "must be a string"),
        ({"prompt": 5}, "prompt", "must be a string"),
        ({"prompt": [[], [1]]}, "prompt", "empty"),
        ({"prompt": [1, 256]}, "prompt", "0 to 255"),
        ({"prompt": [-1]}, "prompt", "0 to 255"),
        ({"prompt": [1, "a"]}, "prompt", "token ids"),
        ({"prompt": [True]}, "prompt", "token ids"),
        ({"prompt": "x" * 2001}, "prompt", "2,001 tokens; at most 2,000"),
        ({"prompt": "\ud800"}, "prompt", "half a character"),
        ({"prompt": ["a"] * 129}, "prompt", "128"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "130 texts; at most 128"),
        (PROMPT | {"max_tokens": -1}, "max_tokens", "whole number from 0 to 400"),
        (PROMPT | {"max_tokens": 401}, "max_tokens", "from 0 to 400"),
        (PROMPT | {"max_tokens": 0}, "max_tokens", "asks for nothing"),
        (PROMPT | {"max_tokens": 1.5}, "max_tokens", "whole number"),
        (PROMPT | {"max_tokens": "7"}, "max_tokens", "whole number"),
        (PROMPT | {"max_tokens": 10**50}, "max_tokens", "a very long number"),
        (PROMPT | {"temperature": -0.1}, "temperature", "at least 0"),
        (PROMPT | {"temperature": float("nan")}, "temperature", "finite"),
        (PROMPT | {"temperature": "hot"}, "temperature", "must be a number"),
        (PROMPT | {"top_p": 0}, "top_p", "must lie in (0, 1]"),
        (PROMPT | {"n": 0}, "n", "from 1 to 128"),
        (PROMPT | {"seed": -1}, "seed", "from 0"),
        (PROMPT | {"seed": 2**64}, "seed", "64 bits"),
        (PROMPT | {"stop": [""]}, "stop", "none empty"),
        (PROMPT | {"stop": ["a"] * 17}, "stop", "up to 16"),
        (PROMPT | {"logprobs": 21}, "logprobs", "from 0 to 20"),
        (PROMPT | {"logprobs": True}, "logprobs", "whole number"),
        (PROMPT | {"stream": 1}, "stream", "true or false"),
        (PROMPT | {"stream_options": {"include_usage": True}}, "stream_options", "with stream"),
        (PROMPT | {"suffix": "end"}, "suffix", "not supported"),
        (PROMPT | {"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        (PROMPT | {"presence_penalty": 0.5}, "presence_penalty", "not supported"),
        (PROMPT | {"best_of": 3}, "best_of", "not supported"),
        (PROMPT | {"user": 5}, "user", "string"),
        (PROMPT | {"max_token": 5}, "max_token", "unknown field 'max_token'; known: "),
        (PROMPT | {"messages": []}, "messages", "unknown field"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_named(served, pair, fields, param, said):
    status, values = served.json("POST", "/v1/completions", {"model": pair[0].name, **fields})
    assert status == 400 and values["error"]["type"] == "invalid_request_error"
    assert said in values["error"]["message"] and values["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "send an object"),
        (b'"text"', "send an object"),
        (b'{"prompt": "\xff"}', "not UTF-8: byte 12 is 0xff"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"n": 1' + b"0" * 5000 + b"}", "not JSON"),
        (b'{"prompt": "a", "prompt": "b"}', "two values of the name"),
    ],
    ids=["cut", "empty", "list", "string", "utf-8", "deep", "digits", "twice"],
)
def test_a_body_that_is_no_object_is_refused(served, body, said):
    for path in ("/v1/completions", "/watch"):
        status, values = served.json("POST", path, body)
        assert status == 400 and said in values["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/..%2fapp.py", 404),
        ("GET", "/page/%2e%2e/app.py", 404),
        ("GET", "/page//etc/passwd", 404),
        ("GET", "/page/index.html%00", 404),
        ("GET", "/runs/..%2f..%2fetc/report", 404),
        ("GET", "/runs/../report", 404),
        ("GET", "/runs/{}/report", 404),
        ("GET", "/runs/{}/curve?after=-1", 400),
        ("GET", "/runs/{}/curve?after=%D9%A3", 400),
    ],
)
def test_there_is_nothing_there(served, pair, method, path, status):
    found, values = served.json(method, path.format(pair[0].name))
    assert found == status and values["error"]["message"]


@pytest.mark.parametrize("model", ["nobody", "", "../spiking", "x" * 10_000])
def test_an_unknown_model_is_a_404_that_names_those_there_are(served, pair, model):
    status, values = served.json("POST", "/v1/completions", {"model": model, **PROMPT})
    assert status == 404 and values["error"]["code"] == "model_not_found"
    assert all(run.name in values["error"]["message"] for run in pair) and len(values["error"]["message"]) < 300


def test_of_several_models_one_must_be_named(served):
    status, values = served.json("POST", "/v1/completions", PROMPT)
    assert status == 400 and values["error"]["param"] == "model"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", "", "[", "a b"]
)
def test_a_host_that_is_not_ours_is_refused(served, host):
    connection = served.open(f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert connection.recv(100).split()[1] in (b"421", b"400")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:9000", "[::1]:80"])
def test_a_forwarded_port_is_ours(served, host):
    assert served.ask("GET", "/health", host=host)[0] == 200


def test_on_the_network_numbers_are_ours_and_names_are_not():
    hosts = Hosts("0.0.0.0", ["models.example"])
    assert hosts.knows("192.168.0.5:8000") and hosts.knows("[fe80::1]") and hosts.knows("models.example")
    assert not hosts.knows("evil.example")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_requests_of_other_origins_are_refused(served, pair, headers):
    fields = {"model": pair[0].name, **PROMPT}
    status, values = served.json("POST", "/v1/completions", fields, headers=headers)
    assert status == 403 and values["error"]["code"] == "cross_origin"
    _, answer, _ = served.ask("GET", "/v1/models", headers=headers)
    assert "Access-Control-Allow-Origin" not in answer


def test_a_link_from_elsewhere_opens_the_page(served):
    visit = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert served.ask("GET", "/", headers=visit)[0] == 200


def test_a_form_of_another_page_sends_no_json(served):
    assert served.ask("POST", "/v1/completions", b"{}", headers={"Content-Type": "text/plain"})[0] == 415


def test_a_large_body_is_refused_announced_or_not(served):
    assert served.json("POST", "/v1/completions", b"x" * ((1 << 20) + 1))[0] == 413
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{served.port}\r\nContent-Type: application/json\r\n"
    connection = served.open(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
    with pytest.raises(OSError):
        for _ in range(400):
            connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
    lies = served.open(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
    assert lies.recv(100).split()[1] == b"413"


def test_large_heads_are_refused(served):
    connection = served.open(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    try:
        for _ in range(400):
            connection.sendall(b"X-Header: " + b"x" * 4000 + b"\r\n")
        said = connection.recv(100)
    except ConnectionError:
        said = b"HTTP/1.1 400"
    assert said.split()[1] == b"400"


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET", b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: b\r\n"],
    ids=["nothing", "verb", "headers"],
)
def test_a_head_that_does_not_end_ends_the_connection(hasty, beginning):
    connection = hasty.open(beginning)
    with pytest.raises(ConnectionError):
        if connection.recv(1) == b"":
            raise ConnectionError


def test_a_body_that_does_not_come_is_a_408(hasty):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{hasty.port}\r\nContent-Type: application/json\r\n"
    connection = hasty.open(f"{head}Content-Length: 100\r\n\r\n{{".encode())
    assert connection.recv(100).split()[1] == b"408"


def test_what_is_no_http_is_refused(served):
    connection = served.open(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert connection.recv(100).split()[1] == b"400"


def test_a_key_is_asked_for(pair):
    with serving_runs(pair[1], key="word") as served:
        fields = {**PROMPT, "max_tokens": 1}
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Cookie": "spikegpt=a"}):
            status, values = served.json("POST", "/v1/completions", fields, headers=wrong)
            assert status == 401 and values["error"]["code"] == "invalid_api_key"
        right = {"Authorization": "Bearer word"}
        assert served.json("POST", "/v1/completions", fields, headers=right)[0] == 200
        assert [served.ask("GET", path)[0] for path in ("/", "/health", "/runs", "/metrics")] == [200, 200, 401, 401]
        # the page gets a cookie for it, which no script sees
        status, headers, _ = served.ask("POST", "/session", {}, headers=right)
        cookie, *rules = headers["Set-Cookie"].split("; ")
        assert status == 204 and {"HttpOnly", "SameSite=Strict"} <= set(rules)
        assert served.ask("GET", "/runs", headers={"Cookie": cookie})[0] == 200


def test_the_server_says_what_a_browser_may_do(served):
    _, headers, _ = served.ask("GET", "/")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert socket.gethostname() not in str(headers)
