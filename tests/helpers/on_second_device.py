"""A program: runs what runs a model on the CPU and on a second device: `python on_second_device.py RUN FOLDER`.

Prints (what, its figure on the CPU, its figure there) as JSON.
"""

import json
import sys
import warnings
from pathlib import Path

import second_device
import torch

from spikegpt.checkpoint.weights import load_model
from spikegpt.config import ClassifyConfig
from spikegpt.config.sampling import SamplingConfig
from spikegpt.data.labelled import Example, Task
from spikegpt.evaluate.harness import SpikeGPTHarness
from spikegpt.evaluate.perplexity import evaluate_stream, evaluate_windows
from spikegpt.evaluate.scoring import score_continuations
from spikegpt.generate import generate
from spikegpt.measure import runs as measure
from spikegpt.train.classify import classify, finetune, load_classifier

run, folder = Path(sys.argv[1]), Path(sys.argv[2])
# few tokens: every operation of the second device takes its time
measure.DECODED, measure.SPEED_ROUNDS, measure.RASTER_TOKENS = 2, 1, 4
# no fast kernel there, which is known
warnings.simplefilter("ignore", RuntimeWarning)
EXAMPLES = (Example("good day", 1), Example("bad", 0))
TASK = Task(name="task", classes=("bad", "good"), train=EXAMPLES, valid=EXAMPLES, test=EXAMPLES)


def figures(device: torch.device) -> dict[str, object]:
    model, tokenizer = load_model(run, device=device)
    assert model.device.type == device.type
    tokens = tokenizer.encode(b"the neuron fires")
    greedy = SamplingConfig(max_tokens=2, temperature=0)
    harness = SpikeGPTHarness(str(run), device=device)
    found = {
        "evaluate_stream": evaluate_stream(model, tokens, tokenizer).nats,
        "evaluate_windows": evaluate_windows(model, tokens, tokenizer, 8, 4).nats,
        "score_continuations": [
            score.log_probability for score in score_continuations(model, [([1, 2, 3], [4, 5]), ([1, 2], [4])])
        ],
        "generate": generate(model, tokenizer, ["a", "bc"], greedy),
        "measure": measure.measure_model(model, tokenizer, tokens, name="m", source="here").bits_per_byte,
        "measure_speed": len(measure.measure_speed([model], [tokens])),
        "lm_eval": harness._loglikelihood_tokens([(("a", "b"), [1], [2])], disable_tqdm=True)[0][0],
        "finetune": finetune(
            run, TASK, ClassifyConfig(epochs=1, seeds=(0,), batch_size=2), folder / device.type, device
        )["accuracy"],
    }
    # the same for both: training enlarges what is rounded otherwise
    classifier, tokenizer, _ = load_classifier(folder / "cpu" / "seed-0")
    found["classify"] = classify(classifier.to(device), tokenizer, ["good"]).tolist()[0]
    return found


here, there = figures(torch.device("cpu")), figures(second_device.DEVICE)
print(json.dumps([(what, here[what], there[what]) for what in here]))
