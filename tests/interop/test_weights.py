"""Weights of others: the authors' files import by the command, give their logits, and export to the same tensors."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from command_line import spikegpt
from safetensors.torch import load_file, save_file

from spikegpt.checkpoint.weights import load_model
from spikegpt.common.errors import SpikegptError
from spikegpt.config import ModelConfig
from spikegpt.interop.names import huggingface_name, official_name
from spikegpt.interop.weights import export_weights, import_weights
from spikegpt.model.network import SpikeGPT

GOLDEN = Path(__file__).parents[1] / "golden"
BLOCKS = {"spikegpt_train_a": "output", **dict.fromkeys(("rwkv4_a", "rwkv5_a", "rwkv6_a", "rwkv7_a"), "none")}
UNREAD = {f"blocks.0.att.{name}" for name in ("v0", "v1", "v2")}


def golden(name: str):
    arrays = np.load(GOLDEN / f"{name}.npz")
    return {
        key.removeprefix("param."): torch.from_numpy(arrays[key]).float()
        for key in arrays.files
        if key.startswith("param.")
    }, arrays


def words(path: Path, size: int) -> Path:
    """A tokenizer with `size` tokens."""
    vocabulary = {f"w{i}": i for i in range(size)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "w0"}
    path.write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "Whitespace"}})
    )
    return path


@pytest.fixture
def authors_file(tmp_path):
    """Returns a function that writes golden weights as the authors' file, with a tokenizer beside it."""

    def write(name: str, change=lambda weights: weights) -> Path:
        weights, _ = golden(name)
        folder = tmp_path / "given"
        folder.mkdir(exist_ok=True)
        words(folder / "tokenizer.json", weights["emb.weight"].shape[0])
        torch.save(change(weights), folder / f"{name}.pth")
        return folder / f"{name}.pth"

    return write


@pytest.mark.parametrize("name", BLOCKS)
def test_the_authors_weights_import_by_the_command_and_give_their_logits(name, authors_file, tmp_path):
    done = spikegpt("import", authors_file(name), "--out", tmp_path / "model", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["config"]["spiking"] == BLOCKS[name]
    model, _ = load_model(tmp_path / "model")
    _, arrays = golden(name)
    logits = model(torch.from_numpy(arrays["idx"]).long()).logits.detach().double().numpy()
    assert np.abs(logits - arrays["logits64"]).max() < 1e-4 * np.abs(arrays["logits64"]).max()


@pytest.mark.parametrize("variant, switches", [("binarised", {}), ("asis", {"binary_embedding": False})])
def test_published_inference_is_reproduced_token_by_token(variant, switches, authors_file, tmp_path):
    # the authors' script rescales from the sixth layer on, and this model has two: the switch must not matter
    import_weights(authors_file("spikegpt_train_a"), tmp_path / "model", rescale_every=6, **switches)
    model, _ = load_model(tmp_path / "model")
    arrays = np.load(GOLDEN / "spikegpt_rnn_a.npz")
    ids, state, logits = torch.from_numpy(golden("spikegpt_train_a")[1]["idx"]).long(), None, []
    for token in ids.split(1, dim=1):
        step = model(token, state)
        logits, state = [*logits, step.logits], step.state
    assert np.abs(torch.cat(logits, dim=1).detach().numpy() - arrays[f"logits.{variant}"]).max() < 1e-4


def test_rescaling_is_exact_for_a_dense_model_and_weakens_a_spiking_one():
    torch.manual_seed(0)
    ids = torch.randint(256, (1, 40))
    logits, firing = {}, {}
    for spiking in ("none", "output"):
        for every in (0, 2):
            model = SpikeGPT(ModelConfig(n_layer=6, n_embd=32, spiking=spiking, rescale_every=every)).eval()
            torch.manual_seed(1)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            output = model(ids)
            logits[spiking, every] = output.logits
            firing[spiking, every] = {name: spikes.mean().item() for name, spikes in output.spikes.items()}
    # up to LayerNorm's epsilon beside a smaller variance
    torch.testing.assert_close(logits["none", 2], logits["none", 0], rtol=1e-3, atol=1e-3)
    fired = [firing["output", every]["blocks.5.time_mix_neuron"] for every in (0, 2)]
    assert fired[1] < 0.5 * fired[0]


def test_an_imported_model_has_no_text_of_its_own(authors_file, tmp_path):
    import_weights(authors_file("rwkv4_a"), tmp_path / "model")
    done = spikegpt("evaluate", tmp_path / "model", check=False)
    assert done.returncode == 1 and "give one with --file FILE" in done.stderr


@pytest.mark.parametrize("name", BLOCKS)
def test_they_export_to_the_same_tensors(name, authors_file, tmp_path):
    import_weights(authors_file(name), tmp_path / "model")
    done = spikegpt("export", tmp_path / "model", tmp_path / "back.pth")
    assert done.returncode == 0, done.stderr
    back, weights = torch.load(tmp_path / "back.pth", weights_only=True), golden(name)[0]
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[key], weights[key]) for key in weights)


