"""Small real runs that several test files share."""

import dataclasses
import threading
from http.server import ThreadingHTTPServer

import pytest
import torch
from cuda_on_host import HostLauncher
from hub_server import Hub
from runs import MODEL, TRAIN

from spikegpt.checkpoint import save_model
from spikegpt.checkpoint import shipped as shipped_models
from spikegpt.checkpoint.files import write_manifest
from spikegpt.checkpoint.shipped import PAIR
from spikegpt.config import ModelConfig
from spikegpt.data.tokenizers import ByteTokenizer
from spikegpt.kernels import gpu
from spikegpt.measure import listing
from spikegpt.model import SpikeGPT
from spikegpt.model.quantised import quantise_model
from spikegpt.neuron import verified_spikes
from spikegpt.train import trainer
from spikegpt.train.precision import Choice
from spikegpt.train.trainer import train


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=150, help="how many odd command lines are tried")
    parser.addoption("--whole", action="store_true", help="run all of what make test runs a sample of: minutes")


@pytest.fixture(autouse=True)
def one_thread():
    """Training sets the number of threads for the process; tests must not inherit it from one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def checked_spikes():
    """In tests every neuron proves that it emits its declared alphabet."""
    with verified_spikes():
        yield


@pytest.fixture(scope="session", autouse=True)
def float32_unless_asked():
    """No training here measures which precision is the faster one: that depends on what else the machine does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "agree_on_precision", lambda *given: Choice("no", None))
        yield


@pytest.fixture
def cache(tmp_path_factory):
    return tmp_path_factory.getbasetemp() / "cache"


@pytest.fixture
def make_run(tmp_path, cache):
    """Train a tiny model on the embedded corpus; keyword arguments change the training configuration."""

    def make(name: str = "run", model: ModelConfig = MODEL, **changes):
        run = tmp_path / name
        train(model, dataclasses.replace(TRAIN, **changes), run, cache=cache, quiet=True)
        return run

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """One trained run for tests that only read it."""
    base = tmp_path_factory.getbasetemp()
    run = base / "trained"
    train(MODEL, TRAIN, run, cache=base / "cache", quiet=True)
    return run


@pytest.fixture(params=[False, True], ids=["forwards", "backwards"])
def host(request, monkeypatch):
    """CUDA kernels run on the CPU, in both orders of their threads: none may depend on another."""
    launcher = HostLauncher(backwards=request.param)
    monkeypatch.setattr(gpu, "launch", launcher)
    # fills what torch.empty returns with NaN
    torch.use_deterministic_algorithms(True)
    yield launcher
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def hub(tmp_path):
    """(folder of the repositories, address) of a running hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root = tmp_path / "hub"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.root, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """The folder of small models that stand for those that come with spikegpt: novels-5m, and its dense twin."""
    home = tmp_path / "shipped"
    for name, spiking in zip(PAIR, ("input", "none"), strict=True):
        torch.manual_seed(0)
        model = SpikeGPT(dataclasses.replace(MODEL, spiking=spiking, weight_bits=8))
        quantise_model(model, 8)
        (home / name).mkdir(parents=True)
        save_model(home / name, model, ByteTokenizer())
        write_manifest(home / name)
    monkeypatch.setattr(shipped_models, "home", lambda: home)
    monkeypatch.setattr(listing, "home", lambda: home)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return home
