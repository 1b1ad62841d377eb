"""Our models as Hugging Face's: Auto classes, save_pretrained, generate with carried state, Trainer, pipeline.

Needs the extra `hf`. Thin: the network is `SpikeGPT`, here it only changes clothes. Importing this module registers the
classes with the Auto classes:

    import spikegpt.huggingface
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..config import ModelConfig
from ..data.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer
from ..data.tokenizers.bpe import byte_letters
from ..model.network import SpikeGPT
from ..model.state import State, join_states

try:
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        GenerationMixin,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerFast,
    )
    from transformers.utils import ModelOutput
except ModuleNotFoundError as error:
    raise SpikegptError(f"spikegpt.huggingface needs {error.name}: pip install 'spikegpt[hf]'") from None

END = "<|endoftext|>"


class SpikeGPTConfig(PreTrainedConfig):
    """`ModelConfig`'s fields, by their names, beside those that every configuration of Hugging Face's has."""

    model_type = "spikegpt"
    attribute_map = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "max_position_embeddings": "ctx_len"}  # noqa: RUF012 (the base class declares it)

    def __post_init__(self, **others: Any):
        names = ModelConfig().to_dict()
        model = ModelConfig.from_dict({name: others.pop(name) for name in names if name in others})
        for name, value in model.to_dict().items():
            setattr(self, name, value)
        # the head is never the embedding
        others.setdefault("tie_word_embeddings", False)
        super().__post_init__(**others)

    def to_model_config(self) -> ModelConfig:
        return ModelConfig.from_dict({name: getattr(self, name) for name in ModelConfig().to_dict()})

    @classmethod
    def from_model_config(cls, config: ModelConfig, **others: Any) -> "SpikeGPTConfig":
        return cls(**config.to_dict(), **others)


@dataclass
class SpikeGPTOutput(ModelOutput):
    """`logits` (B, T, vocab_size), of a classifier (B, num_labels); `state`, put in to read on; `spikes` by layer."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    state: State | None = None
    spikes: dict[str, Tensor] | None = None


class _SpikeGPTPreTrained(PreTrainedModel):
    spikegpt: SpikeGPT
    config_class = SpikeGPTConfig
    base_model_prefix = "spikegpt"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    # what a rejected draft has changed in the state cannot be taken back
    _is_stateful = True

    def _make_network(self) -> SpikeGPT:
        """The network, initialised by us; without numbers in from_pretrained, which builds on the meta device."""
        is_filled_later = torch.empty(0).is_meta
        network = SpikeGPT(self.config.to_model_config(), init=not is_filled_later)
        for module in network.modules() if not is_filled_later else ():
            # a plain attribute, past the door through which modules take tensors and modules
            vars(module)["_is_hf_initialized"] = True
        return network

    def _init_weights(self, module: nn.Module) -> None:
        """Called for what a checkpoint does not fill, which may be a classifier's head and nothing else."""
        if module is getattr(self, "score", None):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif any(True for _ in module.parameters(recurse=False)):
            raise SpikegptError(
                "the checkpoint lacks weights of the network; it is of another configuration, or broken"
            )

    def _read(
        self, input_ids: Tensor, attention_mask: Tensor | None, state: State | None, keeps_state: bool
    ) -> tuple[Tensor, State, dict[str, Tensor], Tensor]:
        """(what the head reads (B, T, n_embd), state, spikes, index of each row's last token (B,)).

        Padding on the right is read last and changes no output before it. Where it stands on the left, or the state
        after it is wanted, each row is read alone: nothing that is padding may enter a recurrent state.
        """
        network = self.spikegpt
        if attention_mask is None or state is not None or bool(attention_mask.all()):
            return *network.hidden(input_ids, state), input_ids.new_full((len(input_ids),), input_ids.shape[1] - 1)
        is_real = attention_mask.bool()
        if not is_real.any(dim=1).all():
            raise ValueError("a row of attention_mask holds no token; every text needs at least one")
        position = torch.arange(is_real.shape[1], device=is_real.device)
        first, last = is_real.float().argmax(dim=1), torch.where(is_real, position, -1).amax(dim=1)
        if bool((is_real.sum(dim=1) != last - first + 1).any()):
            raise ValueError("attention_mask has holes; padding may stand before a text or behind it")
        if not keeps_state and not bool(first.any()):
            return *network.hidden(input_ids), last
        rows = [
            network.hidden(ids[None, begin : end + 1])
            for ids, begin, end in zip(input_ids, first.tolist(), last.tolist(), strict=True)
        ]
        hidden = [
            F.pad(x, (0, 0, begin, len(position) - 1 - end))
            for (x, _, _), begin, end in zip(rows, first.tolist(), last.tolist(), strict=True)
        ]
        # spikes of rows of several lengths have no common shape, and are left out
        return torch.cat(hidden), join_states([state for _, state, _ in rows]), {}, last


