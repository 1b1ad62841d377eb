"""A server under its clients: the time to the first token on the page, 50 clients at once, and the same one at a time.

    python benchmarks/serve.py               50 clients, 2,000 requests; some minutes
    python benchmarks/serve.py --quick       5 clients, 60 requests
    python benchmarks/serve.py --run RUN     of a trained run; by default of random weights, 5M parameters

Of 50 clients two leave in the middle of every third answer and two read slowly. Every whole answer is compared with
what `generate` writes for the same prompt and seed alone. The server is a process of its own, with one thread per
model; its clients and the comparison share the machine with it. Writes results/serve.json; last line: JSON.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
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
from spikegpt.model import SpikeGPT

SIZES = {"n_layer": 6, "n_embd": 256, "ctx_len": 256}
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, "
FIRSTS, REQUESTS = 30, 2000
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
    parser.add_argument("--requests", type=int, default=REQUESTS, help="with another number, no result file")
    options = parser.parse_args()
    clients, number, tokens = (5, 60, 12) if options.quick else (50, options.requests, 24)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = options.run
        if run is None:
            torch.manual_seed(0)
            run = Path(folder) / "random-5m"
            run.mkdir()
            save_model(run, SpikeGPT(ModelConfig(**SIZES)), ByteTokenizer())
            write_manifest(run)
        command = [sys.executable, "-m", "spikegpt", "serve", run, "--port", "0", "--threads", "1", "--device", "cpu"]
        tree = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": tree}
        server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True, env=environment)
        try:
            result = measure(Client(server.stdout.readline().split()[1]), run, clients, requests_of(number, tokens))
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    if number == REQUESTS:
        write_result("serve", result)
    print(json.dumps(result))


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
