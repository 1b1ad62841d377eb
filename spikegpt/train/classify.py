"""Fine-tuning for classification: a linear head on what the language model's head reads at the last token of a text.

Padding stands behind a text and is never read from, so a text is classified in a batch as it is alone. The best epoch
is chosen on the valid examples; the test examples are read once, at the end.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.files import MANIFEST, check_finite, fault_of, is_finite, read_json, save_tensors, write_manifest
from ..checkpoint.weights import TensorFile, load_model
from ..common.devices import find_device
from ..common.errors import SpikegptError, warn_on_stderr
from ..common.files import locked, write_atomically
from ..common.tables import columns
from ..config import ClassifyConfig, ModelConfig, TrainConfig
from ..config.effects import doubts
from ..data.labelled import Example, Task
from ..data.tokenizers import Tokenizer, load_tokenizer
from ..evaluate.perplexity import NotFinite, mean_firing_rate
from ..model.network import SpikeGPT
from .latent import latent_of
from .loop import Advice, Forward, Loop
from .optimizer import make_optimizer
from .stop_signals import stop_now


class Classifier(nn.Module):
    """A language model without its head, and a linear one for `n_classes`."""

    def __init__(self, network: SpikeGPT, n_classes: int):
        super().__init__()
        self.network = network
        network.add_module("head", nn.Identity())
        self.score = nn.Linear(network.config.n_embd, n_classes)
        nn.init.normal_(self.score.weight, std=0.02)
        nn.init.zeros_(self.score.bias)

    def forward(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (logits (B, n_classes), spikes) of texts ids (B, T), whose first lengths (B,) tokens are real."""
        x, _, spikes = self.network.hidden(ids)
        return self.score(x[torch.arange(len(ids), device=ids.device), lengths - 1]), spikes


# token ids (T,) and the number of the class
_Encoded = tuple[Tensor, int]


class _Batch(NamedTuple):
    ids: Tensor
    lengths: Tensor
    labels: Tensor


def finetune(
    run: Path, task: Task, config: ClassifyConfig, out: Path, device: str | torch.device = "auto"
) -> dict[str, Any]:
    """Train one classifier per seed from the model in `run`, keep each in OUT/seed-N, and return plain results.

    Raises:
        SpikegptError: no whole model is there, the device is not there, a text cannot be encoded, training diverges, or
            `out` cannot be written, is in use, or holds classifiers already.
    """
    place = find_device(device)
    for doubt in doubts(config):
        warn_on_stderr(doubt)
    seeds: list[dict[str, Any]] = []
    with locked(out):
        check_free([out])
        for seed in config.seeds:
            torch.manual_seed(seed)
            # what speaks against the run is said once
            model, tokenizer = load_model(run, warn=lambda message: None) if seeds else load_model(run)
            # drawn on the CPU: the same numbers on every device
            classifier = Classifier(model, len(task.classes)).to(place)
            train, valid, test = (
                _encode(part, tokenizer, config.max_tokens) for part in (task.train, task.valid, task.test)
            )
            best, epoch = _train(classifier, train, valid, config)
            accuracy, firing_rate = _measure(classifier, test, config.batch_size)
            seeds.append(
                {
                    "seed": seed,
                    "valid_accuracy": best,
                    "test_accuracy": accuracy,
                    "epoch": epoch,
                    "firing_rate": firing_rate,
                }
            )
            save_classifier(out / f"seed-{seed}", classifier, tokenizer, task.classes)
    accuracies = [seed["test_accuracy"] for seed in seeds]
    return {
        "run": str(run),
        "spiking": model.config.spiking,
        "parameters": sum(parameter.numel() for parameter in classifier.parameters()),
        "accuracy": statistics.mean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "seeds": seeds,
    }


def check_free(folders: Sequence[Path]) -> None:
    """Raise SpikegptError if a classifier would be replaced: a folder holds some already, or is named twice."""
    for folder in folders:
        if folders.count(folder) > 1:
            raise SpikegptError(
                f"two of the runs are called {folder.name}, and one's classifiers would replace the other's; "
                "name each once, or fine-tune them one by one, each with an --out of its own"
            )
        for found in sorted(folder.glob("seed-*")):
            raise SpikegptError(f"{found} holds a classifier already; give another --out, or move it away")


