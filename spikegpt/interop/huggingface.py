"""Our models as Hugging Face's: Auto classes, save_pretrained, generate with carried state, Trainer, pipeline.

Needs the extra `hf`. Thin: the network is `SpikeGPT`, here it only changes clothes. Importing this module registers the
classes with the Auto classes:

    import spikegpt.huggingface
    model = AutoModelForCausalLM.from_pretrained(FOLDER)

Tokenizers: tokenizer_files.py. What of the library's contracts holds: docs/hugging_face.md.
"""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from ..checkpoint.weights import load_model
from ..data.tokenizers import Tokenizer
from ..model.state import State
from .pretrained import SpikeGPTConfig, SpikeGPTOutput, SpikeGPTPreTrained
from .tokenizer_files import library_tokenizer, rows_without_token, tokenizer_options

# isort: split
# after .pretrained, which says what to install where this is missing
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationMixin,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


class SpikeGPTForCausalLM(SpikeGPTPreTrained, GenerationMixin):
    """A language model; `generate` carries the state, so its memory does not grow with the text."""

    def __init__(self, config: SpikeGPTConfig):
        super().__init__(config)
        self.spikegpt = self._make_network()
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def get_output_embeddings(self) -> nn.Linear:
        return self.spikegpt.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.spikegpt.head = new_embeddings
        # they are of the tokenizer whose padding is among them; see `from_run`
        if self.config.pad_token_id not in (self.generation_config.suppress_tokens or ()):
            self.generation_config.suppress_tokens = None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        state: State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_spikes: bool = False,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> SpikeGPTOutput | tuple:
        """Return loss, logits, state, spikes and hidden states.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T), 0 where padding is: on either side of a text. With a state it may begin earlier.
            state: carried in; input_ids are then the tokens after it.
            labels: (B, T), -100 where nothing is to be learned; position t is learned from what comes before it, the
                first token of a text from nothing, and so not at all.
            use_cache: whether the state is given out; default, as in the configuration, but not in training.
            logits_to_keep: only so many of the last positions, or these; 0 is all.
            inputs_embeds: (B, T, n_embd) in the place of input_ids, as the input embeddings give them out.
            num_items_in_batch: labels of all batches whose gradients are added up; the loss is divided by it.

        Raises:
            ValueError: the mask has holes, or what is given does not fit together.
        """
        self._refuse_unknown(others, attention_mask)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        wants_layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        read = self._read(input_ids, inputs_embeds, attention_mask, state, use_cache, bool(wants_layers))
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-logits_to_keep or None, None)
        logits = self.spikegpt.read_out(read.hidden[:, kept], read.spikes)
        output = SpikeGPTOutput(
            loss=None if labels is None else self._loss(logits, labels, read.is_text, num_items_in_batch),
            logits=logits,
            state=read.state if use_cache else None,
            spikes=read.spikes if output_spikes else None,
            hidden_states=tuple(read.layers) if wants_layers else None,
        )
        return self._finish(output, return_dict)

    def _loss(self, logits: Tensor, labels: Tensor, is_text: Tensor | None, n_items: Tensor | int | None) -> Tensor:
        labels = labels.to(logits.device, torch.long)
        vocab_size = self.spikegpt.config.vocab_size
        wrong = (labels >= vocab_size) | ((labels < 0) & (labels != -100))
        # a GPU reports it by itself, and would have to wait here
        if labels.device.type == "cpu" and bool(wrong.any()):
            raise ValueError(
                f"label {int(labels[wrong][0])} is no token of the vocabulary [0, {vocab_size}); "
                "set -100 where nothing is to be learned, as at padding"
            )
        learned = labels
        if is_text is not None:
            learned = labels.masked_fill(F.pad(~is_text[:, :-1], (1, 0)), -100)
        loss = self.loss_function(logits=logits, labels=learned, vocab_size=vocab_size)
        if is_text is not None and n_items is not None:
            _warn_of_first_tokens(learned[:, 1:] != -100, labels[:, 1:] != -100, n_items)
        # the share by the labels that Trainer counted, among them the first tokens of texts padded on the left
        return self._share_of_batch(loss, learned[:, 1:], labels[:, 1:], n_items)

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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        given: dict[str, Any] = {
            "use_cache": use_cache,
            "logits_to_keep": 1,
            "output_hidden_states": output_hidden_states,
            "output_attentions": output_attentions,
        }
        # after the prompt, one token and the state are all there is to read
        if use_cache and state is not None and not is_first_iteration:
            return {"input_ids": input_ids[:, -1:], "state": state, **given}
        if is_first_iteration and attention_mask is not None and not bool(attention_mask[:, -1].all()):
            raise ValueError("texts are padded on the right, where generate goes on; pad them with padding_side='left'")
        given |= {"attention_mask": attention_mask, "state": state}
        if inputs_embeds is None:
            return {"input_ids": input_ids, **given}
        # they stand for the prompt; the mask says how many tokens came after it
        n_new = 0 if attention_mask is None else attention_mask.shape[1] - inputs_embeds.shape[1]
        new = self.get_input_embeddings()(input_ids[:, input_ids.shape[1] - n_new :])
        return {"inputs_embeds": torch.cat([inputs_embeds, new], dim=1), **given}

    def _prepare_generation_config(self, generation_config: Any, **options: Any) -> Any:
        """As the library's, but what is no token stays suppressed beside what the caller suppresses."""
        # the library declares the self of its mixins by a protocol
        config, others = super()._prepare_generation_config(generation_config, **options)  # type: ignore[misc]
        suppressed = {*(config.suppress_tokens or ()), *(self.generation_config.suppress_tokens or ())}
        config.suppress_tokens = sorted(suppressed) or None
        return config, others

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> Any:
        """As the library's, which without a mask takes each padding token for padding: refused where it may be text.

        Models exported by earlier versions pad with token 0 of their vocabulary.
        """
        mask = super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)
        padding, suppressed = generation_config.pad_token_id, generation_config.suppress_tokens or ()
        has_row = padding is not None and padding < self.spikegpt.config.vocab_size and padding not in suppressed
        if has_row and not bool(mask.all()):
            raise ValueError(
                f"the prompt holds token {padding}, which is the padding and may be a token of the text as well; "
                "give an attention_mask, as the tokenizer does, or export the run anew: its padding is no token"
            )
        return mask

    def _expand_inputs_for_generation(self, expand_size: int = 1, *arguments: Any, **inputs: Any) -> Any:
        """As the library's, which expands tensors and no trees of them."""
        if inputs.get("state") is not None:
            inputs["state"] = _map_tensors(lambda part: part.repeat_interleave(expand_size, dim=0), inputs["state"])
        # as above
        return super()._expand_inputs_for_generation(expand_size, *arguments, **inputs)  # type: ignore[misc]

    @staticmethod
    def _reorder_cache(state: State, beams: Tensor) -> State:
        return _map_tensors(lambda part: part.index_select(0, beams), state)


