"""Measurements of two small models, for reports and figures: plain numbers, nothing is computed."""

import dataclasses

from neuromorphic import LayerOps, Measurement, NeuronPlace, Raster, Wording
from neuromorphic.report.context import ContextPoint

LAYER = LayerOps(
    module="blocks.0.att.key",
    dense_ops=100.0,
    effective_macs=90.0,
    effective_acs=0.0,
    unit_acs=0.0,
    idealised_acs=20.0,
    density=0.9,
    alphabet="real",
    fan_out=10,
)
HALVES = ("time mix", "channel mix")
WORDING = Wording(
    block="spikes added",
    places={f"blocks.0.{half.replace(' ', '_')}_neuron": NeuronPlace(half, half, 0) for half in HALVES},
)


def term(name, energy_pj):
    ends = {f"{end}_pj": energy_pj for end in ("low", "central", "high")}
    return {"name": name, "count": 7, "priced": energy_pj is not None, "note": "", **ends}


def energy(central=2e6, unpriced=()):
    low, high = (None, None) if central is None else (central / 2, central * 2)
    return {
        "profile": "table",
        "title": "A table",
        "citation": "Doe 2031",
        "grade": "simulated",
        "scope": "per_term",
        "includes": ["arithmetic"],
        "excludes": ["memory"],
        "tokens": 10,
        "terms": [term("mac", central), *(term(name, None) for name in unpriced)],
        "memory_level": None,
        "footprint_bytes": 4000,
        "low_pj": low,
        "central_pj": central,
        "high_pj": high,
        "unpriced": list(unpriced),
        "included": [],
        "mac_over_ac": 5.0,
        "break_even": {reuse: {"without_memory": 5.0, "with_memory": None} for reuse in ("1", "32")},
    }


def layer_firing(rate):
    synchrony = {"mean": None, "neurons": 4, "constant": 4, "histogram": []}
    return {"firing_rate": rate, "neurons": 8, "dead": 1, "saturated": 0, "mean_interval": 3.0, "synchrony": synchrony}


def model(name="spiking", block="output", **changes):
    is_spiking = block != "none"
    raster = Raster(
        layer="blocks.0.time_mix_neuron", prompt=tuple("a \t$<é"), tokens=(0, 2), neurons=(1, 0), n_neurons=4
    )
    values = {
        "name": name,
        "block": block,
        "text": "a text",
        "protocol": "stream",
        "tokens": 10,
        "text_bytes": 20,
        "parameters": 1000,
        "bits_per_byte": 1.5,
        "firing_rate": 0.2 if is_spiking else None,
        "layers": (LAYER if is_spiking else dataclasses.replace(LAYER, idealised_acs=None),),
        "per_token": {phase: {"dense_ops": 100.0, "add": 7.0, "exp": 2.0} for phase in ("prefill", "decode")},
        "by_kind": {"matmul": {"dense_ops": 100.0}},
        "firing": {"layers": {f"blocks.0.{half}_mix_neuron": layer_firing(0.2) for half in ("time", "channel")}}
        if is_spiking
        else None,
        "rasters": (raster,) if is_spiking else (),
        "energy": {
            phase: {"table": energy(unpriced=("exp",)), "priceless": energy(None, ("mac",))}
            for phase in ("prefill", "decode")
        },
        "state_elements": 50,
        "key_value_elements_per_token": 20,
        "parameter_bits": 32,
        "tokens_per_s": {"prefill": 1000.0, "decode": 100.0},
        "host": "a processor",
        "wording": WORDING if is_spiking else Wording(block="dense"),
    }
    return Measurement(**values | changes)


def memory_point(policy="roco:16", context=64, bits=2.0, **changes):
    values = {
        "model": "attention",
        "mixer": "attention",
        "spiking": "none",
        "policy": policy,
        "budget": None,
        "context": context,
        "bytes_by_part": {"keys": 2000.0, "values": 2000.0},
        "operations": {"macs": 3000, "exp": 500},
        "bits_per_byte": bits,
        "predicted_tokens": context // 2,
        "texts": 1,
        "tokens_per_s": 100.0,
    }
    return ContextPoint(**values | changes)


PAIR = (model(), model("dense", "none"))
