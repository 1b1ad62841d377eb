"""What a text cost in whole numbers, as a Tally: from how often each neuron fired, exactly, with nothing observed."""

import numpy as np

from neuromorphic import Counts, Footprint, Site, Tally

from ..chip.placement import populations
from ..chip.program import Program
from ..chip.reader import HEAD_SITE, IntegerReader
from ..config import ModelConfig

PHASE = "prefill"


def tally_of(config: ModelConfig, program: Program, reader: IntegerReader) -> Tally:
    """Return what was computed, line by line as in chip/reference.py; shifts are wires and cost nothing.

    A product is of mantissas other than 0 and the spikes that met them. A number between two entries of a table is two
    reads, a multiplication and two additions; cutting at the limit is two comparisons.
    """
    T, C, hidden, L = reader.tokens_read, config.n_embd, config.n_ffn, config.n_layer
    sites: dict[Site, Counts] = {}

    def add(module: str, operator: str, **counts: int) -> None:
        sites[Site(module, operator, PHASE)] = Counts(calls=1, **counts)

    def product(name: str, site: str, weights: np.ndarray, levels: int, signed: bool) -> None:
        kind = "integer" if levels > 1 else "ternary" if signed else "binary"
        add(name, "product", **_product(weights, reader.fired[site], reader.units[site], T, levels, kind))

    moved = {"activation_reads": T * C, "activation_writes": T * C}
    norm = {"add": 4 * T * C, "mul": 3 * T * C, "compare": 2 * T * C, **moved}
    gate = {"add": 2 * T * C, "mul": 2 * T * C, "compare": 2 * T * C, "activation_reads": 4 * T * C,
            "activation_writes": T * C}  # fmt: skip
    onto_stream = {"add": T * C, "compare": 2 * T * C, "activation_reads": 2 * T * C, "activation_writes": T * C}
    add("emb", "row", activation_reads=T * C, activation_writes=T * C)
    for layer in range(L):
        block = f"blocks.{layer}"
        for place, names in enumerate((("att.key", "att.value", "att.receptance"), ("ffn.key", "ffn.receptance"))):
            half = "att" if place == 0 else "ffn"
            n = len(names) * T * C
            add(f"{block}.ln{place + 1}", "norm", **norm)
            mixing = {"add": n, "mul": 2 * n, "compare": 2 * n, "activation_reads": n, "activation_writes": n}
            add(f"{block}.{half}", "token shift", **mixing, state_reads=T * C, state_writes=T * C)
            add(f"{block}.{half}", "gate", **gate)
            add(f"{block}.{half}", "sum", **onto_stream)
        for index, name in enumerate(("att.key", "att.value", "att.receptance", "att.output", "ffn.receptance")):
            product(
                f"{block}.{name}",
                f"{block}.{name}_neuron",
                program.square[layer, index],
                program.levels,
                program.signed,
            )
        product(f"{block}.ffn.key", f"{block}.ffn.key_neuron", program.hidden[layer], program.levels, program.signed)
        product(f"{block}.ffn.value", f"{block}.ffn.value_neuron", program.back[layer], program.hidden_levels, False)
        squared = {"mul": T * hidden, "compare": 3 * T * hidden}
        add(f"{block}.ffn", "square", **squared, activation_reads=T * hidden, activation_writes=T * hidden)
        events = int(reader.fired[f"{block}.att.wkv_neuron"].sum())
        add(
            f"{block}.att",
            "wkv",
            add=2 * events + 12 * T * C,
            mul=5 * events + 4 * T * C,
            compare=3 * events + 5 * T * C,
            activation_reads=3 * events + 3 * T * C,
            activation_writes=T * C,
            state_reads=3 * T * C,
            state_writes=3 * T * C,
        )
    add("ln_out", "norm", **norm)
    if program.head_levels:
        product("head", HEAD_SITE, program.head, program.head_levels, program.signed)
    else:
        present = int((program.head != 0).sum())
        add(
            "head",
            "product",
            dense_ops=T * program.head.size,
            effective_macs=T * present,
            real_elements=T * C,
            nonzeros=T * C,
            fan_out=program.head.shape[1],
            weights_once=present,
            weights_per_event=T * program.head.size,
            weights_dense=T * program.head.size,
            activation_reads=T * C,
            activation_writes=T * program.head.shape[1],
        )
    for name, fired in reader.fired.items():
        updates, units = T * len(fired), int(reader.units[name].sum())
        carried = updates if program.remembers and name != HEAD_SITE else 0
        add(
            name,
            "neuron",
            # one comparison more than thresholds that are passed
            compare=updates + units + 2 * carried,
            add=units + 2 * carried,
            mul=2 * carried,
            activation_reads=updates,
            activation_writes=updates,
            state_reads=carried,
            state_writes=carried,
            neuron_updates=updates,
            events_out=int(fired.sum()),
            repeated_events=units - int(fired.sum()),
        )
    kinds = {"product": "matmul", "norm": "norm", "wkv": "scan", "neuron": "neuron", "row": "embedding"}
    kinds |= dict.fromkeys(("token shift", "gate", "sum", "square"), "elementwise")
    parts = (program.square, program.hidden, program.back, program.head, program.embedding)
    vectors = (program.norm_weight, program.norm_bias, program.mix, program.threshold, program.first, program.decay)
    footprint = Footprint(
        parameters=sum(part.size for part in (*parts, *vectors)),
        zero_parameters=sum(int((part == 0).sum()) for part in (*parts, *vectors)),
        buffers=4 * len(program.exp_table),
        state=sum(part.neurons * part.states for part in populations(config)),
        peak_activations=max(2 * (C + hidden), C + program.head.shape[1]),
    )
    return Tally(sites=sites, kinds=kinds, tokens={PHASE: T}, uncounted=(), footprint=footprint)


def _product(
    weights: np.ndarray, fired: np.ndarray, units: np.ndarray, T: int, levels: int, kind: str
) -> dict[str, int]:
    """Counts of a product with mantissas (in, out) whose inputs fired so often, and with so many unit spikes."""
    present, (inputs, outputs) = (weights != 0).sum(axis=1), weights.shape
    events, pairs = int(fired.sum()), int(fired @ present)
    is_integer = kind == "integer"
    return {
        "dense_ops": T * weights.size,
        **({"effective_macs": pairs, "integer_macs": pairs} if is_integer else {"effective_acs": pairs}),
        "unit_acs": int(units @ present) if is_integer else 0,
        f"{kind}_elements": T * inputs,
        "nonzeros": events,
        "events_in": events,
        "largest_level": levels,
        "fan_out": outputs,
        "weights_once": int((fired > 0).sum()) * outputs,
        "weights_per_event": events * outputs,
        "repeated_weights": (int(units.sum()) - events) * outputs,
        "weights_dense": T * weights.size,
        "compare": 2 * T * outputs,
        "activation_reads": T * inputs,
        "activation_writes": T * outputs,
    }
