"""Where weights are exported to: what stands there is never replaced, and a disk that is full is one line."""

import dataclasses
import os
import signal
import socket
import stat

import pytest

from spikegpt.checkpoint.run import save_model
from spikegpt.common.errors import SpikegptError, in_words
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.interop.weights import FILES, LAYOUTS, export_weights
from spikegpt.model.network import SpikeGPT

resource = pytest.importorskip("resource", reason="of POSIX")
CONFIG = ModelConfig(n_layer=1, n_embd=8, spiking="none")


@pytest.fixture
def model(tmp_path):
    """The folder of a dense model, which every layout takes."""
    (tmp_path / "mine").mkdir()
    save_model(tmp_path / "mine", SpikeGPT(CONFIG), ByteTokenizer())
    return tmp_path / "mine"


def make_device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def make_folder(path):
    path.mkdir()
    (path / "precious").touch()


THERE = {
    "file": lambda path: path.write_text("precious"),
    "folder": make_folder,
    "FIFO": os.mkfifo,
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "device": make_device,
    "link": lambda path: path.symlink_to(path.parent / "mine"),
    "link to nothing": lambda path: path.symlink_to(path.parent / "nowhere"),
}


def what_stands_in(folder):
    return {
        path: (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns)
        for path in folder.rglob("*")
        for found in [path.lstat()]
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", THERE)
def test_export_replaces_nothing_and_does_not_hang(kind, layout, model, tmp_path, monkeypatch):
    # the paths of sockets are short
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "there"
    THERE[kind](target)
    before = what_stands_in(tmp_path)
    with pytest.raises(SpikegptError, match=r"there (exists|is not empty); give another name, or remove it"):
        export_weights(model, target, layout)
    assert what_stands_in(tmp_path) == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_into_an_empty_folder_is_for_layouts_of_folders(layout, model, tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    if layout in FILES:
        with pytest.raises(SpikegptError, match="there exists; give another name"):
            export_weights(model, target, layout)
        assert not list(target.iterdir())
    else:
        export_weights(model, target, layout)
        assert (target / "model.safetensors").is_file()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="files are limited by POSIX")
@pytest.mark.parametrize("layout", ["pth", "auto", "nir"])
def test_a_disk_that_is_full_is_an_error_in_one_line(layout, tmp_path):
    (tmp_path / "mine").mkdir()
    save_model(tmp_path / "mine", SpikeGPT(dataclasses.replace(CONFIG, n_embd=64)), ByteTokenizer())
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises((SpikegptError, OSError)) as error:
            export_weights(tmp_path / "mine", tmp_path / "out", layout)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    said = in_words(error.value) if isinstance(error.value, OSError) else str(error.value)
    assert "\n" not in said and str(tmp_path / "out") in said
