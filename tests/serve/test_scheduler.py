"""Many clients at once: those who go, those who are slow, those who wait; nothing stays behind."""

import concurrent.futures
import contextlib
import socket
import threading
import time

import pytest
from served import PATIENCE_S, serving_runs


def wait_until(is_so, seconds=30):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def narrow(pair):
    """Room for two texts, and a queue of four."""
    with serving_runs(pair[0], texts=2, queue=4, most_tokens=100_000, queue_s=2.0) as server:
        yield server


def of(server):
    return next(iter(server.server.runs.values())).scheduler


@pytest.fixture(autouse=True)
def empty_afterwards(narrow):
    yield
    wait_until(lambda: (of(narrow).running, of(narrow).waiting, of(narrow).watched) == (0, 0, 0))


LONG = {"prompt": "It was", "max_tokens": 100_000, "stream": True}


def begin(server, fields=LONG, path="/v1/completions"):
    """A client whose text has begun."""
    connection = server.open(server.post(path, fields))
    assert connection.recv(4000).startswith(b"HTTP/1.1 200")
    return connection


def hold(server):
    """Two clients that wait for long answers, and take all places."""
    connections = [server.open(server.post("/v1/completions", LONG | {"stream": False})) for _ in range(2)]
    wait_until(lambda: of(server).running == 2)
    return connections


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_place(narrow, stream):
    connection = narrow.open(narrow.post("/v1/completions", LONG | {"stream": stream, "n": 4}))
    wait_until(lambda: of(narrow).running == 2 and of(narrow).waiting == 2)
    connection.close()
    wait_until(lambda: of(narrow).running == 0)


def test_a_client_that_is_killed_frees_its_place(narrow):
    connection = begin(narrow)
    # reset, as a process that dies does
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    connection.close()
    wait_until(lambda: of(narrow).running == 0)


def test_a_client_that_does_not_read_is_cut_off(hasty):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", hasty.port))
    connection.sendall(hasty.post("/v1/completions", LONG | {"logprobs": 20}))
    wait_until(lambda: of(hasty).running == 1)
    wait_until(lambda: of(hasty).running == 0)
    assert hasty.complete(prompt="It", max_tokens=1)


def test_beyond_the_queue_there_is_a_429_that_says_when_to_come_again(narrow):
    holders = hold(narrow)
    waiting = narrow.open(narrow.post("/v1/completions", LONG | {"n": 4}))
    wait_until(lambda: of(narrow).waiting == 4)
    status, headers, content = narrow.ask("POST", "/v1/completions", {"prompt": "It"})
    assert status == 429 and headers["Retry-After"] == "1" and b"4 texts wait already" in content
    for connection in (*holders, waiting):
        connection.close()


def test_a_request_that_waits_for_too_long_is_given_up(narrow):
    holders = hold(narrow)
    status, values = narrow.json("POST", "/v1/completions", {"prompt": "It"})
    assert status == 503 and values["error"]["code"] == "queue_timeout"
    for connection in holders:
        connection.close()


def test_a_text_that_is_not_done_in_time_is_broken_off(pair):
    with serving_runs(pair[0], most_tokens=10**6, answer_s=0.3) as server:
        status, values = server.json("POST", "/v1/completions", {"prompt": "It", "max_tokens": 10**6})
        assert status == 504 and "not done after 0.3 s" in values["error"]["message"]
        *_, last = server.events("/v1/completions", {"prompt": "It", "max_tokens": 10**6, "stream": True})
        assert "not done" in last["error"]["message"]


def test_a_request_of_many_texts_holds_up_nobody(pair):
    with serving_runs(pair[0], texts=2) as server, concurrent.futures.ThreadPoolExecutor(1) as pool:
        many = pool.submit(server.complete, prompt="It", max_tokens=200, n=40)
        wait_until(lambda: of(server).waiting > 30)
        # its turn comes after one text of the other's, not after forty
        server.complete(prompt="It", max_tokens=2)
        assert of(server).waiting > 20 and not many.done()


def test_texts_that_are_watched_are_bounded(pair):
    # the watchers do not read; on a busy machine it takes a while until all are there
    with serving_runs(pair[0], most_tokens=10**6, client_s=3600.0) as server:
        fields = {"prompt": "It", "max_tokens": 10**6}
        watchers = [begin(server, fields, "/watch") for _ in range(8)]
        one_more = server.open(server.post("/watch", fields))
        assert one_more.recv(4000).startswith(b"HTTP/1.1 429")
        assert server.complete(prompt="It", max_tokens=2)
        for connection in watchers:
            connection.close()
        wait_until(lambda: of(server).watched == 0)


def read_to_the_end(connection, said):
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(1 << 16):
            said += part


def test_the_end_of_the_server_is_told(pair):
    said = bytearray()
    with serving_runs(pair[0], most_tokens=10**6) as server:
        reader = threading.Thread(target=read_to_the_end, args=(begin(server), said))
        reader.start()
        wait_until(lambda: len(said) > 1000)
    reader.join(PATIENCE_S)
    assert b"the server is closing" in said[-1000:] and b"[DONE]" not in said


def test_the_end_of_the_server_does_not_wait_for_a_client_that_does_not_read(pair):
    said = bytearray()
    with serving_runs(pair[0], most_tokens=10**6) as server:
        connection = begin(server)
        # long enough for whatever lies between the two to be full
        wait_until(lambda: of(server).running == 1)
        time.sleep(1)
    read_to_the_end(connection, said)
    assert b"[DONE]" not in said


def test_metrics_count_what_was_done(narrow):
    narrow.complete(prompt="It", max_tokens=3)
    _, headers, content = narrow.ask("GET", "/metrics")
    values = dict(line.rsplit(" ", 1) for line in content.decode().splitlines() if not line.startswith("#"))
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(values['spikegpt_tokens_total{model="spiking"}']) >= 3
    assert values['spikegpt_texts_running{model="spiking"}'] == "0"
    assert int(values["process_resident_memory_bytes"]) > 10**7
    assert values['spikegpt_first_token_seconds_bucket{le="+Inf"}'] == values["spikegpt_first_token_seconds_count"]
