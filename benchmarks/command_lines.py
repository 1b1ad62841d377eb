"""Type seeded odd command lines, and see what becomes of them: done, or refused in one line.

    python benchmarks/command_lines.py [--lines 1000] [--seed 0] [--quick]

Each is a verb with what it needs and one to three odd things: flags with values out of range, of another kind, empty,
endless, of a thousand digits, with control characters; flags of other verbs, misspelt, twice, without a value; paths
that are missing, of another kind, or too long. A verb has to end with 0, 1 or 2, and if not with 0, with one line that
begins "error: "; all else is a fault: a traceback, another status, no line or several, a control character on the
terminal, more than a minute. Last line: JSON with the counts.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shlex
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from spikegpt.cli.verbs import VERBS
from spikegpt.cli.verbs import main as spikegpt
from spikegpt.config import ModelConfig, TrainConfig
from spikegpt.train import train

# none of them is a large number that a flag takes: a line that is right must be done soon
NUMBERS = ["-1", "0", "1", "2", "1.5", "-0.0", "1e-320", "nan", "inf", "-inf", "1e309", str(10**21), str(2**64)]
NUMBERS += ["9" * 5000, "1_0", "0x10", "٣", "1,5", "True"]
WORDS = ["", " ", "x", "None", "é日本", "\x1b[31mred", "a\nb", "\udcff", "=cmd|' /C calc'!A0", "x" * 300, "-", "--"]
WORDS += ["--x=1", "input", "none", "cpu", "cuda:9", "byte", "seneca22", "../..", "%s", "{}", "$(id)", "'", '"']
LIMIT_S = 60


class Outcome(NamedTuple):
    """What became of a line: done, refused, or a fault; and what it said."""

    verdict: str
    said: str


def prepare(folder: Path) -> None:
    """Make what lines name: a run, a text, labelled texts, a broken folder."""
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    (folder / "rows.tsv").write_text("text\tlabel\n" + "good film\t1\nbad film\t0\n" * 20)
    (folder / "not.json").write_text("[" * 100_000)
    (folder / "empty").mkdir()
    (folder / "nothing.txt").touch()
    sizes = ModelConfig(n_layer=1, n_embd=8, ctx_len=8)
    config = TrainConfig(
        data=(str(folder / "text.txt"),), steps=2, batch_size=1, warmup_steps=1, eval_tokens=64, threads=1
    )
    for name, model in (("run", sizes), ("dense", sizes.twin())):
        train(model, config, folder / name, cache=folder / "cache", quiet=True)


# what makes each verb work, and soon
BASES = {
    "train": "--data text.txt --out new --cache cache --steps 1 --n-layer 1 --n-embd 8 --ctx-len 8 --batch-size 1 "
    "--eval-tokens 64 --warmup-steps 0",
    "convert": "dense --out healed --cache cache --steps 1 --eval-tokens 64 --warmup-steps 0",
    "data": "text.txt --binidx tokens",
    "generate": "run a --max-tokens 2",
    "evaluate": "run --tokens 32 --cache cache",
    "finetune-classify": "run --train rows.tsv --test rows.tsv --epochs 1 --seeds 0 --out classified",
    "measure": "run --tokens 16 --cache cache --prices seneca22",
    "compare": "run --tokens 16 --cache cache --prices seneca22",
    "context": "run --lengths 8 --texts 1 --cache cache",
    "import": "run --out imported",
    "export": "run exported",
    "info": "run",
    "doctor": "--threads 1",
}
PATHS = [
    "run",
    "text.txt",
    "rows.tsv",
    "not.json",
    "empty",
    "nothing.txt",
    "missing",
    "text.txt/x",
    ".",
    "run/config.json",
]
# how often a verb is tried: what takes seconds, seldom
WEIGHTS = {"doctor": 0.1, "measure": 0.5, "compare": 0.5, "context": 0.5, "finetune-classify": 0.5}


def flags_of(verb: str) -> list[str]:
    """Return the flags that a verb's help shows."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        spikegpt([verb, "--help-all"])
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", out.getvalue())) - {"--help", "--help-all", "--task"})


