"""What others call their tensors, and whether a set of tensors is a model of ours.

Key names: RWKV-LM's RWKV-v4neo/src/model.py, RWKV-v5/src/model.py and RWKV-v7/train_temp/src/model.py; transformers'
convert_rwkv_checkpoint_to_hf.py; flash-linear-attention's utils/convert_from_rwkv6.py and convert_from_rwkv7.py.
"""

import re
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.errors import SpikegptError
from ..config import PRESETS, ModelConfig, model_preset
from ..model.network import SpikeGPT

# what training frameworks put before a name or into it, any number of times and in any order
WRAPPERS = {
    "module",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_fpw_module",
    "_checkpoint_wrapped_module",
}
# Hugging Face's part of a name -> the official one; in this order
HUGGINGFACE = {
    "rwkv.embeddings.": "emb.",
    "rwkv.blocks.": "blocks.",
    "rwkv.ln_out.": "ln_out.",
    ".pre_ln.": ".ln0.",
    ".attention.": ".att.",
    ".feed_forward.": ".ffn.",
    ".time_mix_key": ".time_mix_k",
    ".time_mix_value": ".time_mix_v",
    ".time_mix_receptance": ".time_mix_r",
    ".time_mix_gate": ".time_mix_g",
}
# the same of RWKV-7 in flash-linear-attention (fla), whose matrices of pairs are transposed
FLA = {
    "model.embeddings.": "emb.",
    "model.layers.": "blocks.",
    "model.norm.": "ln_out.",
    "lm_head.": "head.",
    ".pre_norm.": ".ln0.",
    ".attn_norm.": ".ln1.",
    ".ffn_norm.": ".ln2.",
    # of the channel mix, key and value keep theirs
    ".attn.r_proj.": ".att.receptance.",
    ".attn.k_proj.": ".att.key.",
    ".attn.v_proj.": ".att.value.",
    ".attn.o_proj.": ".att.output.",
    ".attn.g_norm.": ".att.ln_x.",
    ".attn.": ".att.",
    **{f".{pair}_lora.lora.0.weight": f".{pair}1" for pair in "wavg"},
    **{f".{pair}_lora.lora.2.weight": f".{pair}2" for pair in "wavg"},
    **{f".{pair}_lora.lora.2.bias": f".{pair}0" for pair in "wav"},
}
FLA_TRANSPOSED = "_lora.lora.0.weight", "_lora.lora.2.weight"
# of RWKV-6; its other names are those above
FLA6 = {
    ".attn.x_proj.0.mu": ".att.time_maa_x",
    ".attn.x_proj.0.linear.weight": ".att.time_maa_w1",
    ".attn.x_proj.2.weight": ".att.time_maa_w2",
    ".attn.w_proj.linear.lora.0.weight": ".att.time_decay_w1",
    ".attn.w_proj.linear.lora.2.weight": ".att.time_decay_w2",
    ".attn.w_proj.linear.lora.2.bias": ".att.time_decay",
    ".attn.bonus": ".att.time_faaaa",
    ".attn.g_proj.linear.": ".att.gate.",
    **{f".attn.{letter}_proj.linear.": f".attn.{letter}_proj." for letter in "rkv"},
    ".ffn.key.mu": ".ffn.time_maa_k",
    ".ffn.receptance.mu": ".ffn.time_maa_r",
    ".ffn.key.linear.": ".ffn.key.",
    ".ffn.receptance.linear.": ".ffn.receptance.",
}
FLA6_TRANSPOSED = "attn.w_proj.linear.lora.0.weight", "attn.w_proj.linear.lora.2.weight"
# several shares in one tensor, in this order: in the first files of RWKV-7, and in all of RWKV-6
FLA_SHARES = {
    "attn.x_x": [f"att.x_{letter}" for letter in "rwkvag"],
    "attn.x_bias": [f"att.time_maa_{letter}" for letter in "rwkvg"],
}
# the matrices of these mixes follow one another in that order there, and in that of the checkpoints in ours: w k v r g
FLA6_MIXES, FLA6_ORDER = ("attn.x_proj.0.linear.weight", "attn.x_proj.2.weight"), (1, 2, 3, 0, 4)
# tensors that only other models have
OTHER_FAMILIES = {
    "ffn.s_emb": 'RWKV-7 "a" (deep embedding)',
    "qkv.": 'RWKV-7 "b" (deep embedding in attention)',
    "tiny_att": 'RWKV-4 "a" (tiny attention)',
    "att.gate_w1": 'RWKV-6 "a" (a gate of few inner channels)',
    "att.time_maa_rkvw_w1": 'RWKV-6 "b" (no gate)',
    "att.time_state": "RWKV-6 with a tuned first state",
}
# mixer -> (what it is called, tensors that tell it)
GENERATIONS = {
    "rwkv7": ("RWKV-7", ("att.x_r", "att.r_k", "att.k_k")),
    "rwkv6": ("RWKV-6", ("att.time_maa_x", "att.time_maa_w1", "att.time_decay_w1")),
    "rwkv5": ("RWKV-5", ("att.time_mix_g", "att.gate.weight", "att.ln_x.weight", "att.time_faaaa")),
    "rwkv4": ("RWKV-4", ("att.time_mix_k",)),
}
# what tells a generation and is another's too
INHERITED = {
    "rwkv7": ("att.ln_x.weight",),
    "rwkv6": ("att.gate.weight", "att.ln_x.weight", "att.time_faaaa"),
    "rwkv5": ("att.time_mix_k",),
    "rwkv4": (),
}
READ = "RWKV-4, RWKV-5.2, RWKV-6, RWKV-7 and SpikeGPT"
# of these, files of some trainers have those of the first layer too, where nothing reads them
UNREAD = tuple(f"blocks.0.att.{name}" for name in ("v0", "v1", "v2"))
# what stands there if a file has none: a number that no initialisation and no step of training writes
ABSENT = -0.0