def test_a_hugging_face_folder_is_written_and_read(authors_file, tmp_path):
    import_weights(authors_file("rwkv4_a"), tmp_path / "model")
    export_weights(tmp_path / "model", tmp_path / "theirs", "huggingface")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert {
        "rwkv.embeddings.weight",
        "rwkv.blocks.0.pre_ln.bias",
        "rwkv.blocks.1.attention.time_mix_receptance",
        "head.weight",
    } <= theirs.keys()
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_type"] == "rwkv"
    config = import_weights(tmp_path / "theirs", tmp_path / "again")
    assert config.spiking == "none"
    ours, again = (load_file(tmp_path / folder / "model.safetensors") for folder in ("model", "again"))
    assert ours.keys() == again.keys() and all(torch.equal(ours[key], again[key]) for key in ours)


def test_every_name_goes_there_and_back():
    names = [name for name, _ in SpikeGPT(ModelConfig(n_layer=2, n_embd=8, spiking="none")).named_parameters()]
    assert [official_name(huggingface_name(name)) for name in names] == names


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {f"_forward_module.{name}": tensor for name, tensor in weights.items()},
        lambda weights: {name: tensor.squeeze() for name, tensor in weights.items()},
        lambda weights: {"model": weights, "step": {}},
        lambda weights: dict(reversed(weights.items())),
    ],
    ids=["prefix", "squeezed", "nested", "order"],
)
def test_the_forms_that_files_come_in_are_one(change, authors_file, tmp_path):
    import_weights(authors_file("rwkv4_a", change), tmp_path / "model")
    ours, weights = load_file(tmp_path / "model" / "model.safetensors"), golden("rwkv4_a")[0]
    assert all(torch.equal(ours[name], weights[name]) for name in weights)


def test_half_precision_is_widened(authors_file, tmp_path):
    import_weights(
        authors_file("rwkv4_a", lambda weights: {n: t.bfloat16() for n, t in weights.items()}), tmp_path / "model"
    )
    ours, weights = load_file(tmp_path / "model" / "model.safetensors"), golden("rwkv4_a")[0]
    assert all(torch.equal(ours[name], weights[name].bfloat16().float()) for name in weights)


class Touches:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_its_code_not_run(tmp_path, authors_file):
    file, trap = (
        authors_file("rwkv4_a", lambda weights: weights | {"trap": Touches(tmp_path / "ran")}),
        tmp_path / "ran",
    )
    done = spikegpt("import", file, "--out", tmp_path / "model", check=False)
    assert done.returncode == 1 and "could run code: refused" in done.stderr and "Traceback" not in done.stderr
    bare = tmp_path / "bare_rwkv.pth"
    bare.write_bytes(pickle.dumps(Touches(trap)))
    with pytest.raises(SpikegptError, match="refused"):
        import_weights(bare, tmp_path / "model")
    assert not trap.exists()


