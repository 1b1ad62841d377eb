"""Damage a run folder in seeded ways, and see what each verb makes of it: nothing wrong may be taken in silence.

    python benchmarks/mutated_runs.py [--mutations 500] [--seed 0] [--quick]

A file of a broken-off run, its text or its token file is damaged: a digit changed, bits flipped, a stretch zeroed, cut
short, emptied, removed, lines doubled. Then `train --resume`, `evaluate`, `generate`, `measure` and `info` read it.
What comes of it is unchanged, said (it differs, and a line of stderr says why), refused (one line), silent (it differs
without a word), or a traceback; the last two are faults. Last line: JSON with the counts.
"""

import argparse
import collections
import contextlib
import io
import json
import random
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from spikegpt.cli.verbs import main as spikegpt
from spikegpt.common.files import sha256_of
from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.train import train
from spikegpt.train.journal import read_metrics

FAULTS = ("silent", "traceback")


class Outcome(NamedTuple):
    """What a verb did: its exit status, None for a traceback, what came of it, and what it said beside."""

    status: int | None
    result: str
    said: set[str]


def prepare(folder: Path) -> None:
    """Make text, run and cache: two whole checkpoints and the log of a few steps more, as a kill leaves them."""
    folder.mkdir(parents=True)
    letters = random.Random(1)
    words = ["".join(letters.choices("etaoinshrdlu", k=letters.randint(2, 8))) for _ in range(200)]
    (folder / "text.txt").write_text("\n".join(" ".join(letters.choices(words, k=8)) for _ in range(300)))
    model = ModelConfig(n_layer=1, n_embd=16, ctx_len=16)
    config = TrainConfig(
        data=(str(folder / "text.txt"),),
        tokenizer="char",
        steps=12,
        batch_size=2,
        warmup_steps=2,
        save_every=3,
        eval_every=3,
        eval_tokens=64,
        sample_every=6,
        log_every=1,
        threads=1,
        precision="no",
        keep=3,
    )
    train(model, config, folder / "run", cache=folder / "cache", quiet=True)
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000012")


def mutations(random: random.Random) -> Iterator[tuple[str, Callable[[bytes], bytes | None]]]:
    """Yield (name, content -> damaged content, None to remove the file) without end."""

    def at(content: bytes) -> int:
        return random.randrange(max(len(content), 1))

    def digit(content: bytes) -> bytes:
        places = [place for place, byte in enumerate(content) if chr(byte).isdigit()]
        if not places:
            return flip(content)
        place = random.choice(places)
        other = random.choice([byte for byte in b"0123456789" if byte != content[place]])
        return content[:place] + bytes([other]) + content[place + 1 :]

    def flip(content: bytes) -> bytes:
        place = at(content)
        return content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]

    def zero(content: bytes) -> bytes:
        place = at(content)
        return content[:place] + bytes(len(content[place : place + 1000])) + content[place + 1000 :]

    def double(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        place = random.randrange(len(lines))
        return b"".join(lines[: place + 1] + lines[place:])

    kinds = {
        "digit": digit,
        "flip": flip,
        "zero": zero,
        "double a line": double,
        "cut": lambda content: content[: at(content)],
        "empty": lambda content: b"",
        "remove": lambda content: None,
    }
    # a digit is what a hand changes, and what is hardest to see
    weights = [3, 2, 1, 1, 1, 1, 1]
    while True:
        (name,) = random.choices(list(kinds), weights)
        yield name, kinds[name]


def files_of(folder: Path) -> list[Path]:
    """Return what may be damaged, relative to `folder`; the run's configuration several times, for all rests on it."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return files + [path for path in files if path.name == "config.json"] * 3


def call(folder: Path, verb: str) -> Outcome:
    """Run one verb on the run in `folder`."""
    run, cache = str(folder / "run"), ["--cache", str(folder / "cache")]
    arguments = {
        "resume": ["train", "--resume", run, "--json", *cache],
        "evaluate": ["evaluate", run, "--json", "--tokens", "64", *cache],
        "generate": ["generate", run, "e", "--max-tokens", "20", "--json"],
        "measure": ["measure", run, "--json", "--tokens", "32", *cache],
        "info": ["info", run, "--json"],
    }[verb]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = spikegpt(arguments)
        # a traceback is what is looked for here
        except Exception:  # noqa: BLE001
            return Outcome(None, traceback.format_exc(), set())
    said = set(err.getvalue().splitlines())
    return Outcome(status, _result(folder / "run", verb, out.getvalue()) if status == 0 else err.getvalue(), said)


def _result(run: Path, verb: str, printed: str) -> str:
    """What counts of a verb's work: not how long it took."""
    if verb == "resume":
        facts = [(line["step"], line["kind"], line["bits_per_byte"]) for line in read_metrics(run)]
        weights = sha256_of(run / "checkpoints" / "step-00000012" / "model.safetensors")
        return json.dumps([facts, weights, (run / "samples.txt").read_text()])
    if verb == "measure":
        return json.dumps([{**one, "tokens_per_s": None} for one in json.loads(printed)])
    return printed


def judge(found: Outcome, wanted: Outcome) -> str:
    if found.status is None:
        return "traceback"
    if found.status != 0:
        return "refused" if found.result.startswith(("error: ", "warning: ")) else "silent"
    if found.result == wanted.result:
        return "unchanged"
    return "said" if found.said - wanted.said else "silent"


def try_all(folder: Path, count: int, seed: int, verbs: list[str]) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Return (verb -> verdict -> how often, the faults in words) of so many damages, each tried with every verb."""
    pristine, work, dice = folder / "pristine", folder / "work", random.Random(seed)
    prepare(work)
    shutil.copytree(work, pristine)

    def fresh() -> None:
        shutil.rmtree(work)
        shutil.copytree(pristine, work)

    wanted = {}
    for verb in verbs:
        fresh()
        wanted[verb] = call(work, verb)
        assert wanted[verb].status == 0, wanted[verb]
    counts = {verb: collections.Counter() for verb in verbs}
    faults, paths = [], files_of(pristine)
    for _, (name, damage) in zip(range(count), mutations(dice), strict=False):
        path = dice.choice(paths)
        damaged = damage((pristine / path).read_bytes())
        for verb in verbs:
            fresh()
            if damaged is None:
                (work / path).unlink()
            else:
                (work / path).write_bytes(damaged)
            found = call(work, verb)
            verdict = judge(found, wanted[verb])
            counts[verb][verdict] += 1
            if verdict in FAULTS:
                faults.append(f"{verb} after {name} of {path}: {verdict}\n{found.result[-1500:]}")
    return {verb: dict(counter) for verb, counter in counts.items()}, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbs", nargs="+", default=["resume", "evaluate", "generate", "measure", "info"])
    parser.add_argument("--quick", action="store_true", help="20 mutations, no result file")
    options = parser.parse_args()
    count = 20 if options.quick else options.mutations
    with tempfile.TemporaryDirectory() as folder:
        counts, faults = try_all(Path(folder), count, options.seed, options.verbs)
    from measure import end_search

    end_search("mutated_runs", {"mutations": count, "seed": options.seed, "verdicts": counts}, faults, options.quick)


if __name__ == "__main__":
    main()
