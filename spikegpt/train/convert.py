"""Starting from trained weights: of the same kind of model as they are, of a dense one turned into one with neurons.

A dense model becomes a spiking one in two steps. Here thresholds are fitted to the currents of real text, and what a
spike stands for is multiplied into the weights, so that the model with its neurons left out is still the dense model,
number for number. Then training anneals the neurons in (`TrainConfig.anneal`, `LIF.spike_share`).
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import run as checkpoint
from ..checkpoint.run import find_model
from ..checkpoint.weights import load_weights, open_model
from ..common.errors import SpikegptError, Warn, warn_on_stderr
from ..config import HEALING, ModelConfig, TrainConfig
from ..model.mixers import Mixer
from ..model.network import PlacedSite, SpikeGPT
from ..model.perspectives import Perspectives
from ..neuron.lif import LIF
from ..neuron.thresholds import FITTED_CURRENTS, Candidates, tried_thresholds
from .elite import elite_weights
from .units import CurrentUnits

FITTED_WINDOWS = 8
OWN = "data", "text_column", "seed", "batch_size", "grad_accumulation"
# of the dense model's own: three tenths of all steps together
HEALED_STEPS = 3 / 7


def read_model_config(start: Path) -> ModelConfig:
    """Return the configuration of the model in the folder of a run, of a checkpoint, or of an imported model.

    Raises:
        SpikegptError: no whole model is there.
    """
    return checkpoint.read_model_config(find_model(Path(start)) / "config.json")


def defaults_from(start: Path, **changes) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations of a training that begins with the weights in `start`, after `changes` to the model's.

    Another block has its own neuron; dense weights in a spiking model are annealed. The learning rate is a tenth of a
    fresh model's, or two thirds where neurons are new.

    Raises:
        SpikegptError: no whole model is there.
    """
    folder = find_model(Path(start))
    there = checkpoint.read_model_config(folder / "config.json")
    is_converted = changes.get("spiking", there.spiking) != there.spiking
    if is_converted:
        # what only other blocks have, and what only published inference does; dense embeddings were never binary
        changes = {"neuron": None, "rescale_every": 0, "binary_embedding": False, **changes}
    # of a run its own, which stays where it is while checkpoints come and go
    tokenizers = (path / "tokenizer.json" for path in (Path(start), folder))
    tokenizer = str(next(path for path in tokenizers if path.exists()))
    if is_converted:
        training = TrainConfig(tokenizer=tokenizer, lr=2e-3, lr_final=1e-4, anneal=0.3)
    else:
        training = TrainConfig(tokenizer=tokenizer, lr=3e-4, lr_final=3e-5)
    return dataclasses.replace(there, **changes), training


