"""The card of a model that comes with spikegpt, in Hugging Face's form: YAML for programs, Markdown for people.

Source of the form: huggingface.co/docs/hub/model-cards, "model card metadata"; `model-index` is that of Papers with
Code. `spikegpt list` reads it (measure/listing.py). The figures are those of ship.py.
"""

from typing import Any

import yaml

from spikegpt.measure.listing import BITS, FIRING

BLOCKS = {"input": "spike-driven", "output": "spiking (published block)", "none": "dense"}
OPERATIONS = {
    "multiply-accumulates of matrix products, per token": "macs",
    "accumulations of matrix products, per token": "acs",
    "arithmetic on the state, per token": "state",
    "all other elementwise arithmetic, per token": "elementwise",
}


def card(name: str, facts: dict[str, Any]) -> str:
    """Return the card of the model `name`, one of the two in `facts`, what ship.py found: the spiking one, its twin."""
    spiking, twin = facts["models"]
    own, other, drawn = facts["models"][name], twin if name == spiking else spiking, facts["sampling"]
    held_out = facts["split_tokens"]
    commands = "\n".join(facts["recipe"][name])
    sample = "\n".join(f"> {line}" for line in own["sample"].splitlines())
    made, machine = facts["made"], facts["made"]["machine"]
    return f"""---
{yaml.safe_dump(head(name, facts), sort_keys=False, allow_unicode=True)}---

# {name}

A {BLOCKS[own["block"]]} language model of {own["parameters"] / 1e6:.1f}M parameters, {own["mixer"].upper()}, that comes
with spikegpt; {other} has the same sizes and read as many tokens of the same text. Both are small: to be looked at and
measured, not to be asked for facts.

```
spikegpt generate {name} "{facts["prompt"]}" --temperature {drawn["temperature"]}
spikegpt serve {spiking} {twin}
spikegpt train --from {name} --data my_texts/ --out runs/mine
```

From Python: `load_model("{name}")`.

## Figures

All are of the weights as they are shipped: matrices as codes of 8 bits with a scale per output. Each text is read once,
with carried state. In brackets: the tax of the spikes, over the twin.

{table(facts)}

Products are counted as built: what is multiplied by zero is left out, a spike of n is n accumulations. Firing is
weighted by synapses. Speed: {machine["cpu"]}, {machine["threads"]} threads, load {machine["load_average"]}.

## Data

{facts["text"]}: {held_out["train"]:,} tokens to learn from, {held_out["valid"]:,} and {held_out["test"]:,} held out as
valid and test; sha256 {facts["text_sha256"]}. It is not in this tree. None of the other texts was part of it.

## Training

{facts["tokens_read"] / 1e6:.1f}M tokens in all:

```
{commands}
```

## Sample

Temperature {drawn["temperature"]}, top-p {drawn["top_p"]}, seed {drawn["seed"]}, {drawn["max_tokens"]} tokens, not
chosen among several:

{sample}

## Limits

It knows the spelling, the grammar and the manner of its text, and nothing of the world; what it says of people is what
such texts say. It has not been made safe for any use. Texts of another kind cost it what the table says. One pair, one
seed: how much such figures scatter is not known from it. Licence: the weights are under that of spikegpt.

## Made by

`{made["command"]}`, commit {made["commit"]}, {made["date"]}.
"""


def head(name: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return what programs read; the first text is the one that the model learned from."""
    own = facts["models"][name]
    results = []
    for number, (text, bits) in enumerate(own["bits_per_byte"].items()):
        metrics = [{"type": BITS, "value": round(bits, 4)}]
        if own["firing_rate"] is not None:
            metrics.append({"type": FIRING, "value": round(own["firing_rate"][text], 4)})
        read = {"name": text if number else facts["text"], "type": "text"}
        results.append({"task": {"type": "text-generation"}, "dataset": read, "metrics": metrics})
    return {
        "license": "apache-2.0",
        "language": "en",
        "library_name": "spikegpt",
        "pipeline_tag": "text-generation",
        "tags": ["rwkv", BLOCKS[own["block"]]],
        "model-index": [{"name": name, "results": results}],
    }


def table(facts: dict[str, Any]) -> str:
    """Return the figures of both models side by side."""
    names, (ours, theirs) = list(facts["models"]), facts["models"].values()
    both = ours, theirs
    rows = [
        ["", *names],
        ["---"] * 3,
        ["block", *(BLOCKS[model["block"]] for model in both)],
        ["parameters", *(f"{model['parameters']:,}" for model in both)],
        ["file", *(f"{model['file_bytes'] / 1e6:.1f} MB" for model in both)],
    ]
    for text, bits in ours["bits_per_byte"].items():
        read = f"bits per byte: {text}, {facts['tokens'][text]:,} tokens"
        rows.append([read, f"{bits:.4f} ({facts['tax'][text]:+.1%})", f"{theirs['bits_per_byte'][text]:.4f}"])
    rows.append(["firing on these texts", ", ".join(f"{rate:.1%}" for rate in ours["firing_rate"].values()), "dense"])
    for what, kind in OPERATIONS.items():
        rows.append([what, *(f"{model['per_token'][kind]:,.0f}" for model in both)])
    for what, phase in {"tokens written per second": "decode", "tokens read per second": "prefill"}.items():
        rows.append([what, *(f"{model['tokens_per_s'][phase]:,.0f}" for model in both)])
    costs = (next(iter(model["bits_per_byte"].values())) / model["bits_per_byte_of_float32"] - 1 for model in both)
    rows.append(["bits per byte over those of the float32 weights", *(f"{cost:+.3%}" for cost in costs)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
