"""Every command and every program on the pages of docs/ runs, on small sizes, page by page in an empty folder.

What a page says of sizes and steps is shrunk here and nowhere else. Blocks marked `hub` meet a hub of our own.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spikegpt import __main__ as command_line
from spikegpt.config import ModelConfig
from spikegpt.foreign import export_weights

TREE = Path(__file__).parent.parent
PAGES = sorted((TREE / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(sh|python)( hub)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL_MODEL = ["--n-layer", "1", "--n-embd", "16", "--ctx-len", "16"]
SHORT_TRAINING = ["--steps", "4", "--batch-size", "2", "--warmup-steps", "1", "--eval-tokens", "200"]
TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness. "


def shrunk(words: list[str], cache: Path) -> list[str]:
    """The command with small sizes; what a command gives itself comes first, and the last counts."""
    verb = words[words.index("spikegpt") + 1] if "spikegpt" in words else ""
    more = ["--cache", str(cache), "--threads", "1"] if verb in ("train", "evaluate", "measure", "compare") else []
    if verb == "train" and "--resume" in words:
        more = ["--cache", str(cache)]
    elif verb == "train":
        more += SHORT_TRAINING if "--from" in words else SMALL_MODEL + SHORT_TRAINING
    return words + more


def run(line: str, cache: Path, hub: str | None) -> None:
    words = shrunk(shlex.split(line), cache)
    if words[0] == "spikegpt" and hub is None:
        assert command_line.VERBS[words[1]](words[2:]) == 0
        return
    words = [sys.executable, "-m", *words] if words[0] == "spikegpt" else [sys.executable, "-m", "accelerate.commands.launch", *words[2:]]
    env = {**os.environ, "PYTHONPATH": str(TREE), "OMP_NUM_THREADS": "1", "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env | ({"HF_ENDPOINT": hub} if hub else {}), timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_says_runs(page, tmp_path, monkeypatch, cache, published_hub):
    blocks = BLOCK.findall(page.read_text())
    monkeypatch.chdir(tmp_path)
    for folder in ("my_texts", "other_texts"):
        Path(folder).mkdir()
        Path(folder, "a.txt").write_text(TEXT * 100)
    program = {}
    for language, on_hub, text in blocks:
        if language == "python":
            exec(compile(text.replace("steps=20", "steps=2"), page.name, "exec"), program)
            continue
        for line in text.strip().splitlines():
            run(line, cache, published_hub if on_hub else None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.fixture
def published_hub(hub, make_run):
    """Address of a hub with small models of the names on the pages."""
    folder, address = hub
    dense = make_run("published", ModelConfig(n_layer=1, n_embd=16, ctx_len=16, spiking="none"), steps=1)
    export_weights(dense, folder / "RWKV" / "rwkv-4-169m-pile", "huggingface")
    export_weights(dense, folder / "EleutherAI" / "gpt-neox-20b", "huggingface")
    for name in ("BlinkDL/rwkv-4-pile-169m/RWKV-4-Pile-169M-20220807-8023.pth", "ridger/SpikeGPT-OpenWebText-216M/SpikeGPT-216M.pth"):
        (folder / name).parent.mkdir(parents=True)
        export_weights(dense, folder / name, "pth")
    return address
