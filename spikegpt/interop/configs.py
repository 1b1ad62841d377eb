"""What a config.json of others says about a model, each field honoured or refused; ours in the form of others.

Fields: transformers' RwkvConfig, those of the code beside RWKV-5 and -6 on the hub, flash-linear-attention's
RWKV6Config and RWKV7Config. What is in no list here changes no number there
either.
"""

from pathlib import Path
from typing import Any

from ..checkpoint.files import check_format, read_json
from ..common.errors import SpikegptError
from ..config import ModelConfig, Spiking
from ..config.model import HEADED, ffn_width
from ..model.mixers.heads import NORM_EPS
from ..model.mixers.rwkv7 import published_ranks

CTX_LEN = 1024
LAYER_NORM_EPSILON = 1e-5
# what the outcomes of heads are divided by, which makes one epsilon of the other
HEAD_SIZE_DIVISOR = round((NORM_EPS / LAYER_NORM_EPSILON) ** 0.5)
# model_type in fla, at present and before
FLA_TYPES = "rwkv7", "rwkv7_fla"
# model_type -> mixer
FAMILIES = {"rwkv": "rwkv4", "rwkv5": "rwkv5", "rwkv6": "rwkv6", **dict.fromkeys(FLA_TYPES, "rwkv7")}
# layers, width and vocabulary that only one of the two blocks was published with
RWKV4_SIZES = ((12, 768), (24, 1024), (24, 2048), (32, 2560), (32, 4096), (40, 5120))
# what the library calls sizes that are ours too
THEIR_NAMES = {"num_hidden_layers": "n_layer", "hidden_size": "n_embd", "max_position_embeddings": "ctx_len"}
PUBLISHED: dict[tuple[int, int, int], Spiking] = {(18, 768, 50277): "output"}
PUBLISHED |= {(*size, 50277): "none" for size in RWKV4_SIZES}


def config_beside(weights: Path, source: Path) -> dict[str, Any]:
    """Return the config.json beside a file of weights, or nothing.

    It is about the model that the folder `source` is, and about a file that was named itself if its name is usual.
    """
    path = weights.with_name("config.json")
    is_of_this = source.is_dir() or weights.name.startswith(("model", "pytorch_model"))
    # a link that leads nowhere is no permission to go without
    return read_json(path) if is_of_this and (path.exists() or path.is_symlink()) else {}


def make_config(
    said: dict[str, Any],
    sizes: tuple[int, int, int],
    told: dict[str, Any],
    source: Path,
    file: Path,
    spiking: Spiking | None,
    ctx_len: int | None,
) -> ModelConfig:
    """Return the configuration of a model of `sizes`, (n_layer, n_embd, vocab_size), of whom a config.json `said` this.

    Args:
        told: fields that the tensors tell beyond their sizes.
        source, file: what was asked for, and where in it the weights are; their names may tell the block.

    Raises:
        SpikegptError: that speaks of another model, or of one that we cannot compute; or nobody says which block it is.
    """
    found = dict(zip(("n_layer", "n_embd", "vocab_size"), sizes, strict=True))
    ours = _our_fields(said, source)
    if ours is not None:
        _compare(ours, found, source)
        changes = {"spiking": spiking, "ctx_len": ctx_len}
        given = {name: value for name, value in changes.items() if value is not None}
        return _model_config({**_model_config(ours, source).to_dict(), **given}, source)
    if said:
        _check_theirs(said, found, told, source)
    is_dense = said.get("model_type") == "rwkv"
    block = spiking or told.get("spiking")
    block = block or ("none" if is_dense else _recognise_block((file.name, source.name), sizes))
    if block is None:
        raise SpikegptError(
            f"{source}: {sizes[0]} layers, width {sizes[1]}, vocabulary {sizes[2]}. "
            "The published SpikeGPT and dense RWKV-4 have the same tensors, "
            "and neither size nor name tells which this is: say --spiking output or --spiking none"
        )
    if ctx_len is None:
        # transformers takes both names
        ctx_len = said.get("context_length", said.get("max_position_embeddings"))
    ctx_len = CTX_LEN if ctx_len is None else ctx_len
    return _model_config({**found, **told, "ctx_len": ctx_len, "spiking": block}, source)


def _model_config(fields: dict[str, Any], source: Path) -> ModelConfig:
    try:
        return ModelConfig.from_dict(fields)
    except (TypeError, ValueError) as error:
        raise SpikegptError(f"{source} does not describe a model of this package: {error}") from None


def has_tied_head(said: dict[str, Any]) -> bool:
    """Whether the head of the model is its embedding."""
    return bool(said.get("tie_word_embeddings"))