class _Renamed(Mapping):
    """The same tensors under official names."""

    def __init__(self, weights: Mapping[str, Tensor], original: dict[str, str]):
        self._weights, self._original = weights, original

    def __getitem__(self, name: str) -> Tensor:
        original = self._original[name]
        tensor = self._weights[original]
        if shares := _shares_in(original):
            return tensor[next(n for n, share in enumerate(shares) if name.endswith(share))]
        if original.endswith(FLA6_MIXES):
            # (inner, C), those of one mix after those of another
            parts = (tensor if original.endswith(FLA6_MIXES[0]) else tensor.T).unflatten(0, (len(FLA6_ORDER), -1))
            parts = parts[list(FLA6_ORDER)]
            return parts.flatten(0, 1).T if original.endswith(FLA6_MIXES[0]) else parts
        return tensor.T if original.endswith(FLA_TRANSPOSED + FLA6_TRANSPOSED) else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._original)

    def __len__(self) -> int:
        return len(self._original)


def official_names(weights: Mapping[str, Tensor], source: Path, has_tied_head: bool = False) -> Mapping[str, Tensor]:
    """Return the same tensors under the official names, which are ours; a tied head is the embedding once more.

    Raises:
        SpikegptError: there are several models in it, several tensors of one name, or a tied head of its own numbers.
    """
    models = sorted({prefix for prefix in map(whole_model, weights) if prefix is not None})
    if len(models) > 1:
        raise SpikegptError(
            f"{source} holds several models, under {some([repr(prefix) for prefix in models])}; "
            "which is meant is for you to say: save one of them alone"
        )
    original: dict[str, str] = {}
    for name in weights:
        for official in _official_names(name, weights, source, *models):
            if official in original:
                raise SpikegptError(
                    f"{source}: {original[official]} and {name} are both {official}; save one of them alone"
                )
            original[official] = name
    if any(name.endswith(("att.time_mix_g", "att.time_maa_x")) for name in original):
        # so some libraries call it, as in RWKV-4
        original = {re.sub(r"att\.time_first$", "att.time_faaaa", name): theirs for name, theirs in original.items()}
    named = _Renamed(weights, original)
    if has_tied_head and "emb.weight" in named:
        if "head.weight" in named and not torch.equal(named["head.weight"], named["emb.weight"]):
            raise SpikegptError(
                f"{source}: its config.json says tie_word_embeddings, but head.weight differs from the embedding; "
                "one of the two is of another model"
            )
        original["head.weight"] = original["emb.weight"]
    return named


