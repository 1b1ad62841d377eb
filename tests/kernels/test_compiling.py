"""What is kept on disk of compiled functions belongs to the sources as they are now."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

from spikegpt.kernels import compiling

CALLEE = """
from spikegpt.kernels.compiling import compiled

@compiled()
def inner(x):
    return x {}
"""
CALLER = """
from spikegpt.kernels.compiling import compiled
from callee_of_test import inner

@compiled()
def outer(x):
    return inner(x) * 10
"""


def load(folder: Path, monkeypatch) -> ModuleType:
    """Import the caller and its callee anew, as another process would."""
    compiling._digest.cache_clear()
    for name in ("callee_of_test", "caller_of_test"):
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    return sys.modules["caller_of_test"]


def test_a_change_in_another_file_is_compiled_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "caller_of_test.py").write_text(CALLER)
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 1"))
    assert load(tmp_path, monkeypatch).outer(1) == 20
    again = load(tmp_path, monkeypatch)
    assert again.outer(1) == 20
    # the second time it came from the disk
    assert sum(again.outer.stats.cache_hits.values()) == 1
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 2"))
    changed = load(tmp_path, monkeypatch)
    assert changed.outer(1) == 30
    assert not changed.outer.stats.cache_hits


def test_compiling_is_announced_once_and_reading_what_was_compiled_is_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "caller_of_test.py").write_text(CALLER)
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 1"))
    compiling._announce.cache_clear()
    load(tmp_path, monkeypatch).outer(1)
    assert capsys.readouterr().err == "compiling kernels, once per machine: about 10 s\n"
    compiling._announce.cache_clear()
    load(tmp_path, monkeypatch).outer(1)
    assert capsys.readouterr().err == ""


def test_a_cache_of_older_sources_is_not_opened(tmp_path, monkeypatch):
    """Numba reads the types in it before it looks how old they are, and dies of those that are no more."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "caller_of_test.py").write_text(CALLER)
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 1"))
    load(tmp_path, monkeypatch).outer(1)
    kept = list((tmp_path / "__pycache__").glob("*.nbi"))
    assert kept
    for index in kept:
        index.write_bytes(index.read_bytes()[:20] + b"no such type")
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 4"))
    assert load(tmp_path, monkeypatch).outer(1) == 50


def test_a_change_of_the_kernels_is_compiled_anew_where_they_are_called(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "caller_of_test.py").write_text(CALLER)
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 1"))
    assert load(tmp_path, monkeypatch).outer(1) == 20
    digest, kernels = compiling._digest, Path(compiling.__file__).parent
    monkeypatch.setattr(compiling, "_digest", cache(lambda folder: "new" if folder == kernels else digest(folder)))
    changed = load(tmp_path, monkeypatch)
    assert changed.outer(1) == 20 and not changed.outer.stats.cache_hits


def test_a_call_with_a_number_that_is_written_is_compiled_as_one_with_any_number(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    calls = "inner(x) * 10"
    (tmp_path / "caller_of_test.py").write_text(CALLER.replace(calls, "inner(x) + inner(2) + inner(x=3)"))
    (tmp_path / "callee_of_test.py").write_text(CALLEE.format("+ 1"))
    module = load(tmp_path, monkeypatch)
    assert calls in CALLER and module.outer(1) == 2 + 3 + 4
    assert len(module.inner.signatures) == 1
