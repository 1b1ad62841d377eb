"""What our models have in common as Hugging Face's: configuration, output, and how texts, masks and states are read.

The models themselves: huggingface.py.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ..common.errors import SpikegptError
from ..config import ModelConfig
from ..model.initial import initialise
from ..model.network import SpikeGPT
from ..model.state import State, join_states, select_texts

try:
    from huggingface_hub.dataclasses import strict
    from transformers import PreTrainedConfig, PreTrainedModel, initialization
    from transformers.utils import ModelOutput
except ModuleNotFoundError as error:
    raise SpikegptError(f"spikegpt.huggingface needs {error.name}: pip install 'spikegpt[hf]'") from None

# what the library or its tokenizers may hand to any model, and this one has no use for
UNUSED = {"use_cache", "token_type_ids", "position_ids", "is_causal"}


@strict
class SpikeGPTConfig(PreTrainedConfig):
    """`ModelConfig`'s fields, by their names, beside those that every configuration of Hugging Face's has."""

    model_type = "spikegpt"
    attribute_map = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "max_position_embeddings": "ctx_len"}  # noqa: RUF012 (the base class declares it)
    # what differs in shape from batch to batch; Trainer asks
    keys_to_ignore_at_inference = ["state", "spikes", "hidden_states"]  # noqa: RUF012 (as above)

    use_cache: bool = True
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **others: Any):
        names = ModelConfig().to_dict()
        others = {self.attribute_map.get(name, name): value for name, value in others.items()}
        model = ModelConfig.from_dict({name: others.pop(name) for name in names if name in others})
        for name, value in model.to_dict().items():
            setattr(self, name, value)
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings is true, but the head is never the embedding; leave it out")
        super().__post_init__(**others)

    def validate_token_ids(self) -> None:
        """As the library's, but padding lies behind the vocabulary by design: it is no token of any text."""
        others = copy.copy(self)
        others.pad_token_id = None
        PreTrainedConfig.validate_token_ids(others)

    def to_model_config(self) -> ModelConfig:
        return ModelConfig.from_dict({name: getattr(self, name) for name in ModelConfig().to_dict()})

    @classmethod
    def from_model_config(cls, config: ModelConfig, **others: Any) -> "SpikeGPTConfig":
        return cls(**config.to_dict(), **others)