def without(weights, *names):
    return {name: tensor for name, tensor in weights.items() if name not in names}


def test_each_tensor_that_is_missing_or_too_many_is_named(authors_file, tmp_path):
    gone = ("blocks.1.att.key.weight", "ln_out.bias")
    file = authors_file("rwkv4_a", lambda weights: without(weights, *gone) | {"blocks.0.extra": torch.zeros(3)})
    with pytest.raises(
        SpikegptError, match=r"missing: blocks.1.att.key.weight, ln_out.bias; unexpected: blocks.0.extra"
    ) as error:
        import_weights(file, tmp_path / "model")
    assert "nearest preset: tiny" in str(error.value)
    assert not (tmp_path / "model").exists()


def test_a_tensor_of_another_shape_is_named(authors_file, tmp_path):
    file = authors_file("rwkv4_a", lambda weights: weights | {"blocks.0.ffn.key.weight": torch.zeros(5, 7)})
    with pytest.raises(SpikegptError, match=r"blocks.0.ffn.key.weight is \(5, 7\), want"):
        import_weights(file, tmp_path / "model")


def without_unread(weights):
    """RWKV-7 as other trainers write it: without what the first layer never reads, in another order."""
    return {name: weights[name] for name in reversed(weights) if name not in UNREAD}


def test_rwkv7_is_the_same_without_what_nothing_reads(authors_file, tmp_path):
    config = import_weights(authors_file("rwkv7_a", without_unread), tmp_path / "model")
    assert (config.mixer, config.head_size, config.lora_ranks) == ("rwkv7", 12, (7, 5, 3, 11))
    weights, arrays = golden("rwkv7_a")
    logits = load_model(tmp_path / "model")[0](torch.from_numpy(arrays["idx"]).long()).logits
    assert np.abs(logits.detach().double().numpy() - arrays["logits64"]).max() < 1e-4
    export_weights(tmp_path / "model", tmp_path / "back.pth", "pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == weights.keys() - UNREAD
    assert all(torch.equal(back[name], weights[name]) for name in back)


def test_one_layer_of_rwkv7_is_read_without_what_nothing_reads(authors_file, tmp_path):
    def one_layer(weights):
        return {
            name: tensor for name, tensor in without_unread(weights).items() if "blocks." not in name or ".0." in name
        }

    config = import_weights(authors_file("rwkv7_a", one_layer), tmp_path / "model")
    assert config.n_layer == 1
    assert (config.lora_ranks[0], config.lora_ranks[1], config.lora_ranks[3]) == (7, 5, 11)
    export_weights(tmp_path / "model", tmp_path / "back.pth", "pth")
    assert torch.load(tmp_path / "back.pth", weights_only=True).keys() == one_layer(golden("rwkv7_a")[0]).keys()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w | {"blocks.0.att.time_mix_k": torch.zeros(1, 1, 36)}, "of RWKV-7 .* and of RWKV-4"),
        (lambda w: w | {"blocks.0.ffn.s_emb.weight": torch.zeros(61, 36)}, "deep embedding"),
        (lambda w: w | {"blocks.0.qkv.weight": torch.zeros(36, 36)}, "deep embedding in attention"),
        (lambda w: {name: t for name, t in w.items() if "att.x_r" not in name}, r"blocks.0.att.x_r"),
        (lambda w: w | {"blocks.2.att.w1": torch.zeros(36)}, r"blocks.2.att.w1 is \(36,\), want a matrix"),
        (lambda w: {name: t for name, t in w.items() if name != "blocks.2.att.r_k"}, "blocks.2.att.r_k is missing"),
        (lambda w: w | {"blocks.1.att.g1": torch.zeros(36, 12)}, r"blocks.1.att.g1 is \(36, 12\), want \(36, 11\)"),
    ],
)
def test_what_is_no_rwkv7_is_refused_in_one_line(change, words, authors_file, tmp_path):
    with pytest.raises(SpikegptError, match=words) as refused:
        import_weights(authors_file("rwkv7_a", change), tmp_path / "model")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("part, family", [("att.ln_x.weight", "RWKV-5"), ("att.time_maa_x", "RWKV-6")])