def _official_names(name: str, weights: Mapping[str, Tensor], source: Path, model: str = "") -> list[str]:
    """The official name of a tensor, or those that one of fla's holds."""
    official = official_name(name, model)
    if not (shares := _shares_in(name)):
        if name.endswith(FLA6_MIXES):
            _check_mixes(name, tuple(weights[name].shape), source)
        return [official]
    shape = tuple(weights[name].shape)
    if len(shape) < 2 or shape[0] != len(shares):
        raise SpikegptError(f"{source}: {name} is {shape}, want ({len(shares)}, n_embd); get the whole file")
    return [official[: official.rindex("att.")] + share for share in shares]


def _check_mixes(name: str, shape: tuple[int, ...], source: Path) -> None:
    parts = len(FLA6_ORDER)
    if len(shape) != 2 or 0 in shape or shape[not name.endswith(FLA6_MIXES[0])] % parts:
        raise SpikegptError(f"{source}: {name} is {shape}, want the matrices of {parts} mixes; get the whole file")


def _shares_in(name: str) -> list[str]:
    return next((shares for theirs, shares in FLA_SHARES.items() if name.endswith(theirs)), [])


def official_name(name: str, model: str = "") -> str:
    """Return the official name of a tensor of the model whose names begin with `model`."""
    name = _unwrapped(name).removeprefix(model)
    for theirs, ours in (HUGGINGFACE | FLA6 | FLA).items():
        name = name.replace(theirs, ours)
    return name


def whole_model(name: str) -> str | None:
    """Return what stands before every name of a model, such as "model.", if `name` is that of its embedding."""
    name = _unwrapped(name)
    for embedding in ("rwkv.embeddings.weight", "model.embeddings.weight", "emb.weight"):
        if name == embedding or name.endswith("." + embedding):
            return name.removesuffix(embedding)
    return None


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def huggingface_name(name: str) -> str:
    for theirs, ours in reversed(HUGGINGFACE.items()):
        # what has no point before it stands at the front
        if ours in name and (not theirs.startswith("rwkv.") or name.startswith(ours)):
            name = name.replace(ours, theirs)
    return name


def fla_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return RWKV-7's official tensors under fla's names, in its shapes; what is unread has no place there."""
    theirs = {}
    for name, tensor in weights.items():
        if name in UNREAD:
            continue
        renamed = name
        for their, ours in FLA.items():
            if renamed.startswith(ours) or (their.startswith(".") and ours in renamed):
                renamed = renamed.replace(ours, their)
        if renamed.endswith(FLA_TRANSPOSED):
            tensor = tensor.T
        elif tensor.dim() == 3 and "attn.x_" not in renamed:
            tensor = tensor.flatten()
        theirs[renamed] = tensor
    return theirs


def check_tensors(weights: Mapping[str, Tensor], config: ModelConfig, source: Path) -> None:
    """Raise SpikegptError unless the official tensors are those of `config`; those at fault are named.

    The number of layers must have been compared: a model of so many is laid out, though without numbers.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in empty_model(config).state_dict().items()}
    missing, unexpected = sorted(wanted.keys() - set(weights)), sorted(set(weights) - wanted.keys())
    faults = [f"missing: {some(missing, 20)}"] if missing else []
    faults += [f"unexpected: {some(unexpected, 20)}"] if unexpected else []
    unfit = {name: _fault_of(weights[name], wanted[name]) for name in sorted(wanted.keys() & set(weights))}
    faults += (
        [some([f"{name} {fault}" for name, fault in unfit.items() if fault], 20, "; ")] if any(unfit.values()) else []
    )
    if faults:
        raise SpikegptError(
            f"{source} does not fit {config.n_layer} layers of width {config.n_embd} ({_nearest(config)}); "
            + "; ".join(faults)
        )


