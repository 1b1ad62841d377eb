"""A model in whole numbers against the same in floats, what is refused, and where it lies on a chip."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from spikegpt import SpikeGPT
from spikegpt.chip.making import make_program, tables
from spikegpt.chip.placement import placement, populations
from spikegpt.chip.reader import OUTSIDE, IntegerReader
from spikegpt.chip.targets import target_of
from spikegpt.common.errors import SpikegptError
from spikegpt.config import INPUT_NEURON, ModelConfig

CONFIG = ModelConfig(n_layer=2, n_embd=16, ctx_len=16)
TEXT = np.frombuffer(b"It was the age of wisdom, it was the age of foolishness", np.uint8)


def make_model(config: ModelConfig = CONFIG) -> SpikeGPT:
    torch.manual_seed(0)
    return SpikeGPT(config).eval()


@torch.no_grad()
def test_wide_numbers_are_close_to_floats():
    """Weights that are whole numbers of steps lose nothing, so only roundings of states and tables are left."""
    model = make_model()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_((module.weight * 64).round().clamp(-127, 127) / 64)
    reading = IntegerReader(make_program(model, TEXT, target_of("generic", table_bits=10))).read(TEXT)
    output = model(torch.from_numpy(TEXT.astype(np.int64))[None])
    differing = [(reading.spikes[name] != spikes[0].numpy()).mean() for name, spikes in output.spikes.items()]
    assert np.mean(differing) < 0.03
    # later one spike that differs makes others differ
    assert (reading.logits - output.logits[0])[:5].abs().max() < 2e-3


def test_a_text_in_pieces_is_the_text_at_once():
    program = make_program(make_model(), TEXT, target_of("loihi2"))
    whole, pieces = IntegerReader(program), IntegerReader(program)
    read = torch.cat([pieces.read(part).logits for part in (TEXT[:7], TEXT[7:8], TEXT[8:])])
    assert (whole.read(TEXT).logits == read).all()
    assert all((whole.units[name] == units).all() for name, units in pieces.units.items())


def test_spikes_are_counted_by_neuron():
    reader = IntegerReader(make_program(make_model(), TEXT, target_of("generic")))
    reading = reader.read(TEXT)
    spikes = reading.spikes["blocks.1.ffn.value_neuron"].astype(int)
    assert (reader.fired["blocks.1.ffn.value_neuron"] == (spikes != 0).sum(0)).all()
    assert (reader.units["blocks.1.ffn.value_neuron"] == spikes.sum(0)).all()


def test_a_hostile_text_saturates_and_is_reported():
    """Ranges that fit one letter without any room, and then a text of all bytes."""
    program = make_program(make_model(), np.full(20, ord("a")), target_of("generic"), headroom_bits=0)
    reader = IntegerReader(program)
    reading = reader.read(np.arange(255, -1, -1))
    assert {"blocks.0", "blocks.1", OUTSIDE} == reader.saturations().keys()
    assert reader.saturations()[OUTSIDE]["logits"] > 0
    limit = 2.0**23 / 2.0**program.logit_places
    # cut at the limit, where a sum that wraps would be of the other sign
    assert (reading.logits.abs() <= limit).all() and (reading.logits.abs() > 0.999 * limit).any()


def test_ids_outside_the_vocabulary_are_refused():
    reader = IntegerReader(make_program(make_model(), TEXT, target_of("generic")))
    with pytest.raises(ValueError, match=r"from 3 to 256; the vocabulary is \[0, 256\)"):
        reader.read(np.array([3, 256]))


RESTING = replace(INPUT_NEURON, levels=1, signed=False, reset="zero", reset_potential=-0.5, learnable_threshold=False)
REFUSED = {
    "mixer rwkv7": replace(CONFIG, mixer="rwkv7", head_size=8, spiking="none", neuron=None),
    "spiking none": replace(CONFIG, spiking="none"),
    "spiking output": ModelConfig(n_layer=1, n_embd=16, ctx_len=16, spiking="output"),
    "shared_neurons": replace(CONFIG, shared_neurons=True),
    "2 perspectives": replace(CONFIG, perspectives=2),
    "neurons rest at": replace(CONFIG, hidden_levels=1, neuron=RESTING),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_block_of_unknown_arithmetic_is_refused_with_the_reason(reason):
    with pytest.raises(SpikegptError, match=reason):
        make_program(SpikeGPT(REFUSED[reason]), TEXT, target_of("generic"))


def test_a_row_of_zeros_has_an_exponent():
    model = make_model()
    with torch.no_grad():
        model.blocks[0].att.key.weight[3] = 0
        model.blocks[1].ffn.value.weight.zero_()
    program = make_program(model, TEXT, target_of("generic"))
    assert not program.square[0, 0, :, 3].any() and not program.back[1].any()
    assert IntegerReader(program).read(TEXT).logits.isfinite().all()


def test_mantissas_fill_their_bits():
    for name, bits in (("generic", 8), ("generic", 3), ("loihi2", 8)):
        program = make_program(make_model(), TEXT, target_of(name, weight_bits=bits))
        most = np.abs(program.hidden[0]).max(axis=None if name == "loihi2" else 0)
        assert (2 ** (bits - 2) <= most).all() and (most < 2 ** (bits - 1)).all()


@pytest.mark.parametrize("widths", [{"weight_bits": 9}, {"state_bits": 11}, {"state_bits": 25}, {"table_bits": 11}])
def test_widths_that_do_not_exist_are_refused(widths):
    with pytest.raises(ValueError, match=next(iter(widths))):
        target_of("generic", **widths)


def test_unknown_targets_are_refused():
    with pytest.raises(SpikegptError, match="no target 'truenorth'; known: loihi2, generic"):
        target_of("truenorth")


def test_tables_hold_their_functions():
    found = tables(4)
    assert found["exp_table"].tolist()[::8] == [2**15, round(2**15 * math.sqrt(2)), 2**16]
    assert found["sigmoid_table"][0] == 2**15 and found["reciprocal_table"][-1] == 2**15
    assert found["root_table"][[4, 16]].tolist() == [2**16, 2**15]


def test_placement_by_hand():
    config = ModelConfig(n_layer=3, n_embd=1024, ctx_len=16)
    parts = populations(config)
    assert sum(part.synapses for part in parts) == 3 * (4 + 4 + 1 + 4) * 1024**2
    found = placement(config, target_of("loihi2"))
    # 4 MiB of weights, and three numbers of 24 bits for each of 4,096 or 1,024 neurons, in cores of 242,187 bytes
    assert found["chip"]["cores_by_population"]["blocks.0.ffn.key"] == math.ceil(4 * 2**20 / 242_187)
    assert found["does_not_fit"] and "chips of 128" in found["does_not_fit"][0]
    assert placement(config, target_of("generic"))["chip"] is None
