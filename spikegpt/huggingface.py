"""The door that users of Hugging Face know: `import spikegpt.huggingface` registers the Auto classes of interop."""

from .interop.huggingface import (
    SpikeGPTConfig,
    SpikeGPTForCausalLM,
    SpikeGPTForSequenceClassification,
    SpikeGPTOutput,
    from_run,
    to_huggingface_tokenizer,
)

__all__ = [
    "SpikeGPTConfig",
    "SpikeGPTForCausalLM",
    "SpikeGPTForSequenceClassification",
    "SpikeGPTOutput",
    "from_run",
    "to_huggingface_tokenizer",
]
