"""A server under its clients: the time to the first token on the page, 50 clients at once, and the same one at a time.

    python benchmarks/serve.py               50 clients, 2,000 requests; some minutes
    python benchmarks/serve.py --quick       5 clients, 60 requests
    python benchmarks/serve.py --run RUN     of a trained run; by default of random weights, 5M parameters
    python benchmarks/serve.py --twin RUN    of a dense RWKV-4 beside Hugging Face's server; by default random weights

Of 50 clients two leave in the middle of every third answer and two read slowly. Every whole answer is compared with
what `generate` writes for the same prompt and seed alone. The server is a process of its own, with one thread per
model; its clients and the comparison share the machine with it.

Then the dense twin in our server and, exported to RwkvForCausalLM, in `transformers serve` (pip install fastapi), one
server after the other: the same prompts, the most likely token always, one thread each, and the answers compared. Its
continuous batching wants attention with a cache in pages, so it computes one request at a time. Writes
results/serve.json; last line: JSON.
"""

import argparse
import contextlib
import http.client
import importlib.util
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple

import torch
from measure import write_result

from spikegpt.checkpoint.files import write_manifest
from spikegpt.checkpoint.run import save_model
from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ModelConfig, SamplingConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.generate import generate
from spikegpt.interop.weights import export_weights
from spikegpt.model import SpikeGPT

SIZES = {"n_layer": 6, "n_embd": 256, "ctx_len": 256}
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
FIRSTS, REQUESTS = 30, 2000
# of either server beside the other, and those of them that one client asks
BESIDE, BESIDE_ALONE = 200, 20
START_S = 120
# bytes that a slow reader takes at a time, and how long it then waits
SIP_BYTES, SIP_S = 200, 0.02


class Asked(NamedTuple):
    """One request: what is asked, whether its tokens come as they are drawn, and what becomes of it."""

    fields: dict
    manner: str
    """whole, stream, slow, or killed: the client leaves after the first token"""


class Answer(NamedTuple):
    """Its text, None of a client that left; and seconds to the first byte of it and to the end."""

    asked: Asked
    text: str | None
    first_s: float
    whole_s: float


class Client:
    """Sends requests to the server and reads the answers."""

    def __init__(self, address: str):
        self._host = re.fullmatch(r"http://(.*)/", address)[1]

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection(self._host, timeout=300)
        connection.request("GET", path)
        content = connection.getresponse().read()
        connection.close()
        return content

    def send(self, path: str, fields: dict) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection(self._host, timeout=300)
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read().decode())
        return connection, answer

    def complete(self, asked: Asked) -> Answer:
        """Return what a client of this manner gets."""
        began, first = time.perf_counter(), 0.0
        is_stream = asked.manner != "whole"
        connection, answer = self.send("/v1/completions", {**asked.fields, "stream": is_stream})
        content = b""
        while part := answer.read1(SIP_BYTES if is_stream else -1):
            first = first or time.perf_counter() - began
            content += part
            if asked.manner == "killed":
                connection.close()
                return Answer(asked, None, first, 0.0)
            if asked.manner == "slow":
                time.sleep(SIP_S)
        connection.close()
        return Answer(asked, _text(content, is_stream), first, time.perf_counter() - began)

    def first_token_s(self, prompt: str, seed: int) -> float:
        """Return the seconds from the click to the first drawn token with its spikes."""
        began = time.perf_counter()
        connection, answer = self.send("/watch", {"prompt": prompt, "max_tokens": 1, "seed": seed})
        while line := answer.readline():
            if b'"is_prompt": false' in line:
                break
        taken = time.perf_counter() - began
        answer.read()
        connection.close()
        return taken


def _text(content: bytes, is_stream: bool) -> str:
    if not is_stream:
        return json.loads(content)["choices"][0]["text"]
    events = [part.removeprefix("data: ") for part in content.decode().split("\n\n") if part]
    if events.pop() != "[DONE]":
        raise RuntimeError("a stream broke off")
    return "".join(json.loads(event)["choices"][0]["text"] for event in events)