def healing_of(start: Path, **changes) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations with which the dense model in `start` becomes spike-driven and is healed, taught by it.

    A run gives its text, seed and batch size, and HEALED_STEPS of its steps; all else has the defaults of a new run.

    Raises:
        SpikegptError: no whole model is there, or it is not dense.
    """
    there = read_model_config(start)
    if there.spiking != "none":
        raise SpikegptError(f"{start} has --spiking {there.spiking}; only a dense model (--spiking none) is converted")
    model, training = defaults_from(start, spiking="input", **changes)
    own: dict[str, Any] = {}
    run = checkpoint.run_of(start)
    if run is not None:
        _, begun = checkpoint.configs_of(run, checkpoint.read_run_config(run))
        own = {name: getattr(begun, name) for name in OWN}
        own["steps"] = max(round(HEALED_STEPS * begun.steps), 1)
    return model, dataclasses.replace(training, teacher=str(start), **HEALING, **own)


def check_shape(model: ModelConfig, start: Path) -> None:
    """Raise SpikegptError, before it is made, if a model of this configuration has no place for the weights in `start`.

    Dense weights know nothing of neurons, which are fitted to them.
    """
    there = read_model_config(start)
    sizes = ["n_layer", "n_embd", "mixer"]
    if there.mixer == "attention":
        sizes += ["n_head", "n_kv_head"]
        # whole attention becomes one of chosen pairs, and these stay
        sizes += ["elite_pairs", "kv_dim"] if there.elite_pairs else []
    # one perspective becomes several, and these stay
    sizes += ["perspectives"] if there.perspectives > 1 else []
    neurons = ["learnable_decay", "learnable_threshold"]
    pairs = [(name, getattr(there, name), getattr(model, name)) for name in sizes]
    if there.spiking == model.spiking != "none":
        kinds = "spiking_head", "shared_neurons", "state_neurons"
        pairs += [(name, getattr(there, name), getattr(model, name)) for name in kinds]
        pairs += [(name, getattr(there.neuron, name), getattr(model.neuron, name)) for name in neurons]
    for name, found, wanted in pairs:
        if found != wanted:
            raise cannot_change(start, name, found, wanted)
    # what is told in two ways, or of another generation, may differ and be the same
    for name in ("head_size", "lora_ranks"):
        found, wanted = getattr(there, name), getattr(model, name)
        if found != wanted and _shapes(model) != _shapes(dataclasses.replace(model, **{name: found})):
            raise cannot_change(start, name, found, wanted)


def cannot_change(start: Path, name: str, found: Any, wanted: Any) -> SpikegptError:
    """Return what to say where the weights in `start` have one value of a field of ModelConfig, and a flag another."""
    said = f"the weights in {start} are of {name} {found}, which --{name.replace('_', '-')} cannot change to {wanted}"
    return SpikegptError(f"{said}; leave it out")


def _shapes(config: ModelConfig) -> list[torch.Size]:
    with torch.device("meta"):
        return [parameter.shape for parameter in SpikeGPT(config, init=False).parameters()]


def spread_windows(tokens: np.ndarray, ctx_len: int) -> Tensor:
    """Return windows from all over `tokens` (N,), for fitting neurons: (FITTED_WINDOWS, T) with T at most ctx_len.

    The beginning alone would be a title page and a table of contents: fitted to those, a model lost 0.3 bits.
    """
    T = min(ctx_len, FITTED_CURRENTS // FITTED_WINDOWS, len(tokens))
    starts = np.linspace(0, len(tokens) - T, FITTED_WINDOWS).astype(int)
    return torch.from_numpy(np.stack([tokens[start : start + T] for start in starts]).astype(np.int64))


def start_from(model: SpikeGPT, start: Path, ids: Tensor, share: float = 1.0, warn: Warn = warn_on_stderr) -> None:
    """Fill `model` with the weights in `start`; dense ones for a spiking model are converted on text `ids` (B, T).

    Args:
        share: of the dense products that the spikes of a converted model may cost.
        warn: is told what speaks against relying on the weights.

    Raises:
        SpikegptError: the weights are of other sizes, or of another spiking block.
    """
    folder, stored = open_model(Path(start), warn)
    weights: Mapping[str, Tensor] = stored
    path = folder / "model.safetensors"
    config = checkpoint.read_model_config(folder / "config.json")
    there, here = config.spiking, model.config.spiking
    if model.config.perspectives != config.perspectives:
        weights = cloned_weights(config, weights, model.config.perspectives)
    if model.config.elite_pairs and not config.elite_pairs:
        whole = SpikeGPT(config, init=False).eval()
        load_weights(whole, weights, path)
        load_weights(model, elite_weights(whole, ids, model.config.elite_pairs, model.config.kv_dim), path)
    elif there == here:
        load_weights(model, weights, path)
    elif there == "none":
        # what a dense model has not, and what fitting fills: the parameters of the neurons
        neurons = tuple(f"{name}." for name in model.sites())
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(neurons)}
        load_weights(model, {**_weights_of_twin(model, weights, path), **own}, path)
        fit_neurons(model, ids, share)
    else:
        raise SpikegptError(
            f"{start} has --spiking {there}, wanted is {here}; "
            "only dense weights (--spiking none) can become another block's"
        )


def cloned_weights(config: ModelConfig, weights: Mapping[str, Tensor], perspectives: int) -> dict[str, Tensor]:
    """Return `weights` of a model of one perspective as those of so many that are all alike: the same function.

    What joins them is drawn from torch's default generator: by it alone they become different in training.
    """
    with torch.device("meta"):
        several = SpikeGPT(dataclasses.replace(config, perspectives=perspectives), init=False)
    shapes = {name: tensor.shape for name, tensor in several.state_dict().items()}
    # a mix of tokens is there once for each perspective, all else is shared
    cloned = {
        name: tensor.expand(shapes[name]) if shapes.get(name) == (perspectives, *tensor.shape) else tensor
        for name, tensor in weights.items()
    }
    return cloned | Perspectives(config.n_embd, perspectives).state_dict(prefix="convert3.")


def _weights_of_twin(model: SpikeGPT, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights of the dense twin of `model`, each half of a block as `model` has it."""
    # on "meta" nothing is drawn: a run goes on with the same draws
    with torch.device("meta"):
        twin = SpikeGPT(model.config.twin(), init=False)
    load_weights(twin.to_empty(device="cpu"), weights, path)
    found = twin.state_dict()
    for name, half in model.named_modules():
        if isinstance(half, Mixer):
            dense = twin.get_submodule(name).state_dict()
            found = {key: tensor for key, tensor in found.items() if not key.startswith(f"{name}.")}
            found |= {f"{name}.{key}": tensor for key, tensor in half.own_weights(dense).items()}
    return found