class SpikeGPTForCausalLM(_SpikeGPTPreTrained, GenerationMixin):
    """A language model; `generate` carries the state, so its memory does not grow with the text."""

    def __init__(self, config: SpikeGPTConfig):
        super().__init__(config)
        self.spikegpt = self._make_network()
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_input_embeddings(self) -> nn.Embedding:
        return self.spikegpt.emb

    def get_output_embeddings(self) -> nn.Linear:
        return self.spikegpt.head

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        state: State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_spikes: bool = False,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> SpikeGPTOutput | tuple:
        """Return loss, logits, state and spikes.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 where padding is: on either side of a text.
            state: carried in; input_ids are then the tokens after it, without padding.
            labels: (B, T), -100 where nothing is to be learned; position t is learned from what comes before it.
            use_cache: whether the state is given out; default, unless training.
            logits_to_keep: only so many of the last positions; 0 is all.
        """
        keeps_state = not self.training if use_cache is None else use_cache
        x, new_state, spikes, _ = self._read(input_ids, attention_mask, state, keeps_state)
        x = x[:, -logits_to_keep:] if logits_to_keep else x
        logits = self.spikegpt.read_out(x, spikes)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].to(logits.device).flatten(), ignore_index=-100
            )
        output = SpikeGPTOutput(
            loss=loss, logits=logits, state=new_state if keeps_state else None, spikes=spikes if output_spikes else None
        )
        return output if return_dict or return_dict is None else output.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Any = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = None,
        *,
        state: State | None = None,
        use_cache: bool = True,
        **others: Any,
    ) -> dict[str, Any]:
        # after the prompt, one token and the state are all there is to read
        if state is not None:
            return {"input_ids": input_ids[:, -1:], "state": state, "use_cache": use_cache}
        return {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache, "logits_to_keep": 1}

    @staticmethod
    def _reorder_cache(state: State, beams: Tensor) -> State:
        return tree_map(lambda part: part.index_select(0, beams) if isinstance(part, Tensor) else part, state)


class SpikeGPTForSequenceClassification(_SpikeGPTPreTrained):
    """A linear head on what the language model's head reads at the last token of a text; trained whole."""

    def __init__(self, config: SpikeGPTConfig):
        super().__init__(config)
        self.spikegpt = self._make_network()
        # the library's classes say that it may be None; it is a number once the configuration is made
        self.n_classes = cast(int, config.num_labels)
        self.score = nn.Linear(config.n_embd, self.n_classes)
        self.post_init()
        # of no use here
        self.spikegpt.register_module("head", nn.Identity())

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_spikes: bool = False,
        return_dict: bool | None = None,
        **others: Any,
    ) -> SpikeGPTOutput | tuple:
        """Return loss, logits (B, num_labels) and spikes of texts (B, T); labels (B,) in [0, num_labels)."""
        x, _, spikes, last = self._read(input_ids, attention_mask, None, keeps_state=False)
        logits = self.score(x[torch.arange(len(x), device=x.device), last])
        loss = None
        if labels is not None:
            wrong = (labels < 0) | (labels >= self.n_classes)
            if bool(wrong.any()):
                raise ValueError(
                    f"label {int(labels[wrong][0])} is outside [0, {self.n_classes}); "
                    "set num_labels to the number of classes"
                )
            loss = F.cross_entropy(logits.float(), labels)
        output = SpikeGPTOutput(loss=loss, logits=logits, spikes=spikes if output_spikes else None)
        return output if return_dict or return_dict is None else output.to_tuple()


AutoConfig.register("spikegpt", SpikeGPTConfig)
AutoModelForCausalLM.register(SpikeGPTConfig, SpikeGPTForCausalLM)
AutoModelForSequenceClassification.register(SpikeGPTConfig, SpikeGPTForSequenceClassification)


def from_run(run: str | Path) -> tuple[SpikeGPTForCausalLM, PreTrainedTokenizerFast]:
    """Return (model, tokenizer) of a run, a checkpoint or an imported model, in evaluation mode.

    Raises:
        SpikegptError: no whole model is there, or its tokenizer has no equal in Hugging Face's library.
    """
    model, tokenizer = load_model(run)
    theirs = to_huggingface_tokenizer(tokenizer)
    special = {
        "eos_token_id": theirs.eos_token_id,
        "bos_token_id": theirs.eos_token_id,
        "pad_token_id": theirs.pad_token_id,
    }
    wrapped = SpikeGPTForCausalLM(
        SpikeGPTConfig.from_model_config(model.config, architectures=["SpikeGPTForCausalLM"], **special)
    )
    wrapped.spikegpt.load_state_dict(model.state_dict())
    return wrapped.eval(), theirs


def to_huggingface_tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return a tokenizer of Hugging Face's with the same ids; texts are padded on the left, for `generate`.

    A vocabulary without an end-of-text token has none here either, and is padded with token 0, which the mask hides.
    """
    values = tokenizer.to_json()
    if isinstance(tokenizer, BPETokenizer):
        library = LibraryTokenizer.from_str(json.dumps(values))
    elif isinstance(tokenizer, ByteTokenizer):
        # the vocabulary of single letters that stand for bytes, and no pair of them
        library = LibraryTokenizer(models.BPE({letter: byte for byte, letter in enumerate(byte_letters())}, []))
        library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.decoder = decoders.ByteLevel()
    elif isinstance(tokenizer, CharTokenizer):
        library = LibraryTokenizer(
            models.WordLevel(
                {character: id for id, character in enumerate(values["characters"])}, values["characters"][0]
            )
        )
        library.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
        library.decoder = decoders.Fuse()
    else:
        raise SpikegptError(
            f"{type(tokenizer).__name__} has no equal in Hugging Face's library; "
            "train with --tokenizer byte, char or bpe"
        )
    end = END if library.token_to_id(END) is not None else None
    return PreTrainedTokenizerFast(
        tokenizer_object=library,
        eos_token=end,
        bos_token=end,
        pad_token=end or library.id_to_token(0),
        padding_side="left",
    )
