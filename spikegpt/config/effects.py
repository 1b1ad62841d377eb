"""Settings that change nothing beside others, and those that are not what they seem: for whoever gave them by hand.

No configuration refuses these: a twin keeps its model's neuron, and a stored run may hold any of them.
"""

from .model import ModelConfig
from .sampling import SamplingConfig
from .train import TrainConfig


def doubts(train: TrainConfig) -> list[str]:
    """Return what is allowed in `train`, but hardly meant."""
    if train.warmup_steps > train.steps > 1:
        rate = f"{train.lr * train.steps / train.warmup_steps:.3g} instead of {train.lr:g}"
        return [
            f"warmup_steps {train.warmup_steps} are not over within the {train.steps} steps: "
            f"the learning rate ends at {rate}"
        ]
    return []


def idle_in_training(model: ModelConfig, train: TrainConfig) -> dict[str, str]:
    """Return setting -> why its value changes nothing in this training."""
    idle = {"vocab_size": "the vocabulary is the tokenizer's"}
    idle |= _idle_in_neurons(model) | _idle_in_losses(model, train)
    if train.tokenizer != "bpe":
        idle["bpe_vocab_size"] = f"the tokenizer is {train.tokenizer}, not bpe"
    return idle


def idle_in_sampling(sampling: SamplingConfig) -> dict[str, str]:
    """Return setting -> why its value changes nothing in this sampling."""
    if sampling.temperature > 0:
        return {}
    return dict.fromkeys(("top_k", "top_p", "seed"), "at temperature 0 the most likely token is taken always")


def _idle_in_neurons(model: ModelConfig) -> dict[str, str]:
    neuron = model.neuron
    idle: dict[str, str] = {}
    if model.spiking != "input":
        idle |= dict.fromkeys(("hidden_levels", "spiking_head"), f"--spiking {model.spiking} has no such neurons")
    if model.spiking != "output":
        idle["binary_embedding"] = f"--spiking {model.spiking} has no binary embedding"
    if model.spiking == "none":
        return idle | dict.fromkeys(vars(neuron), "a dense model has no neurons")
    if model.spiking == "input" and neuron.learnable_threshold:
        idle["threshold"] = "thresholds are learned, and begin where a given share of the neurons fires"
    if neuron.membrane_decay == 0 and not neuron.learnable_decay:
        nothing_kept = "at membrane_decay 0 no potential is kept from token to token"
        idle |= dict.fromkeys(("reset", "decay_input", "detach_reset"), nothing_kept)
    return idle


def _idle_in_losses(model: ModelConfig, train: TrainConfig) -> dict[str, str]:
    idle = {}
    if train.firing_rate_target is None:
        idle["firing_rate_weight"] = "there is no firing_rate_target"
    if train.teacher is None:
        idle["teacher_weight"] = "there is no teacher"
    if model.spiking != "input":
        without = ("synop_budget", "synop_weight", "synop_warmup")
        idle |= dict.fromkeys(without, "the budget acts on the spike-driven block only")
    elif train.synop_budget == 0:
        idle |= dict.fromkeys(("synop_weight", "synop_warmup"), "synop_budget is 0, which turns it off")
    if model.spiking == "none":
        dense = "a dense model has no neurons"
        idle |= dict.fromkeys(("firing_rate_target", "firing_rate_weight", "anneal", "verify_spikes"), dense)
    return idle
