"""Train a small spike-driven model, hear of every step, stop early, and write a text."""

from spikegpt import ModelConfig, SamplingConfig, TrainConfig, load_model
from spikegpt.generate import generate
from spikegpt.train import Callback, EarlyStopping, train


class Curve(Callback):
    """Keeps bits per byte of every step, and those on valid."""

    def __init__(self):
        self.steps, self.valid = [], {}

    def on_step(self, facts):
        self.steps.append(facts.bits_per_byte)

    def on_evaluation(self, facts):
        self.valid[facts.step] = facts.valid.bits_per_byte


curve = Curve()
config = TrainConfig(steps=60, warmup_steps=5, eval_every=20, eval_tokens=2000, sample_every=0, self_teacher=1.0)
model_config = ModelConfig(n_layer=2, n_embd=32, ctx_len=32)
done = train(model_config, config, "runs/curve", cache="runs/cache", callbacks=[curve, EarlyStopping(steps=40)])
print(
    f"{curve.steps[0]:.2f} bits per byte before, {done.valid.bits_per_byte:.2f} after {done.step} steps: {curve.valid}"
)

model, tokenizer = load_model(done.run)
print(generate(model, tokenizer, ["The "], SamplingConfig(max_tokens=60))[0])
