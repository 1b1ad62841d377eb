"""Small models in Hugging Face's clothes, untrained but with numbers in every parameter, so that all of it matters."""

import torch
from runs import BLOCKS

from spikegpt.config import ModelConfig
from spikegpt.interop.huggingface import SpikeGPTConfig, SpikeGPTForCausalLM, SpikeGPTForSequenceClassification

CLASSES = (SpikeGPTForCausalLM, SpikeGPTForSequenceClassification)
# the id of padding in a vocabulary of 64
PADDING = 64
MODEL = ModelConfig(n_layer=2, n_embd=16, vocab_size=64, ctx_len=16, dropout=0.0)


def make(kind=SpikeGPTForCausalLM, block: str = "input", seed: int = 0, **options):
    """A model of `kind` in evaluation mode; `options` go into its configuration."""
    torch.manual_seed(seed)
    config = SpikeGPTConfig.from_model_config(
        ModelConfig(**{**MODEL.to_dict(), **BLOCKS[block], "neuron": None}), **{"pad_token_id": PADDING, **options}
    )
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


def some_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(MODEL.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def pad(rows: list[torch.Tensor], side: str = "right", filler: int = PADDING) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) of texts of several lengths."""
    longest = max(map(len, rows))
    ids, mask = torch.full((len(rows), longest), filler), torch.zeros(len(rows), longest, dtype=torch.long)
    for n, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[n, place], mask[n, place] = row, 1
    return ids, mask