def test_another_generation_is_called_by_its_name(part, family, authors_file, tmp_path):
    with pytest.raises(SpikegptError, match=family):
        import_weights(
            authors_file("rwkv4_a", lambda weights: weights | {f"blocks.0.{part}": torch.zeros(1)}), tmp_path / "model"
        )


def test_what_neither_size_nor_name_tells_is_asked(authors_file, tmp_path):
    file = authors_file("rwkv4_a")
    file = file.rename(file.with_name("weights.pth"))
    with pytest.raises(SpikegptError, match=r"say --spiking output or --spiking none"):
        import_weights(file, tmp_path / "model")
    assert import_weights(file, tmp_path / "model", spiking="output").spiking == "output"


def test_a_tokenizer_of_another_vocabulary_is_refused(authors_file, tmp_path):
    file = authors_file("rwkv4_a")
    with pytest.raises(SpikegptError, match="it is not this model's tokenizer"):
        import_weights(file, tmp_path / "model", tokenizer=words(tmp_path / "large.json", 1000))
    (file.parent / "tokenizer.json").unlink()
    with pytest.raises(SpikegptError, match="--tokenizer FILE"):
        import_weights(file, tmp_path / "model")


def test_a_file_that_is_cut_off_is_said_to_be(authors_file, tmp_path):
    file = authors_file("rwkv4_a")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(SpikegptError, match=r"not a whole file|refused"):
        import_weights(file, tmp_path / "model")
    save_file(golden("rwkv4_a")[0], tmp_path / "rwkv.safetensors")
    (tmp_path / "rwkv.safetensors").write_bytes((tmp_path / "rwkv.safetensors").read_bytes()[:5000])
    with pytest.raises(SpikegptError, match="not a whole safetensors file"):
        import_weights(tmp_path / "rwkv.safetensors", tmp_path / "model")


def test_nothing_is_overwritten(authors_file, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").touch()
    with pytest.raises(SpikegptError, match="is not empty"):
        import_weights(authors_file("rwkv4_a"), tmp_path / "model")


def test_a_spike_driven_model_has_no_name_elsewhere(trained, tmp_path):
    with pytest.raises(SpikegptError, match="which no other library's layout names; export it with --layout auto"):
        export_weights(trained, tmp_path / "file.pth", "pth")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from Linux' /proc")
def test_importing_and_loading_need_less_than_twice_the_size(tmp_path):
    config = ModelConfig(n_layer=6, n_embd=512, vocab_size=20000, spiking="none")
    # not what lies in memory by chance: that may be NaN
    weights = {name: torch.zeros_like(tensor) for name, tensor in SpikeGPT(config, init=False).state_dict().items()}
    torch.save(weights, tmp_path / "rwkv.pth")
    size = (tmp_path / "rwkv.pth").stat().st_size
    words(tmp_path / "tokenizer.json", 20000)
    # the peak so far is what the process needs without a model; getrusage would begin with the peak of its parent
    code = (
        "import re, sys; from pathlib import Path; import torch; from spikegpt.interop.weights import import_weights; "
        "from spikegpt.checkpoint.weights import load_model; torch.set_num_threads(1); folder = Path(sys.argv[1]); "
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]); "
        "before = peak(); "
        "import_weights(folder / 'rwkv.pth', folder / 'model'); middle = peak(); load_model(folder / 'model'); "
        "print(middle - before, peak() - before)"
    )
    done = processes.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    importing, both = map(int, done.stdout.split())
    assert size > 100e6
    # loading holds the model once, so the measurement itself is right
    assert importing < 2 * size and 0.9 * size < both < 2 * size, (importing / size, both / size)
