"""Which half of which block matters most: bits per byte with its neurons silenced, one half after the other."""

from spikegpt import ModelConfig, TrainConfig, evaluate_stream, load_model, silenced
from spikegpt.train import train

config = TrainConfig(steps=60, warmup_steps=5, eval_tokens=2000, sample_every=0, self_teacher=1.0)
done = train(ModelConfig(n_layer=2, n_embd=32, ctx_len=32), config, "runs/silence", cache="runs/cache", quiet=True)

model, tokenizer = load_model(done.run)
tokens = tokenizer.encode(
    "The value of an attribute is looked up in the class, and then in the bases of the class. " * 4
)
print(f"as trained: {evaluate_stream(model, tokens, tokenizer).bits_per_byte:.3f} bits per byte")
for half in sorted({site.rpartition(".")[0] for site in model.sites()}):
    with silenced(model, f"{half}.*"):
        print(f"without {half}: {evaluate_stream(model, tokens, tokenizer).bits_per_byte:.3f}")