class SpikeGPTForSequenceClassification(SpikeGPTPreTrained):
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

    def get_output_embeddings(self) -> None:
        return None

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_spikes: bool = False,
        return_dict: bool | None = None,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **others: Any,
    ) -> SpikeGPTOutput | tuple:
        """Return loss, logits (B, num_labels), spikes and hidden states of texts.

        Args:
            input_ids, attention_mask, inputs_embeds, num_items_in_batch: as of the language model.
            labels: (B,) whole numbers in [0, num_labels), or -100; for regression (B,) or (B, num_labels) numbers; for
                `problem_type="multi_label_classification"` (B, num_labels) of 0 and 1.

        Raises:
            ValueError: a label is no class, or what is given does not fit together.
        """
        self._refuse_unknown(others, attention_mask)
        wants_layers = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        read = self._read(input_ids, inputs_embeds, attention_mask, None, False, bool(wants_layers))
        logits = self.score(read.hidden[torch.arange(len(read.last), device=read.last.device), read.last])
        output = SpikeGPTOutput(
            loss=None if labels is None else self._loss(logits, labels.to(logits.device), num_items_in_batch),
            logits=logits,
            spikes=read.spikes if output_spikes else None,
            hidden_states=tuple(read.layers) if wants_layers else None,
        )
        return self._finish(output, return_dict)

    def _loss(self, logits: Tensor, labels: Tensor, n_items: Tensor | int | None) -> Tensor:
        problem = self.config.problem_type
        names_classes = self.n_classes > 1 and not labels.is_floating_point() and labels.dtype != torch.bool
        if problem == "single_label_classification" or (problem is None and names_classes):
            labels = labels.long()
            wrong = (labels != -100) & ((labels < 0) | (labels >= self.n_classes))
            if bool(wrong.any()):
                raise ValueError(
                    f"label {int(labels[wrong][0])} is outside [0, {self.n_classes}); "
                    "set num_labels to the number of classes"
                )
        else:
            labels = labels.float()
        loss = self.loss_function(labels=labels, pooled_logits=logits.float(), config=self.config)
        return self._share_of_batch(loss, labels, labels, n_items)


