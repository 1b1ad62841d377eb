"""Where a model lies on a chip: the neurons and synapses of each product, on how many cores, and what does not fit.

A synapse lies at the neuron that it ends at, so a product lies on the cores of its outcomes. The estimate is by
division: routing, axons and delays are not looked at, and take more.
"""

import math
from dataclasses import dataclass
from typing import Any

from ..config import ModelConfig
from .targets import Cores, Target


@dataclass(frozen=True, kw_only=True)
class Population:
    """Neurons that are alike: what a product drives, or what reads the stream; `states` numbers are kept of each."""

    name: str
    neurons: int
    synapses: int
    states: int

    def bytes(self, target: Target) -> int:
        return math.ceil((self.synapses * target.weight_bits + self.neurons * self.states * target.state_bits) / 8)

    def cores(self, target: Target, cores: Cores) -> int:
        """Cores of its own, by what fills them first."""
        return max(
            math.ceil(self.neurons / cores.neurons),
            math.ceil(self.synapses / cores.synapses),
            math.ceil(self.bytes(target) / cores.memory_bytes),
        )


def populations(config: ModelConfig) -> list[Population]:
    """Return the populations of the blocks; embedding and head are the host's."""
    C, F = config.n_embd, config.n_ffn
    membrane = 0 if config.neuron.is_memoryless else 1
    found = []
    for layer in range(config.n_layer):
        # name, neurons, synapses, numbers kept: the token before; numerator, denominator and exponent
        rows = (
            ("att: what reads the stream", 3 * C, 0, 1 + membrane),
            ("att.key", C, C * C, 3),
            ("att.value", C, C * C, membrane),
            ("att.receptance", C, C * C, 0),
            ("att: gated means", C, 0, membrane),
            ("att.output", C, C * C, 1),
            ("ffn: what reads the stream", 2 * C, 0, 1 + membrane),
            ("ffn.key", F, C * F, membrane),
            ("ffn.receptance", C, C * C, 0),
            ("ffn.value", C, F * C, 1),
        )
        found += [
            Population(name=f"blocks.{layer}.{name}", neurons=neurons, synapses=synapses, states=states)
            for name, neurons, synapses, states in rows
        ]
    return found


def placement(config: ModelConfig, target: Target) -> dict[str, Any]:
    """Return, as plain values, what the blocks need, what the target has, and sentences that say what does not fit."""
    parts = populations(config)
    need = {
        "neurons": sum(part.neurons for part in parts),
        "synapses": sum(part.synapses for part in parts),
        "bytes": sum(part.bytes(target) for part in parts),
    }
    table = 2**target.table_bits + 1
    beside = [
        f"the embedding ({config.vocab_size:,} x {config.n_embd}) is the host's: a token comes in as one row of it",
        "norms need the sum and the sum of squares of all channels in every token, which no core holds",
        f"exp, sigmoid, 1/x and 1/sqrt(x) are tables of {table} entries in the neurons' own programs",
        f"a mean's share of two sums, and the gates, are products of two numbers of {target.state_bits} bits",
        f"spikes are graded: {config.neuron.alphabet[0]} to {config.neuron.alphabet[1]}, hidden ones to "
        f"{config.hidden_neuron.levels}",
    ]
    if not config.spiking_head:
        beside.append(
            f"the head ({config.vocab_size:,} x {config.n_embd}) reads numbers of {target.state_bits} bits and is the "
            "host's; --spiking-head in training lets it read spikes"
        )
    found: dict[str, Any] = {"need": need, "host_and_programs": beside, "chip": None, "does_not_fit": []}
    if target.cores is not None:
        chip = target.cores
        apart = {part.name: part.cores(target, chip) for part in parts}
        least = {
            "neurons": math.ceil(need["neurons"] / chip.neurons),
            "synapses": math.ceil(need["synapses"] / chip.synapses),
            "bytes": math.ceil(need["bytes"] / chip.memory_bytes),
        }
        cores = sum(apart.values())
        found["chip"] = {
            **{"cores": chip.cores, "neurons_per_core": chip.neurons, "synapses_per_core": chip.synapses},
            **{"bytes_per_core": chip.memory_bytes, "source": chip.source},
            **{"cores_at_least": max(least.values()), "filled_first": max(least, key=lambda name: least[name])},
            **{"cores_by_population": apart, "cores_needed": cores, "chips_needed": math.ceil(cores / chip.cores)},
        }
        if cores > chip.cores:
            found["does_not_fit"].append(
                f"{cores} cores, each product on its own, are {math.ceil(cores / chip.cores)} chips of {chip.cores}; "
                f"packed without gaps {max(least.values())}"
            )
    return found
