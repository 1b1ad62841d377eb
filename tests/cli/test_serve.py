"""`spikegpt serve` as a user starts it, and what it refuses before it listens."""

import json
import signal
import socket
import sys
import urllib.request

import processes
import pytest
from command_line import spikegpt

pytest.importorskip("uvicorn", reason="the extra serve is not installed")


@pytest.mark.slow
def test_it_serves_until_it_is_stopped(trained):
    command = [sys.executable, "-m", "spikegpt", "serve", trained, "--port", "0", "--threads", "1", "--device", "cpu"]
    process = processes.start(command, stdout=-1, stderr=-1)
    try:
        line = process.stdout.readline()
        assert line.startswith("trained: http://127.0.0.1:") and line.endswith("/   (Ctrl-C ends)\n")
        with urllib.request.urlopen(line.split()[1] + "v1/models") as answer:
            assert json.load(answer)["data"][0]["id"] == "trained"
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130 and "Traceback" not in said


def test_without_a_run_and_models_that_come_along_it_asks_for_one(tmp_path, monkeypatch):
    monkeypatch.setattr("spikegpt.checkpoint.shipped.home", lambda: tmp_path)
    done = spikegpt("serve", check=False)
    assert done.returncode == 2 and "no run given; spikegpt serve RUN [RUN ...]" in done.stderr


def test_a_port_that_is_taken_is_refused(trained):
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = spikegpt("serve", trained, "--port", other.getsockname()[1], check=False)
    assert done.returncode == 1 and "give another --port" in done.stderr


def test_an_address_that_is_not_here_is_refused(trained):
    done = spikegpt("serve", trained, "--host", "192.0.2.1", check=False)
    assert done.returncode == 1 and "cannot listen on 192.0.2.1, port 8000" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot read the API key"), ("", "is empty"), ("schlüssel", "ASCII"), ("a b", "ASCII")]
)
def test_a_key_that_cannot_be_sent_is_refused(trained, tmp_path, content, said):
    if content is not None:
        (tmp_path / "key").write_text(content)
    done = spikegpt("serve", trained, "--api-key", f"@{tmp_path / 'key'}", check=False)
    assert done.returncode == 1 and said in done.stderr