def requests_of(number: int, tokens: int) -> list[Asked]:
    """Return requests with prompts, lengths, temperatures and manners of all kinds, seeded."""
    dice, asked = random.Random(1), []
    for seed in range(number):
        start, length = dice.randrange(len(TEXT) - 40), dice.randrange(5, 40)
        fields = {"prompt": TEXT[start : start + length], "max_tokens": dice.randrange(tokens // 2, tokens + 1)}
        fields |= {"seed": seed, "temperature": dice.choice([0.5, 0.8, 1.0]), "top_p": dice.choice([0.9, 1.0])}
        manner = {0: "slow", 1: "slow", 2: "killed", 3: "killed"}.get(seed % 50) if seed % 3 else None
        asked.append(Asked(fields, manner or dice.choice(["whole", "stream"])))
    return asked


def ask_all(client: Client, asked: list[Asked], clients: int) -> tuple[list[Answer], list[str], float]:
    """Return the answers, what went wrong, and the seconds that so many clients took, each one request at a time."""
    waiting: Queue[Asked] = Queue()
    for one in asked:
        waiting.put(one)
    answers, faults = [], []

    def work() -> None:
        while True:
            try:
                one = waiting.get_nowait()
            except Empty:
                return
            try:
                answers.append(client.complete(one))
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                faults.append(f"{one}: {error}")

    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, faults, time.perf_counter() - began


def differing(run: Path, answers: list[Answer]) -> list[str]:
    """Return the requests whose answer is not what `generate` writes alone."""
    model, tokenizer = load_model(run)
    wrong = []
    for answer in answers:
        fields = dict(answer.asked.fields)
        prompt = fields.pop("prompt")
        if answer.text is not None and generate(model, tokenizer, [prompt], SamplingConfig(**fields)) != [answer.text]:
            wrong.append(str(answer.asked))
    return wrong


def tokens_per_s(answers: list[Answer], seconds: float) -> float:
    return sum(one.asked.fields["max_tokens"] for one in answers if one.text is not None) / seconds


def milliseconds(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return {"median": round(1000 * statistics.median(seconds), 1), "p95": round(1000 * cuts[-1], 1)}


def resident(client: Client) -> int:
    return int(re.search(rb"process_resident_memory_bytes (\d+)", client.get("/metrics"))[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", type=Path)
    parser.add_argument("--twin", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="with another number, no result file")
    options = parser.parse_args()
    clients, number, tokens = (5, 60, 12) if options.quick else (50, options.requests, 24)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run or random_model(Path(folder) / "random-5m", "input")
        twin = options.twin or random_model(Path(folder) / "random-5m-twin", "none")
        with our_server(run) as client:
            result = measure(client, run, clients, requests_of(number, tokens))
        result["beside_hugging_face"] = beside(twin, Path(folder), clients, 20 if options.quick else BESIDE)
    if number == REQUESTS:
        write_result("serve", result)
    print(json.dumps(result))


def random_model(folder: Path, spiking: str) -> Path:
    torch.manual_seed(0)
    folder.mkdir()
    save_model(folder, SpikeGPT(ModelConfig(**SIZES, spiking=spiking)), ByteTokenizer())
    write_manifest(folder)
    return folder


@contextlib.contextmanager
def our_server(run: Path) -> Iterator[Client]:
    """A client of our server, which answers for `run` until the block ends."""
    words = [sys.executable, "-m", "spikegpt", "serve", run, "--port", "0", "--threads", "1", "--device", "cpu"]
    with process(words, stdout=subprocess.PIPE, text=True) as server:
        yield Client(server.stdout.readline().split()[1])


@contextlib.contextmanager
def their_server(folder: Path) -> Iterator[Client]:
    """A client of Hugging Face's server, which answers for the model in `folder`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    words = [program, "serve", folder, "--host", "127.0.0.1", "--port", port, "--device", "cpu", "--log-level", "error"]
    client, began = Client(f"http://127.0.0.1:{port}/"), time.monotonic()
    with process(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while True:
            with contextlib.suppress(OSError):
                client.get("/health")
                break
            if server.poll() is not None or time.monotonic() - began > START_S:
                raise RuntimeError(f"transformers serve did not begin to answer; try: transformers serve {folder}")
            time.sleep(0.2)
        yield client


@contextlib.contextmanager
def process(words: list, **how) -> Iterator[subprocess.Popen]:
    """A program with one thread per product, ended with the block."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    running = subprocess.Popen(list(map(str, words)), env=environment, **how)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        running.wait()


def beside(twin: Path, folder: Path, clients: int, number: int) -> dict | str:
    """Return the figures of a dense model in our server and in Hugging Face's, or why there are none."""
    if importlib.util.find_spec("fastapi") is None:
        return "not measured: fastapi is not installed, which transformers serve needs"
    exported = folder / "exported"
    export_weights(twin, exported, "huggingface")
    # no sampling, so that the two can be held against each other
    fields = {"temperature": 0, "model": None}
    asked = [Asked({**one.fields, **fields}, "whole") for one in requests_of(number, 24)]
    found, texts = {}, {}
    for name, serving, model in (
        ("ours", our_server(twin), twin.name),
        ("hugging_face", their_server(exported), str(exported)),
    ):
        named = [Asked({**one.fields, "model": model}, one.manner) for one in asked]
        with serving as client:
            # the first request compiles, or loads
            client.complete(named[0])
            alone, faults, alone_s = ask_all(client, named[:BESIDE_ALONE], 1)
            answers, more_faults, seconds = ask_all(client, named, clients)
        texts[name] = {one.asked.fields["seed"]: one.text for one in answers}
        found[name] = {
            "failures": len(faults) + len(more_faults),
            "requests_per_s": round(len(answers) / seconds, 2),
            "tokens_per_s": round(tokens_per_s(answers, seconds), 1),
            "one_client_tokens_per_s": round(tokens_per_s(alone, alone_s), 1),
            "answer_ms": milliseconds([one.whole_s for one in answers]),
        }
        for fault in (faults + more_faults)[:3]:
            print(name, fault, file=sys.stderr)
    same = sum(texts["hugging_face"].get(seed) == text for seed, text in texts["ours"].items())
    return {"clients": clients, "requests": number, "same_answers": same, **found}


def measure(client: Client, run: Path, clients: int, asked: list[Asked]) -> dict:
    """Return all figures."""
    firsts = [client.first_token_s(TEXT[:50], seed) for seed in range(FIRSTS)]
    alone = [one for one in asked if one.manner in ("whole", "stream")][: max(len(asked) // 20, 10)]
    one_answers, faults, one_seconds = ask_all(client, alone, 1)
    beginning = len(asked) // 4
    first_answers, first_faults, first_seconds = ask_all(client, asked[:beginning], clients)
    before = resident(client)
    answers, more_faults, seconds = ask_all(client, asked[beginning:], clients)
    after = resident(client)
    answers, seconds = first_answers + answers, first_seconds + seconds
    wrong = differing(run, answers)
    faults += first_faults + more_faults
    for fault in (faults + wrong)[:5]:
        print(fault, file=sys.stderr)
    model, _ = load_model(run)
    running = sum(int(value) for value in re.findall(rb"spikegpt_texts_\w+\{.*\} (\d+)", client.get("/metrics")))
    return {
        "parameters": model.count_parameters(),
        "first_token_ms": milliseconds(firsts),
        "clients": clients,
        "requests": len(asked),
        "killed": sum(one.manner == "killed" for one in asked),
        "slow": sum(one.manner == "slow" for one in asked),
        "failures": len(faults),
        "differing": len(wrong),
        "tokens_per_s": round(tokens_per_s(answers, seconds), 1),
        "one_client_tokens_per_s": round(tokens_per_s(one_answers, one_seconds), 1),
        "answer_ms": milliseconds([one.whole_s for one in answers if one.text is not None]),
        "one_client_answer_ms": milliseconds([one.whole_s for one in one_answers]),
        "memory_mb": {"after_a_quarter": round(before / 1e6, 1), "after_all": round(after / 1e6, 1)},
        "texts_left_behind": running,
    }


if __name__ == "__main__":
    main()