def huggingface_config(config: ModelConfig) -> dict[str, Any]:
    """Return config.json of RwkvForCausalLM, or of RWKV-5's and -6's on the hub."""
    kind = next(kind for kind, mixer in FAMILIES.items() if mixer == config.mixer)
    heads = {
        "num_attention_heads": config.n_embd // config.head_size,
        "head_size": config.head_size,
        "head_size_divisor": HEAD_SIZE_DIVISOR,
    }
    return {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        **(heads if config.mixer in HEADED else {}),
        "vocab_size": config.vocab_size,
        "context_length": config.ctx_len,
        "hidden_size": config.n_embd,
        "attention_hidden_size": config.n_embd,
        "intermediate_size": config.n_ffn,
        "num_hidden_layers": config.n_layer,
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "rescale_every": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def fla_config(config: ModelConfig) -> dict[str, Any]:
    """Return config.json of flash-linear-attention's RWKV7ForCausalLM, of dense RWKV-7.

    Raises:
        SpikegptError: its heads are not of 64, and so computed otherwise there.
    """
    _check_heads(config.head_size, "the model", "export it with --layout pth")
    w, a, v, g = config.lora_ranks or published_ranks(config.n_embd)
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": FLA_TYPES[0],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.ctx_len,
        "hidden_size": config.n_embd,
        "hidden_ratio": 4,
        "intermediate_size": config.n_ffn,
        "hidden_act": "sqrelu",
        "num_hidden_layers": config.n_layer,
        "head_dim": config.head_size,
        "value_dim": [config.n_embd] * config.n_layer,
        "decay_low_rank_dim": w,
        "a_low_rank_dim": a,
        "v_low_rank_dim": v,
        "gate_low_rank_dim": g,
        "norm_first": True,
        "norm_bias": True,
        "norm_eps": LAYER_NORM_EPSILON,
        "attn": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _check_heads(head_size: int, source: str | Path, advice: str) -> None:
    if head_size * LAYER_NORM_EPSILON != NORM_EPS:
        raise SpikegptError(
            f"{source} has heads of {head_size}, whose norm has the epsilon {head_size * LAYER_NORM_EPSILON:g} in "
            f"flash-linear-attention and {NORM_EPS:g} here: they are one for heads of 64 alone; {advice}"
        )


def _our_fields(said: dict[str, Any], source: Path) -> dict[str, Any] | None:
    """ModelConfig's fields, where a run or a checkpoint of ours, or our class in transformers, wrote config.json."""
    if said.get("model_type") == "spikegpt":
        ours = {THEIR_NAMES.get(name, name): value for name, value in said.items()}
        return {name: ours[name] for name in ModelConfig().to_dict() if name in ours}
    if "model" not in said:
        return None
    check_format(said, source / "config.json")
    if not isinstance(said["model"], dict):
        raise SpikegptError(f"{source}: 'model' in its config.json is {said['model']!r}, want the fields of a model")
    return said["model"]


def check_model_type(said: dict[str, Any], source: Path) -> None:
    """Raise SpikegptError if a config.json names a model that is read by no name of tensors."""
    kind = said.get("model_type", "rwkv")
    if kind not in ("spikegpt", *FAMILIES):
        raise SpikegptError(
            f"{source}: its config.json says model_type {kind!r}. This package reads 'rwkv' (RWKV-4), 'rwkv5', "
            "'rwkv6', 'rwkv7' and SpikeGPT"
        )


def _check_theirs(said: dict[str, Any], found: dict[str, int], told: dict[str, Any], source: Path) -> None:
    mixer = told.get("mixer", "rwkv4")
    family = f"RWKV-{mixer[-1]}"
    if "model_type" in said and FAMILIES[said["model_type"]] != mixer:
        raise SpikegptError(
            f"{source}: its config.json says model_type {said['model_type']!r}, its tensors are of {family}; one of "
            "the two is of another model"
        )
    if said.get("quantization_config") is not None:
        raise SpikegptError(
            f"{source}: its config.json has a quantization_config; take the weights that were not quantised"
        )
    _compare({THEIR_NAMES.get(name, name): value for name, value in said.items()}, found, source)
    # rescale_every stands in no list: it is exact for dense models
    n_embd = found["n_embd"]
    wanted: dict[str, Any] = {
        "attention_hidden_size": n_embd,
        "intermediate_size": ffn_width(mixer, n_embd),
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
    }
    if mixer in ("rwkv5", "rwkv6"):
        wanted |= {"head_size": told["head_size"], "head_size_divisor": HEAD_SIZE_DIVISOR}
        wanted |= {"hidden_act": "sqrelu", "norm_eps": LAYER_NORM_EPSILON}
    if mixer == "rwkv7":
        if "model_type" in said:
            _check_heads(told["head_size"], source, "take the official file of this model")
        wanted = {"hidden_act": "sqrelu", "norm_eps": LAYER_NORM_EPSILON, "attn": None}
        wanted |= {"head_dim": told["head_size"], "intermediate_size": 4 * n_embd}
    for name in ("context_length", "max_position_embeddings"):
        length = said.get(name)
        if length is not None and (not isinstance(length, int) or isinstance(length, bool) or length < 1):
            raise SpikegptError(f"{source}: its config.json says {name} {length!r}, want a number of tokens")
    if not isinstance(said.get("tie_word_embeddings"), bool | None):
        raise SpikegptError(
            f"{source}: its config.json says tie_word_embeddings {said['tie_word_embeddings']!r}, want true or false"
        )
    for name, value in wanted.items():
        if said.get(name, value) not in (value, None):
            raise SpikegptError(f"{source}: its config.json says {name} {said[name]!r}; {family} here has {value}")


def _compare(said: dict[str, Any], found: dict[str, int], source: Path) -> None:
    """Raise SpikegptError unless the sizes that config.json says, if it says them, are those of the tensors."""
    for name, value in found.items():
        if said.get(name, value) != value:
            raise SpikegptError(
                f"{source}: its config.json says {name} {said[name]!r}, its tensors are of {name} {value}; one of the "
                "two is of another model"
            )


def _recognise_block(names: tuple[str, ...], sizes: tuple[int, int, int]) -> Spiking | None:
    # the names first: they are what the giver says
    for name in map(str.lower, names):
        if "spike" in name:
            return "output"
        if "rwkv" in name:
            return "none"
    return PUBLISHED.get(sizes)