def save_classifier(folder: Path, classifier: Classifier, tokenizer: Tokenizer, classes: tuple[str, ...]) -> None:
    """Write model.safetensors, config.json and tokenizer.json into `folder`; SpikegptError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder / "tokenizer.json")
        values = {"classes": list(classes), "model": classifier.network.config.to_dict()}
        write_atomically(folder / "config.json", json.dumps(values, indent=1))
        save_tensors(folder / "model.safetensors", classifier.state_dict())
        write_manifest(folder)
    except (OSError, SafetensorError) as error:
        raise SpikegptError(f"cannot write {folder}: {error}; free space, or give another --out") from error


def load_classifier(folder: Path) -> tuple[Classifier, Tokenizer, tuple[str, ...]]:
    """Return (classifier in evaluation mode, tokenizer, classes) that `save_classifier` wrote.

    Raises:
        SpikegptError: nothing whole is there.
    """
    folder = Path(folder)
    # classifiers from before they had a manifest are taken as they are
    if (folder / MANIFEST).exists() and (fault := fault_of(folder)) is not None:
        raise SpikegptError(f"{folder} does not hold a whole classifier: {fault}; fine-tune it anew")
    values = read_json(folder / "config.json")
    try:
        classifier = Classifier(SpikeGPT(ModelConfig.from_dict(values["model"]), init=False), len(values["classes"]))
        weights = dict(TensorFile(folder / "model.safetensors"))
        classifier.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SpikegptError(f"{folder} does not hold a whole classifier: {error}") from None
    for name, tensor in weights.items():
        check_finite(name, tensor, folder / "model.safetensors")
    return classifier.eval(), load_tokenizer(folder / "tokenizer.json"), tuple(values["classes"])


@torch.inference_mode()
def classify(classifier: Classifier, tokenizer: Tokenizer, texts: list[str], max_tokens: int = 512) -> Tensor:
    """Return the probabilities (B, n_classes) of texts."""
    encoded = _encode([Example(text, 0) for text in texts], tokenizer, max_tokens)
    batch = _pad(encoded, classifier.network.device)
    return torch.softmax(classifier(batch.ids, batch.lengths)[0].float(), dim=-1)


def _encode(examples: list[Example], tokenizer: Tokenizer, max_tokens: int) -> list[_Encoded]:
    encoded = []
    for text, label in examples:
        ids = tokenizer.encode(text.encode())[-max_tokens:]
        if len(ids) == 0:
            raise SpikegptError(f"the tokenizer makes no token of {text!r}; leave this example out")
        encoded.append((torch.from_numpy(ids.astype("int64")), label))
    return encoded


def _pad(encoded: list[_Encoded], device: torch.device) -> _Batch:
    ids = nn.utils.rnn.pad_sequence([ids for ids, _ in encoded], batch_first=True)
    lengths, labels = [len(ids) for ids, _ in encoded], [label for _, label in encoded]
    return _Batch(ids.to(device), torch.tensor(lengths, device=device), torch.tensor(labels, device=device))


def _batches(encoded: list[_Encoded], size: int, device: torch.device) -> Iterator[_Batch]:
    return (_pad(encoded[start : start + size], device) for start in range(0, len(encoded), size))


class _Classification:
    """The classes of texts as what a loop trains for.

    In each epoch every example comes once, in a new order; an epoch ends with an evaluation, and the weights of the
    best are remembered.
    """

    def __init__(self, classifier: Classifier, train: list[_Encoded], valid: list[_Encoded], config: ClassifyConfig):
        self.classifier, self.train, self.valid, self.config = classifier, train, valid, config
        self.batches: Iterator[_Batch] = iter(())
        self.best, self.epoch, self.weights = -1.0, 0, dict[str, Tensor]()

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.train) // self.config.batch_size)

    @property
    def advice(self) -> Advice:
        return Advice(
            batch=f"batch_size {self.config.batch_size} x max_tokens {self.config.max_tokens}",
            too_large="lower --batch-size or --max-tokens",
            diverged="Lower --lr",
        )

    def forward(self, step: int) -> Forward:
        if step % self.steps_per_epoch == 0:
            order = torch.randperm(len(self.train)).tolist()
            examples, device = [self.train[index] for index in order], self.classifier.network.device
            self.batches = _batches(examples, self.config.batch_size, device)
        batch = next(self.batches)
        logits, spikes = self.classifier(batch.ids, batch.lengths)
        cross_entropy = F.cross_entropy(logits.float(), batch.labels)
        return Forward(cross_entropy, {"cross_entropy": cross_entropy}, spikes)

    def evaluate(self, step: int) -> float:
        """Return the accuracy on valid; remember the weights if it was never better."""
        accuracy, _ = _measure(self.classifier, self.valid, self.config.batch_size)
        if accuracy > self.best:
            self.best, self.epoch = accuracy, step // self.steps_per_epoch
            self.weights = {name: tensor.clone() for name, tensor in self.classifier.state_dict().items()}
        return accuracy


def _train(
    classifier: Classifier, train: list[_Encoded], valid: list[_Encoded], config: ClassifyConfig
) -> tuple[float, int]:
    """Leave the classifier, where it is, with the weights of its best epoch; return (accuracy on valid, epoch)."""
    from accelerate import Accelerator

    objective = _Classification(classifier, train, valid, config)
    steps = config.epochs * objective.steps_per_epoch
    schedule = TrainConfig(
        steps=steps,
        lr=config.lr,
        lr_final=0.1 * config.lr,
        warmup_steps=min(steps // 10, 50),
        eval_every=objective.steps_per_epoch,
        # nothing here is autocast
        precision="no",
    )
    accelerator = Accelerator(cpu=classifier.network.device.type == "cpu")
    optimizer = make_optimizer(classifier, schedule, latent_of(classifier.network))
    optimizer = accelerator.prepare_optimizer(optimizer, device_placement=False)
    loop = Loop(objective, classifier, optimizer, schedule, accelerator)
    with loop.guarded():
        loop.train_steps()
    if loop.step < steps:
        # half an epoch is worth nothing, and there is no checkpoint to go on from
        stop_now(loop.signals.number)
    classifier.load_state_dict(objective.weights)
    return objective.best, objective.epoch


@torch.inference_mode()
def _measure(classifier: Classifier, encoded: list[_Encoded], batch_size: int) -> tuple[float, float | None]:
    """(accuracy, firing rate over real tokens; None for a dense model)."""
    classifier.eval()
    right, tokens, fired = 0, 0, dict[str, float]()
    for batch in _batches(encoded, batch_size, classifier.network.device):
        logits, spikes = classifier(batch.ids, batch.lengths)
        if not is_finite(logits):
            raise NotFinite("the classifier's logits are not finite")
        right += int((logits.argmax(dim=-1) == batch.labels).sum())
        tokens += int(batch.lengths.sum())
        is_real = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.lengths[:, None]
        for name, spike in spikes.items():
            fired[name] = fired.get(name, 0.0) + spike[is_real].count_nonzero().item() / spike.shape[-1]
    synapses = {name: count for name, count in classifier.network.synapses().items() if name in fired}
    return right / len(encoded), mean_firing_rate({name: count / tokens for name, count in fired.items()}, synapses)


def table(task: Task, results: list[dict[str, Any]], published: dict[str, float]) -> str:
    """Return accuracies of several models side by side as text, with what knowing nothing gives and the published."""
    sizes = f"{len(task.train)} train, {len(task.valid)} valid, {len(task.test)} test"
    title = f"{task.name}: {len(task.classes)} classes; {sizes}; chosen on valid, test read once per seed"
    return f"{title}\n\n{columns(cells(task, results, published))}"


def cells(task: Task, results: list[dict[str, Any]], published: dict[str, float]) -> list[list[str]]:
    """Return the rows of the same table."""
    rows = [["model", "accuracy", "spread", "firing rate"], ["majority class", f"{task.majority():.2%}", "", ""]]
    for result in results:
        spread = "" if result["spread"] is None else f"+- {result['spread']:.2%}"
        rates = [seed["firing_rate"] for seed in result["seeds"]]
        firing = "dense" if None in rates else f"{statistics.mean(rates):.1%}"
        name = f"{result['run']} (--spiking {result['spiking']})"
        rows.append([name, f"{result['accuracy']:.2%}", f"{spread} of {len(rates)} seed(s)".strip(), firing])
    quoted = published.items()
    return rows + [[f"published SpikeGPT {size}, as quoted", f"{accuracy:.2f}%", "", ""] for size, accuracy in quoted]


def lines_of_seeds(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what each seed of each model found, the model's own values beside it."""
    return [
        {**{name: result[name] for name in ("run", "spiking", "parameters")}, **seed}
        for result in results
        for seed in result["seeds"]
    ]
