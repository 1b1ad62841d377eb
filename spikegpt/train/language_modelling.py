"""Language modelling as what a loop trains for; judged by bits per byte on the valid split.

Windows or streams of a text, the next token of each, and what the configuration adds to the loss.
"""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint.files import is_finite
from ..checkpoint.weights import load_model
from ..common.errors import SpikegptError
from ..common.shards import whole
from ..config import TrainConfig
from ..data.tokens.token_file import TokenData
from ..evaluate.perplexity import Evaluation, NotFinite, evaluate_stream
from ..model.network import ModelOutput, SpikeGPT
from ..model.state import State, detach_state
from ..neuron.lif import LIF
from .convert import anneal
from .latent import LatentWeights
from .loop import Advice, Forward
from .losses import Reading, WithoutNeurons, make_terms
from .precision import autocast, rehearse
from .sampler import StreamSampler, WindowSampler
from .schedules import spike_share, synop_budget

if TYPE_CHECKING:
    from accelerate import Accelerator


class LanguageModelling:
    """The next token of the text `data`.

    `state` is carried from step to step if the configuration asks for it, else None. `best` is the step and the bits
    per byte of the best evaluation so far, empty before the first that counts.
    """

    def __init__(
        self,
        model: nn.Module,
        bare_model: SpikeGPT,
        data: TokenData,
        config: TrainConfig,
        accelerator: "Accelerator",
        latent: LatentWeights | None = None,
    ):
        """
        Args:
            model: what training calls: `bare_model`, or what accelerate wrapped around it.
            latent: the weights that are learned, where the model holds their codes.

        Raises:
            SpikegptError: the text is too short, or the teacher is missing or has another tokenizer.
        """
        self.model, self.bare_model, self.data, self.config = model, bare_model, data, config
        self.accelerator, self.synapses, self.latent = accelerator, bare_model.synapses(), latent
        self.sampler = self._make_sampler()
        self.teacher = None if config.teacher is None else self._load_teacher(config.teacher)
        # module of a block -> its stream at the last call, where features are taught
        self._streams: dict[nn.Module, Tensor] = {}
        if self.teacher is not None and config.teacher_features:
            for block in (*bare_model.blocks, *self.teacher.blocks):
                block.register_forward_hook(lambda block, _, output: self._keep_stream(block, *output))
        neurons = [module for module in bare_model.modules() if isinstance(module, LIF) and module.can_commit]
        # of the call under way, if it is the one with neurons that is learned from; else None
        self._commitment_errors: list[Tensor] | None = None
        if config.commitment:
            for neuron in neurons:
                # a function, not a method: whoever copies the model does not copy this object with it
                neuron.register_forward_hook(lambda neuron, inputs, _: self._keep_commitment_error(neuron, *inputs))
        emits_spikes = bare_model.config.spiking != "none"
        self.terms = make_terms(config, self.synapses, emits_spikes=emits_spikes, commits=bool(neurons))
        self.teaches_itself = any(isinstance(term, WithoutNeurons) for term in self.terms)
        self.state: State | None = None
        self.best: dict[str, Any] = {}

    def _make_sampler(self) -> WindowSampler | StreamSampler:
        kind = StreamSampler if self.config.carry_state else WindowSampler
        return kind(
            self.data.split("train"),
            self.bare_model.config.ctx_len,
            self.config.batch_size,
            seed=self.config.seed,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
        )

    def _load_teacher(self, folder: str) -> SpikeGPT:
        model, tokenizer = load_model(folder)
        if tokenizer.fingerprint != self.data.tokenizer.fingerprint:
            raise SpikegptError(f"the teacher {folder} has another tokenizer; its tokens are not this run's")
        if self.config.teacher_features:
            for size in ("n_layer", "n_embd", "perspectives"):
                theirs, ours = getattr(model.config, size), getattr(self.bare_model.config, size)
                if theirs != ours:
                    raise SpikegptError(
                        f"the teacher {folder} has {size} {theirs}, the model {ours}: its stream cannot be learned; "
                        "leave out --teacher-features"
                    )
        return model.to(self.accelerator.device).eval()

    @property
    def advice(self) -> Advice:
        return Advice(
            batch=f"batch_size {self.config.batch_size} x ctx_len {self.bare_model.config.ctx_len}",
            too_large="lower --batch-size and raise --grad-accumulation as much, or lower --ctx-len",
            diverged="Lower --lr or raise --warmup-steps",
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads, in all processes together."""
        return self.sampler.global_batch * self.bare_model.config.ctx_len * self.config.grad_accumulation

    def tokens_per_byte(self, split: str) -> float:
        facts = self.data.header["splits"][split]
        return facts["tokens"] / facts["bytes"]

    def bits_per_byte(self, cross_entropy: float) -> float:
        """Return the bits per byte of the train split that so many nats per token are."""
        return cross_entropy / math.log(2) * self.tokens_per_byte("train")

    def forward(self, step: int) -> Forward:
        """Return what the model makes of the sampler's next batch; its neurons spike as often as they do by `step`."""
        ids, targets, *starts = self.sampler.next()
        if starts and bool(starts[0].any()):
            # every lane ends at the same step, so all of them start anew together
            self.state = None
        ids, targets = ids.to(self.accelerator.device), targets.to(self.accelerator.device)
        taught, own = self._predictions(ids), None
        if self.teaches_itself:
            anneal(self.bare_model, 0.0)
            (logits, _, _), own = self._read(ids, targets)
            taught = logits.detach()
        anneal(self.bare_model, spike_share(step, self.config))
        self._commitment_errors = []
        (logits, state, spikes), cross_entropy = self._read(ids, targets)
        errors, self._commitment_errors = self._commitment_errors, None
        self.state = detach_state(state) if self.config.carry_state else None
        streams = self._streams_after(self.bare_model), self._streams_after(self.teacher)
        reading = Reading(step, cross_entropy, logits, spikes, taught, *streams, own, errors)
        return Forward(cross_entropy, {term.name: term(reading) for term in self.terms}, spikes)

    def _read(self, ids: Tensor, targets: Tensor) -> tuple[ModelOutput, Tensor]:
        """What the model makes of ids (B, T), and its cross-entropy (scalar, nats per token)."""
        with autocast(self.config.precision, self.accelerator.device):
            output = self.model(ids, self.state)
            return output, F.cross_entropy(output[0].float().flatten(0, 1), targets.flatten())

    def rehearse(self) -> None:
        """Do the work of a micro step, forward and backward, for a clock to see; nothing is changed by it."""
        rehearse(self.bare_model, self.config.batch_size, self.bare_model.config.ctx_len, self.config.precision)

    def _keep_stream(self, block: nn.Module, x: Tensor, *_: Any) -> None:
        self._streams[block] = x

    def _keep_commitment_error(self, neuron: LIF, current: Tensor, *_: Any) -> None:
        # not where the model is evaluated or rehearsed, nor in the pass that leaves neurons out
        if self._commitment_errors is not None:
            self._commitment_errors.append(neuron.commitment_error(current))

    def _streams_after(self, model: SpikeGPT | None) -> list[Tensor]:
        """The streams after each block of `model` at its last call, which are forgotten here."""
        return [self._streams.pop(block) for block in model.blocks] if self._streams and model is not None else []

    @torch.no_grad()
    def _predictions(self, ids: Tensor) -> Tensor | None:
        if self.teacher is None:
            return None
        with autocast(self.config.precision, self.accelerator.device):
            return self.teacher(ids).logits

    def evaluate(self, step: int) -> Evaluation:
        """Return how well the model predicts the valid split; remember `step` if it was never better."""
        tokens = self.data.split("valid")[: self.config.eval_tokens]
        valid = evaluate_stream(self.bare_model, tokens, self.data.tokenizer)
        if self._is_settled(step) and (not self.best or valid.bits_per_byte < self.best["bits_per_byte"]):
            self.best = {"step": step, "bits_per_byte": valid.bits_per_byte}
        return valid

    def check_finite(self) -> None:
        """Raise NotFinite unless all weights are finite, and what the model makes of the beginning of valid."""
        for name, tensor in self.bare_model.state_dict().items():
            if not is_finite(whole(tensor)):
                raise NotFinite(f"the weights {name!r} hold NaN or infinity")
        tokens = self.data.split("valid")[: self.bare_model.config.ctx_len + 1]
        evaluate_stream(self.bare_model, tokens, self.data.tokenizer)

    def _is_settled(self, step: int) -> bool:
        """Whether all neurons spike and the whole budget is in force: a model from before is not the run's aim."""
        has_budget = self.synapses and self.config.has_budget
        return spike_share(step, self.config) == 1 and (
            not has_budget or synop_budget(step, self.config) == self.config.synop_budget
        )