def _fault_of(tensor: Tensor, wanted: tuple[int, ...]) -> str | None:
    # saved with the sides of 1 or without: the same numbers
    if [side for side in tensor.shape if side != 1] != [side for side in wanted if side != 1]:
        return f"is {tuple(tensor.shape)}, want {wanted}"
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        return f"holds {tensor.dtype} ({tensor.layout}), want dense floating point"
    # a file of a kilobyte may claim terabytes so
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "has fewer numbers than its shape says"
    return None


def sizes_of(weights: Mapping[str, Tensor], source: Path) -> tuple[int, int, int]:
    """Return (n_layer, n_embd, vocab_size) of official tensors.

    Raises:
        SpikegptError: they are those of no model that is read, or of two; or a layer is missing.
    """
    for part, family in OTHER_FAMILIES.items():
        if any(part in name for name in weights):
            raise SpikegptError(f"{source} is {family}: it has {part!r}. This package reads {READ}")
    _mixer_of(weights, source)
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.([0-9]{1,9})\.", name))}
    if "emb.weight" not in weights or not layers:
        raise SpikegptError(
            f"{source} has no emb.weight and blocks.0.*: it is none of {READ}. It begins with {some(list(weights))}"
        )
    if len(layers) != max(layers) + 1:
        absent = next(layer for layer in range(max(layers)) if layer not in layers)
        raise SpikegptError(f"{source} has blocks.{max(layers)}.*, but no blocks.{absent}.*; get the whole file")
    shape = tuple(weights["emb.weight"].shape)
    if len(shape) != 2 or 0 in shape:
        raise SpikegptError(f"{source}: emb.weight is {shape}, want (vocab_size, n_embd)")
    return len(layers), shape[1], shape[0]


def _mixer_of(weights: Mapping[str, Tensor], source: Path) -> str:
    """The generation of official tensors; SpikegptError where they are of two, or of one that is not read."""
    found: dict[str, str] = {}
    for mixer, (_, marks) in GENERATIONS.items():
        known = {mark for newer in found for mark in INHERITED[newer]}
        for mark in marks:
            if mark not in known and any(name.endswith(mark) for name in weights):
                found.setdefault(mixer, mark)
    if not found:
        return "rwkv4"
    if found.get("rwkv5") == "att.ln_x.weight" and len(found) == 1:
        raise SpikegptError(f"{source} is RWKV-5.0: it has 'att.ln_x.weight', and no gate. This package reads {READ}")
    if len(found) > 1:
        (one, mark), (other, second), *_ = found.items()
        raise SpikegptError(
            f"{source} has tensors of {GENERATIONS[one][0]} ({mark}) and of {GENERATIONS[other][0]} ({second}); "
            "save one of them alone"
        )
    return next(iter(found))


