"""Settings that change nothing beside others, and those that are not what they seem: for whoever gave them by hand.

For every setting: which others does it need? No configuration refuses these: a twin keeps its model's neuron, and a
stored run may hold any of them.
"""

from .model import HEADED, LORA_PAIRS, ModelConfig, Spiking
from .sampling import SamplingConfig
from .train import ClassifyConfig, TrainConfig

# a step of Adam is about as large as the rate: one that small is lost in float32 beside any weight
LOST_RATE = 1e-12


def doubts(config: TrainConfig | ClassifyConfig) -> list[str]:
    """Return what is allowed in `config`, but hardly meant."""
    found = []
    if config.lr < LOST_RATE:
        found.append(f"lr is {config.lr:g}: nothing is learned")
    if not isinstance(config, TrainConfig):
        return found
    if 0 < config.grad_clip < config.adam_eps:
        found.append(
            f"grad_clip {config.grad_clip:g} is below adam_eps {config.adam_eps:g}: nearly nothing is learned; "
            "0 turns clipping off"
        )
    if config.warmup_steps > config.steps > 1:
        rate = f"{config.lr * config.steps / config.warmup_steps:.3g} instead of {config.lr:g}"
        found.append(
            f"warmup_steps {config.warmup_steps} are not over within the {config.steps} steps: "
            f"the learning rate ends at {rate}"
        )
    return found


def idle_in_training(
    model: ModelConfig, train: TrainConfig, *, begins_with: Spiking | None = None, has_rows: bool = True
) -> dict[str, str]:
    """Return setting -> why its value changes nothing in this training.

    Args:
        begins_with: `spiking` of the weights that the model begins with.
        has_rows: whether the text comes from JSONL, CSV or TSV files.
    """
    idle = {"vocab_size": "the vocabulary is the tokenizer's"}
    idle |= idle_in_blocks(model) | _idle_in_losses(model, train) | _idle_in_schedules(train)
    if model.spiking != "none":
        idle |= _idle_in_neurons(model, begins_with)
    if model.weight_bits == 32:
        idle["confident"] = "weights of 32 bits have no codes that could change"
    if train.tokenizer != "bpe":
        idle["bpe_vocab_size"] = f"the tokenizer is {train.tokenizer}, not bpe"
    if not has_rows:
        idle["text_column"] = "no JSONL, CSV or TSV file is read"
    return idle


def idle_in_blocks(model: ModelConfig) -> dict[str, str]:
    """Return setting -> why its value changes nothing in a model of this shape."""
    idle: dict[str, str] = {}
    if model.mixer not in HEADED:
        idle["head_size"] = f"--mixer {model.mixer} has no such heads"
    if model.mixer not in LORA_PAIRS:
        idle["lora_ranks"] = f"--mixer {model.mixer} has no such pairs"
    if model.mixer != "attention":
        idle |= dict.fromkeys(
            ("n_head", "n_kv_head", "elite_pairs", "kv_dim"), f"--mixer {model.mixer} has no attention"
        )
    if model.spiking != "input":
        idle |= dict.fromkeys(
            ("hidden_levels", "spiking_head", "shared_neurons", "state_neurons"),
            f"--spiking {model.spiking} has no such neurons",
        )
    if model.spiking != "output":
        idle["binary_embedding"] = f"--spiking {model.spiking} has no binary embedding"
    if model.rescale_every > model.n_layer:
        idle["rescale_every"] = f"the model has {model.n_layer} layer(s)"
    if model.spiking == "none":
        idle |= dict.fromkeys(vars(model.neuron), "a dense model has no neurons")
    return idle


def idle_in_sampling(sampling: SamplingConfig) -> dict[str, str]:
    """Return setting -> why its value changes nothing in this sampling."""
    if sampling.temperature == 0:
        return dict.fromkeys(("top_k", "top_p", "seed"), "at temperature 0 the most likely token is taken always")
    if sampling.top_k == 1:
        return dict.fromkeys(("temperature", "top_p", "seed"), "at top_k 1 the most likely token is taken always")
    return {}


def _idle_in_neurons(model: ModelConfig, begins_with: Spiking | None) -> dict[str, str]:
    neuron = model.neuron
    idle: dict[str, str] = {}
    if model.spiking == "input" and neuron.learnable_threshold:
        idle["threshold"] = "thresholds are learned, and begin where a given share of the neurons fires"
    if model.spiking == begins_with:
        given = "they are learned, and begin as the weights have them"
        idle |= {"threshold": given} if neuron.learnable_threshold else {}
        idle |= {"membrane_decay": given} if neuron.learnable_decay else {}
    if neuron.is_memoryless:
        nothing_kept = "at membrane_decay 0 no potential is kept from token to token"
        idle |= dict.fromkeys(("reset", "decay_input", "detach_reset"), nothing_kept)
    elif neuron.reset == "none":
        idle["detach_reset"] = "nothing is reset"
    return idle


def _idle_in_losses(model: ModelConfig, train: TrainConfig) -> dict[str, str]:
    idle: dict[str, str] = {}
    if model.spiking == "none":
        idle["self_teacher"] = "a dense model has no neurons to leave out"
    if train.teacher is None and train.self_teacher == 0:
        idle |= dict.fromkeys(("teacher_weight", "teacher_loss", "teacher_features"), "there is no teacher")
    elif train.teacher_weight == 0:
        idle["teacher_loss"] = "teacher_weight is 0"
        if not train.teacher_features:
            idle["teacher"] = "teacher_weight is 0"
    if train.firing_rate_target is None:
        idle["firing_rate_weight"] = "there is no firing_rate_target"
    elif train.firing_rate_weight == 0:
        idle["firing_rate_target"] = "firing_rate_weight is 0"
    if model.spiking == "none" or not (model.neuron.is_integer and model.neuron.is_memoryless):
        idle["commitment"] = "no neurons of this model are memoryless and of whole spikes"
    if model.spiking != "input":
        idle["learn_in"] = f"in a --spiking {model.spiking} model no weights read spikes"
        without = ("synop_budget", "synop_weight", "synop_warmup")
        idle |= dict.fromkeys(without, "the budget acts on the spike-driven block only")
    elif train.synop_budget == 0:
        idle |= dict.fromkeys(("synop_weight", "synop_warmup"), "synop_budget is 0, which turns it off")
    elif train.synop_weight == 0:
        idle |= dict.fromkeys(("synop_budget", "synop_warmup"), "synop_weight is 0")
    if model.spiking == "none":
        dense = "a dense model has no neurons"
        idle |= dict.fromkeys(("firing_rate_target", "firing_rate_weight", "anneal", "verify_spikes"), dense)
    return idle


def _idle_in_schedules(train: TrainConfig) -> dict[str, str]:
    idle: dict[str, str] = {}
    if train.optimizer != "muon":
        idle |= dict.fromkeys(("muon_lr", "muon_momentum"), f"the optimizer is {train.optimizer}")
    if train.schedule != "wsd":
        idle["decay_share"] = f"the schedule is {train.schedule}"
    if train.lr == 0:
        idle |= dict.fromkeys(
            ("muon_lr", "muon_momentum", "warmup_steps", "weight_decay", "lr_scales", "grad_clip"), "lr is 0"
        )
    elif train.steps - train.warmup_steps < 2:
        idle["lr_final"] = f"the warm-up of {train.warmup_steps} steps leaves no room for a decay"
    if train.eval_every and (train.save_every % train.eval_every == 0 or train.save_every > train.steps):
        idle["save_every"] = f"every evaluation saves, eval_every {train.eval_every}"
    return idle