@dataclass
class SpikeGPTOutput(ModelOutput):
    """`logits` (B, T, vocab_size), of a classifier (B, num_labels); `state`, put in to read on; `spikes` by layer.

    `hidden_states`: (B, T, n_embd) before each block and before the head, n_layer + 1 of them.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: State | None = None
    spikes: dict[str, Tensor] | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class Read(NamedTuple):
    """What `SpikeGPTPreTrained._read` returns."""

    hidden: Tensor
    state: State
    spikes: dict[str, Tensor]
    layers: list[Tensor]
    """hidden_states of the output"""
    is_text: Tensor | None
    """(B, T), False at padding; None if all is text"""
    last: Tensor
    """(B,), where the last token of each row is"""


class SpikeGPTPreTrained(PreTrainedModel):
    spikegpt: SpikeGPT
    config_class = SpikeGPTConfig
    base_model_prefix = "spikegpt"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    # both models divide the loss by `num_items_in_batch`
    accepts_loss_kwargs = True
    # what a rejected draft has changed in the state cannot be taken back
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (the base class declares it)

    @classmethod
    def from_pretrained(cls, folder: Any, *arguments: Any, output_loading_info: bool = False, **options: Any) -> Any:  # type: ignore[override]
        """As the library's, but a checkpoint that lacks weights is refused; a classifier's head may be missing.

        Raises:
            SpikegptError: weights are missing.
        """
        loaded: Any = super().from_pretrained(folder, *arguments, output_loading_info=True, **options)
        model, found = loaded
        if missing := sorted(name for name in found["missing_keys"] if not name.startswith("score.")):
            raise SpikegptError(
                f"{folder} lacks weights of the network: {', '.join(missing)}; "
                "it is of another configuration, or broken"
            )
        return (model, found) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Embedding:
        return self.spikegpt.emb

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.spikegpt.emb = cast(nn.Embedding, value)
        self.spikegpt.config = dataclasses.replace(self.spikegpt.config, vocab_size=self.spikegpt.emb.num_embeddings)

    def _make_network(self) -> SpikeGPT:
        """The network, initialised by us; without numbers in from_pretrained, which builds on the meta device."""
        is_filled_later = torch.empty(0).is_meta
        if is_filled_later:
            return SpikeGPT(self.config.to_model_config(), init=False)
        network = _initialised(self.config.to_model_config())
        for module in network.modules():
            # a plain attribute, past the door through which modules take tensors and modules
            vars(module)["_is_hf_initialized"] = True
        return network

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Called for what a checkpoint does not fill: a classifier's head, other numbers of tokens or of classes."""
        # what is without numbers has none, or has them on a disk
        if all(parameter.is_meta for parameter in module.parameters(recurse=False)):
            return
        if module is getattr(self, "score", None):
            initialization.normal_(module.weight, std=0.02)
            initialization.zeros_(module.bias)
            return
        within = {part: name for name, part in self.spikegpt.named_modules()}
        # one with more tokens is given before it is a part of the network
        name = within.get(module, "emb" if isinstance(module, nn.Embedding) else "head")
        if name not in ("emb", "head"):
            raise SpikegptError(
                f"the checkpoint lacks weights of the network ({name}), or has them in another size; "
                "it is of another configuration, or broken"
            )
        weight = cast(Tensor, module.weight)
        config = dataclasses.replace(self.config.to_model_config(), n_layer=1, vocab_size=len(weight))
        initialization.copy_(weight, getattr(_initialised(config), name).weight)

    def _read(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        state: State | None,
        keeps_state: bool,
        keeps_layers: bool,
    ) -> Read:
        """What the head reads (B, T, n_embd), and all else that is known after it.

        Padding on the right is read last and changes no output before it. Where it stands on the left, or the state
        after it is wanted, each row is read alone: nothing that is padding may enter a recurrent state.
        """
        x, is_text = self._embed(input_ids, inputs_embeds, attention_mask, state)
        length = x.shape[1]
        all_last = torch.full((len(x),), length - 1, device=x.device)
        if state is not None and length == 1 and is_text is not None:
            # as in generation, where texts that have ended are padded; no look at the mask makes a GPU wait
            hidden, after, spikes, layers = self._run(x, state, keeps_layers)

            def choose(new: Any, old: Any) -> Any:
                ended = (len(x),) + (1,) * (new.dim() - 1) if isinstance(new, Tensor) else ()
                return torch.where(is_text.view(ended), new, old) if isinstance(new, Tensor) else new

            return Read(hidden, tree_map(choose, after, state), spikes, layers, is_text, all_last)
        if is_text is None or is_text.is_meta or bool(is_text.all()):
            return Read(*self._run(x, state, keeps_layers), None, all_last)
        if not is_text.any(dim=1).all():
            raise ValueError("a row of attention_mask holds no token; every text needs at least one")
        position = torch.arange(length, device=x.device)
        first, last = is_text.float().argmax(dim=1), torch.where(is_text, position, -1).amax(dim=1)
        if bool((is_text.sum(dim=1) != last - first + 1).any()):
            raise ValueError("attention_mask has holes; padding may stand before a text or behind it")
        if not keeps_state and not bool(first.any()):
            return Read(*self._run(x, state, keeps_layers), is_text, last)
        ends = [(int(begin), int(end) + 1) for begin, end in zip(first, last, strict=True)]
        rows = [
            self._run(x[row : row + 1, begin:end], select_texts(state, [row]) if state else None, keeps_layers)
            for row, (begin, end) in enumerate(ends)
        ]

        def join(parts: Any) -> Tensor:
            return torch.cat([F.pad(part, (0, 0, a, length - b)) for part, (a, b) in zip(parts, ends, strict=True)])

        layers = [join(parts) for parts in zip(*(row[3] for row in rows), strict=True)]
        # spikes of rows of several lengths have no common shape, and are left out
        return Read(join(row[0] for row in rows), join_states([row[1] for row in rows]), {}, layers, is_text, last)

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        state: State | None,
    ) -> tuple[Tensor, Tensor | None]:
        """(embeddings (B, T, n_embd), which of them are text (B, T), or None if nobody says that some are not)."""
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        is_text = None
        if attention_mask is not None:
            n_texts, length = given.shape[:2]
            fits = attention_mask.dim() == 2 and len(attention_mask) == n_texts
            if not fits or attention_mask.shape[1] < length or (attention_mask.shape[1] > length and state is None):
                raise ValueError(
                    f"attention_mask is {tuple(attention_mask.shape)}, the texts are {(n_texts, length)} (B, T); "
                    "longer than they it may be with a `state` only, which has read what came before"
                )
            # it may reach back over what the state has read
            is_text = attention_mask[:, -given.shape[1] :].bool()
        if input_ids is None:
            return given, is_text
        padding = self.config.pad_token_id
        # a token without a row is padding, whatever the mask says
        if padding is not None and padding >= self.spikegpt.config.vocab_size:
            is_text = input_ids != padding if is_text is None else is_text & (input_ids != padding)
        return self.spikegpt.embed(input_ids if is_text is None else input_ids.masked_fill(~is_text, 0)), is_text

    def _run(
        self, x: Tensor, state: State | None, keeps_layers: bool
    ) -> tuple[Tensor, State, dict[str, Tensor], list[Tensor]]:
        """The network's `hidden_of`, and what each block and the head read if that is wanted."""
        if keeps_layers and self.spikegpt.config.perspectives > 1:
            raise ValueError(
                f"output_hidden_states: between blocks a text has {self.spikegpt.config.perspectives} perspectives, "
                "each with hidden states of its own; leave it out"
            )
        layers: list[Tensor] = []
        hooks = [
            block.register_forward_pre_hook(lambda _, inputs: layers.append(inputs[0]))
            for block in (self.spikegpt.blocks if keeps_layers else ())
        ]
        try:
            hidden, after, spikes = self.spikegpt.hidden_of(x, state)
        finally:
            for hook in hooks:
                hook.remove()
        return hidden, after, spikes, [*layers, hidden] if keeps_layers else layers

    def _refuse_unknown(self, others: dict[str, Any], attention_mask: Tensor | None) -> None:
        """Raise for what is asked for and would be left out without a word."""
        if others.get("output_attentions"):
            raise ValueError("output_attentions: a recurrent model has no attentions to give out")
        position = others.get("position_ids")
        if position is not None and attention_mask is None and bool((position.diff(dim=-1) != 1).any()):
            raise ValueError("position_ids begin anew within a row; texts cannot share a row here: pad them instead")
        for name, value in others.items():
            if name not in UNUSED and value is not None and value is not False:
                raise TypeError(
                    f"{type(self).__name__}.forward() has no {name!r}; what is carried from token to token is `state`"
                )

    def _share_of_batch(
        self, loss: Tensor, learned: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        """The mean `loss` of the labels that are `learned`, as the part of `labels` in the mean of all batches."""
        # the mean of nothing is no number
        loss = torch.where((learned != -100).any(), loss, loss.new_zeros(()))
        if num_items_in_batch is None:
            return loss
        return loss * (labels != -100).sum() / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)

    def _finish(self, output: SpikeGPTOutput, return_dict: bool | None) -> SpikeGPTOutput | tuple:
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return output if wants_dict else output.to_tuple()


def _initialised(config: ModelConfig) -> SpikeGPT:
    """A new network in torch's default dtype; orthogonal matrices and thresholds are found in float32."""
    network = SpikeGPT(config, init=False).float()
    initialise(network)
    return network.to(torch.get_default_dtype())