@torch.no_grad()
def fit_neurons(model: SpikeGPT, ids: Tensor, share: float = 1.0) -> None:
    """Fit the learnable thresholds of `model`, whose weights are dense, to `ids` (B, T), and scale its weights.

    Afterwards a neuron that passes on current / spike_worth in the place of spikes leaves every logit as it was. Leaky
    neurons are fitted as if they were memoryless. Spikes cost at most `share` of the dense products.
    """
    if model.config.spiking == "output":
        # a published neuron stands behind its product, which has to drive it as much as its spikes are worth
        for block in model.blocks:
            for half, site in zip((block.att, block.ffn), block.sites, strict=True):
                neuron = getattr(block, site.name)
                if isinstance(neuron, LIF):
                    # a worth for each of the outputs, which are rows
                    half.scale(half.last_product, torch.as_tensor(neuron.spike_worth).unsqueeze(-1))
        return
    sites = {name: placed for name, placed in model.sites().items() if isinstance(placed.neuron, LIF)}
    worths: dict[nn.Module, dict[str, Tensor]] = {placed.owner: {} for placed in sites.values()}
    tried: dict[nn.Module, Candidates] = {}

    def fit(neuron: LIF, inputs: tuple[Tensor, ...], placed: PlacedSite) -> None:
        if neuron.config.learnable_threshold:
            tried[neuron] = tried_thresholds(inputs[0].flatten(0, -2).float(), neuron)
            neuron.log_threshold.copy_(torch.log(tried[neuron].least(tried[neuron].errors)))
        owner, site = placed.owner, placed.site.name
        worths[owner][site] = neuron.spike_worth * torch.ones_like(inputs[0][0, 0])
        if isinstance(owner, Mixer):
            owner.absorb(site, worths[owner])
        else:
            for product in placed.products:
                product.weight.mul_(worths[owner][site])

    hooks = [placed.neuron.register_forward_pre_hook(partial(fit, placed=placed)) for placed in sites.values()]
    was_training = model.training
    # without dropout, and without spikes: every layer is fitted to the currents that the dense model gives it
    model.eval()
    anneal(model, 0.0)
    for placed in sites.values():
        placed.neuron.train()
    model(ids)
    anneal(model, 1.0)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    if share < 1:
        raise_thresholds(model, tried, share)


@torch.no_grad()
def raise_thresholds(model: SpikeGPT, tried: dict[nn.Module, Candidates], share: float) -> None:
    """Choose thresholds anew so that spikes cost `share` of the dense products, where that does least harm.

    Each channel takes the one at which the error that it causes behind its product, in units of the energy there, plus
    a price times its synaptic operations, is least; the price is the same for all.
    """
    units = CurrentUnits(model)
    worths = [reader.measure_worth for reader in units.readers]
    units.enter()
    everything = sum(weight.numel() for reader in units.readers for weight in reader.weights)
    offers = []
    for reader, worth in zip(units.readers, worths, strict=True):
        neuron, weights = reader.neuron, reader.weights
        if neuron in tried:
            found, harm = tried[neuron], torch.zeros(())
            for weight in weights:
                gain = weight.square().sum(dim=0) * worth**2
                harm = harm + gain * found.errors / (gain * found.energy).sum().clamp(min=1e-30)
            synapses = sum(weight.shape[0] for weight in weights)
            offers.append((neuron, found, harm, found.rates * synapses / everything, worth))

    def cost(price: float) -> float:
        chosen = ((harm + price * costs).argmin(dim=0, keepdim=True) for _, _, harm, costs, _ in offers)
        return sum(float(costs.gather(0, best).sum()) for best, (_, _, _, costs, _) in zip(chosen, offers, strict=True))

    low, high = 1e-9, 1e9
    for _ in range(60):
        price = math.sqrt(low * high)
        low, high = (price, high) if cost(price) > share else (low, price)
    for neuron, found, harm, costs, worth in offers:
        neuron.log_threshold.copy_(torch.log(found.least(harm + high * costs) * worth))
    units.leave()


def anneal(model: nn.Module, share: float) -> None:
    """Let every LIF of `model` in training spike with probability `share`, else pass on what spikes stand for."""
    for neuron in (module for module in model.modules() if isinstance(module, LIF)):
        neuron.spike_share = share