def _warn_of_first_tokens(is_learned: Tensor, is_counted: Tensor, n_items: Tensor | int) -> None:
    """Warn where Trainer counts what is not learned, and other batches share its count: they weigh too little then."""
    n_learned, n_counted = int(is_learned.sum()), int(is_counted.sum())
    if n_learned < n_counted < int(torch.as_tensor(n_items).max()):
        warnings.warn(
            "texts are padded on the left, where Trainer counts their first tokens, which are learned from nothing, "
            "among the labels of all accumulated batches: a batch weighs too much by them. To train, set "
            "tokenizer.padding_side = 'right'",
            stacklevel=2,
        )


def _map_tensors(function: Any, state: State) -> State:
    return tree_map(lambda part: function(part) if isinstance(part, Tensor) else part, state)


AutoConfig.register("spikegpt", SpikeGPTConfig)
AutoModelForCausalLM.register(SpikeGPTConfig, SpikeGPTForCausalLM)
AutoModelForSequenceClassification.register(SpikeGPTConfig, SpikeGPTForSequenceClassification)
# Trainer's label smoothing asks here, by the class's name, whether labels are those of the next token
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["spikegpt"] = SpikeGPTForCausalLM.__name__


def from_run(run: str | Path) -> tuple[SpikeGPTForCausalLM, PreTrainedTokenizerFast]:
    """Return (model, tokenizer) of a run, a checkpoint or an imported model, in evaluation mode.

    Raises:
        SpikegptError: no whole model is there, or its tokenizer has no equal in Hugging Face's library.
    """
    model, tokenizer = load_model(run)
    theirs = to_huggingface_tokenizer(tokenizer, model.config.vocab_size)
    special = {
        "eos_token_id": theirs.eos_token_id,
        "bos_token_id": theirs.eos_token_id,
        "pad_token_id": theirs.pad_token_id,
    }
    wrapped = SpikeGPTForCausalLM(
        SpikeGPTConfig.from_model_config(model.config, architectures=["SpikeGPTForCausalLM"], **special)
    )
    wrapped.spikegpt.load_state_dict(model.state_dict())
    # padding and an unknown token have no row yet, and get one if tokens are added behind them
    wrapped.generation_config.suppress_tokens = rows_without_token(tokenizer, len(theirs))
    return wrapped.eval(), theirs


def to_huggingface_tokenizer(tokenizer: Tokenizer, rows: int | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer of Hugging Face's with the same ids; texts are padded on the left, for `generate`.

    The padding token lies behind the vocabulary. One without an end-of-text token has none here either.

    Args:
        rows: vocab_size of the model, where that has more rows than there are tokens.

    Raises:
        SpikegptError: it is of a kind that the library has no equal of.
    """
    library = library_tokenizer(tokenizer, rows)
    return PreTrainedTokenizerFast(tokenizer_object=library, **tokenizer_options(library, pads=True))