def command_lines(dice: random.Random) -> Iterator[list[str]]:
    """Yield odd command lines without end."""
    flags = {verb: flags_of(verb) for verb in BASES}
    everything = sorted(set().union(*flags.values()))

    def value() -> str:
        return dice.choice(dice.choice([NUMBERS, NUMBERS, WORDS, PATHS]))

    def odd(verb: str) -> list[str]:
        kind, flag = dice.random(), dice.choice(flags[verb])
        if kind < 0.7:
            return [flag, value()] if dice.random() < 0.7 else [f"{flag}={value()}"]
        if kind < 0.8:
            return [dice.choice(everything), value()]
        if kind < 0.9:
            return [flag]
        place = dice.randrange(2, len(flag) + 1)
        return [flag[:place] + dice.choice("xé-=") + flag[place:], value()]

    while True:
        if dice.random() < 0.05:
            yield [value() for _ in range(dice.randrange(4))]
            continue
        (verb,) = dice.choices(list(BASES), [WEIGHTS.get(name, 1.0) for name in BASES])
        words = shlex.split(BASES[verb])
        if dice.random() < 0.2 and words[:1] and not words[0].startswith("-"):
            words[0] = dice.choice(PATHS)
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            place = dice.choice([0, len(words)])
            words[place:place] = odd(verb)
        yield [verb, *words]


def call(words: list[str], limit_s: int = 0) -> Outcome:
    """Run one command line in this process; with `limit_s`, no longer than that."""
    out, err = io.StringIO(), io.StringIO()
    if limit_s:
        signal.signal(signal.SIGALRM, _too_long)
        signal.alarm(limit_s)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = spikegpt(words)
            except SystemExit as ended:
                status = ended.code
    except TimeoutError:
        return Outcome("hang", "")
    # a traceback is what is looked for here
    except Exception:  # noqa: BLE001
        return Outcome("traceback", traceback.format_exc()[-1500:])
    finally:
        signal.alarm(0)
    said = err.getvalue()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\udc80-\udcff]", out.getvalue() + said):
        return Outcome("control character", said + out.getvalue())
    if status == 0:
        return Outcome("done" if not errors else "error with status 0", said)
    if status not in (1, 2) or len(errors) != 1 or not said.splitlines()[-1].startswith("error: "):
        return Outcome(f"status {status} with {len(errors)} lines", said)
    return Outcome("refused", said)


def _too_long(*_) -> None:
    raise TimeoutError


def try_all(folder: Path, count: int, seed: int, limit_s: int = 0) -> tuple[dict[str, int], list[str]]:
    """Return (verdict -> how often, the faults in words) of so many command lines, typed in `folder`."""
    prepare(folder)
    verdicts: Counter[str] = Counter()
    faults, before = [], Path.cwd()
    os.chdir(folder)
    try:
        for _, words in zip(range(count), command_lines(random.Random(seed)), strict=False):
            found = call(words, limit_s)
            verdicts[found.verdict] += 1
            if found.verdict not in ("done", "refused"):
                faults.append(f"{found.verdict}: {words!r:.600}\n{found.said[-1500:]}")
    finally:
        os.chdir(before)
    return dict(verdicts), faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="50 lines, no result file")
    options = parser.parse_args()
    count = 50 if options.quick else options.lines
    # what a server does with odd requests: tests/serve/test_refusals.py
    assert set(BASES) | {"lm-eval", "serve"} == set(VERBS)
    with tempfile.TemporaryDirectory() as folder:
        verdicts, faults = try_all(Path(folder), count, options.seed, LIMIT_S)
    from measure import end_search

    end_search("command_lines", {"lines": count, "seed": options.seed, "verdicts": verdicts}, faults, options.quick)


if __name__ == "__main__":
    main()