def generation_of(
    weights: Mapping[str, Tensor], sizes: tuple[int, int, int], source: Path
) -> tuple[dict[str, Any], Mapping[str, Tensor]]:
    """Return (fields of ModelConfig that official tensors of `sizes` tell beyond these, the tensors, of RWKV-7 whole).

    What is unread in RWKV-7's first layer and absent is ABSENT.

    Raises:
        SpikegptError: a head or a pair has no shape of one.
    """
    mixer = _mixer_of(weights, source)
    if mixer == "rwkv4":
        return {}, weights
    n_layer, n_embd, _ = sizes
    last = f"blocks.{n_layer - 1}.att."
    heads = "r_k" if mixer == "rwkv7" else "time_faaaa"
    pairs = {"rwkv5": [], "rwkv6": ["time_maa_w1", "time_decay_w1"], "rwkv7": ["w1", "a1", "v1", "g1"]}[mixer]
    if mixer == "rwkv7" and n_layer == 1 and UNREAD[1] not in weights:
        # the first layer may lack its pair v
        pairs.remove("v1")
    shapes = {name: _shape_of_matrix(weights, last + name, name == heads, source) for name in (heads, *pairs)}
    H, N = shapes[heads]
    if n_embd != H * N:
        raise SpikegptError(
            f"{source}: {last}{heads} is {shapes[heads]}, (heads, channels of one), which do not make up the width "
            f"{n_embd}; get the whole file"
        )
    decay = weights.get(last + "time_decay")
    if mixer == "rwkv5" and decay is not None and decay.numel() == H != n_embd:
        raise SpikegptError(f"{source} is RWKV-5.1: it has one decay for each head. This package reads {READ}")
    fields = {"mixer": mixer, "spiking": "none", "head_size": N}
    if mixer == "rwkv6":
        mixes = shapes["time_maa_w1"][1]
        if mixes % 5:
            raise SpikegptError(
                f"{source}: {last}time_maa_w1 is {shapes['time_maa_w1']}, whose columns are not those of five mixes; "
                "get the whole file"
            )
        fields["lora_ranks"] = (mixes // 5, shapes["time_decay_w1"][1])
    if mixer != "rwkv7":
        return fields, weights
    w, a, g = (shapes[name][1] for name in ("w1", "a1", "g1"))
    v = shapes.get("v1", shapes["a1"])[1]
    fields["lora_ranks"] = (w, a, v, g)
    if not any(name in weights for name in UNREAD):
        unread = zip(UNREAD, ((1, 1, n_embd), (n_embd, v), (v, n_embd)), strict=True)
        absent = {name: torch.full(shape, ABSENT) for name, shape in unread}
        weights = ChainMap(weights, absent)  # type: ignore[arg-type]
    return fields, weights


def _shape_of_matrix(weights: Mapping[str, Tensor], name: str, is_heads: bool, source: Path) -> tuple[int, int]:
    shape = tuple(weights[name].shape) if name in weights else None
    if shape is None or len(shape) != 2 or 0 in shape:
        what = "(heads, channels of one)" if is_heads else "a matrix"
        raise SpikegptError(f"{source}: {name} is {shape or 'missing'}, want {what}; get the whole file")
    return shape[0], shape[1]


def without_absent(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return official tensors as a file had them that lacked what `generation_of` put there."""
    is_absent = all(
        name in weights and not weights[name].any() and bool(weights[name].signbit().all()) for name in UNREAD
    )
    return {name: tensor for name, tensor in weights.items() if not (is_absent and name in UNREAD)}


def _nearest(config: ModelConfig) -> str:
    """The preset that is nearest in layers and width, in words."""

    def distance(name: str) -> float:
        preset = model_preset(name)
        return abs(preset.n_layer - config.n_layer) + abs(preset.n_embd - config.n_embd) / 64

    nearest = min(PRESETS, key=distance)
    preset = model_preset(nearest)
    return (
        f"nearest preset: {nearest}, {preset.n_layer} layers of width {preset.n_embd}, vocabulary {preset.vocab_size}"
    )


def some(names: list[str], most: int = 5, separator: str = ", ") -> str:
    """The first of `names`, in words, and how many more there are."""
    return separator.join(names[:most]) + (f"{separator}and {len(names) - most} more" if len(names) > most else "")


def empty_model(config: ModelConfig) -> SpikeGPT:
    """Return the model with shapes and no numbers."""
    with torch.device("meta"):
        return SpikeGPT(config, init=False)
