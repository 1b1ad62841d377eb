"""Every command and every program on the pages of docs/ runs, on small sizes, page by page in an empty folder.

What a page says of sizes and steps is shrunk here and nowhere else. The network is ours: blocks marked `hub` meet a hub
that serves small models, blocks marked `net` a download and data sets of a few lines; `lm-eval` runs by itself, with
the local task it names.
"""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import sys
from pathlib import Path

import processes
import pytest
from classification import write_examples
from corpora import zipped
from http_server import Reply, serving
from questions import QUESTIONS, TASK

from spikegpt.cli import verbs as command_line
from spikegpt.config import ModelConfig
from spikegpt.data import corpora
from spikegpt.data import hub_rows as hub_datasets
from spikegpt.data.corpora import CORPORA
from spikegpt.interop.weights import export_weights
from spikegpt.model.mixers import MIXERS

TREE = Path(__file__).parent.parent
PAGES = sorted((TREE / "docs").glob("*.md"))
TEXTS = [*PAGES, *(TREE / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]
BLOCK = re.compile(r"^```(sh|python)(?: (hub|net|lm-eval))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL_MODEL = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16"]
SHORT_TRAINING = ["--steps", "4", "--batch-size", "2", "--warmup-steps", "1", "--eval-tokens", "200"]
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "


def shrunk(words: list[str], cache: Path) -> list[str]:
    """The command with small sizes; what a command gives itself comes first, and the last counts."""
    verb = words[words.index("spikegpt") + 1] if "spikegpt" in words else ""
    more = (
        ["--cache", str(cache), "--threads", "1"]
        if verb in ("train", "evaluate", "measure", "compare", "context", "simulate")
        else []
    )
    if verb == "data":
        more = ["--cache", str(cache)]
    if verb == "finetune-classify":
        more = ["--threads", "1", "--max-tokens", "16"]
    if verb == "train" and "--resume" in words:
        more = ["--cache", str(cache)]
    elif verb == "train":
        more += SHORT_TRAINING if "--from" in words else SMALL_MODEL + SHORT_TRAINING
    return words + more


def run(line: str, cache: Path, apart: dict[str, str] | None) -> None:
    """Run a command; in a process of its own, with these variables, if it is to run apart."""
    words = shrunk(shlex.split(line), cache)
    if words[0] == "spikegpt" and apart is None:
        assert command_line.VERBS[words[1]](words[2:]) == 0
        return
    words = (
        [sys.executable, "-m", *words]
        if words[0] == "spikegpt"
        else [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    )
    env = {
        **os.environ,
        "PYTHONPATH": str(TREE),
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = processes.run(words, env=env | (apart or {}))
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with what the pages suppose a user has."""
    monkeypatch.chdir(tmp_path)
    for name in ("my_texts", "other_texts", "tasks"):
        Path(name).mkdir()
    Path("my_texts", "a.txt").write_text(TEXT * 100)
    Path("other_texts", "a.txt").write_text(TEXT[::-1] * 100)
    Path("documents.jsonl").write_text("".join(json.dumps({"body": TEXT[n:]}) + "\n" for n in range(60)))
    Path("passages.jsonl").write_text(json.dumps({"text": TEXT.strip()}) + "\n")
    Path("questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    Path("tasks", "questions.yaml").write_text(TASK.replace("FILE", str(Path("questions.jsonl").absolute())))
    for seed, name in enumerate(("reviews.tsv", "reviews_test.tsv")):
        write_examples(Path(name), 60, seed)


@pytest.fixture
def network(monkeypatch):
    """enwik8 of some kilobytes from a server of our own, and data sets of a few rows."""
    archive = zipped(enwik8=(TEXT * 100).encode())
    rows = [{"text": TEXT, "label": n % 2} for n in range(40)]
    with serving(Reply(archive)) as (url, _):
        facts = {"urls": (url,), "size": len(archive), "sha256": hashlib.sha256(archive).hexdigest()}
        monkeypatch.setitem(CORPORA, "enwik8", dataclasses.replace(CORPORA["enwik8"], **facts))
        monkeypatch.setattr(hub_datasets, "rows", lambda name, config, split: iter(rows))
        monkeypatch.setattr(corpora, "split_names", lambda name, config: ["train"])
        monkeypatch.setattr(corpora, "check_files", lambda *_: None)
        yield


@pytest.fixture
def mixers():
    """What a page adds to the generations is gone after it."""
    before = dict(MIXERS)
    yield
    MIXERS.clear()
    MIXERS.update(before)


def name_of(page: Path) -> str:
    """The page's name, with its folder."""
    return page.relative_to(TREE).with_suffix("").as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_says_runs(page, folder, network, mixers, cache, request):
    apart, program, blocks = {"lm-eval": {"HF_HUB_OFFLINE": "1"}}, {}, BLOCK.findall(page.read_text())
    if any(mark == "hub" for _, mark, _ in blocks):
        apart["hub"] = {"HF_ENDPOINT": request.getfixturevalue("published_hub")}
    for language, mark, text in blocks:
        if language == "python":
            exec(compile(text.replace("steps=20", "steps=2"), page.name, "exec"), program)
            continue
        for line in text.strip().splitlines():
            run(line, cache, apart.get(mark))


def test_what_the_readme_says_is_on_a_page_and_so_runs():
    """Commands line by line, programs whole."""

    def parts_of(page: Path) -> set[str]:
        blocks = BLOCK.findall(page.read_text())
        return {part for kind, _, text in blocks for part in (text.splitlines() if kind == "sh" else [text])}

    readme = parts_of(TREE / "README.md")
    assert len(readme) > 5 and readme <= set().union(*map(parts_of, PAGES))


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_of_a_page_lead_somewhere(page):
    for target, part in re.findall(r"\]\((?!http)([^)#]*)(#[^)]*)?\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE) if part else []
        assert not part or part[1:] in {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_files_that_a_page_names_are_there(page):
    """Named from the top, from within the package, or from the page's own folder. NAME is the reader's."""
    names = set(re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|cuh?|toml|json|png))`", page.read_text()))
    bases = TREE, TREE / "spikegpt", page.parent
    missing = {name for name in names if "NAME" not in name and not any((base / name).exists() for base in bases)}
    assert not missing


@pytest.fixture
def published_hub(hub, make_run):
    """Address of a hub with small models of the names on the pages."""
    folder, address = hub
    dense = make_run("published", ModelConfig(n_layer=1, n_embd=16, ctx_len=16, spiking="none"), steps=1)
    export_weights(dense, folder / "RWKV" / "rwkv-4-169m-pile", "huggingface")
    export_weights(dense, folder / "EleutherAI" / "gpt-neox-20b", "huggingface")
    for name in (
        "BlinkDL/rwkv-4-pile-169m/RWKV-4-Pile-169M-20220807-8023.pth",
        "ridger/SpikeGPT-OpenWebText-216M/SpikeGPT-216M.pth",
    ):
        (folder / name).parent.mkdir(parents=True)
        export_weights(dense, folder / name, "pth")
    return address
