"""A token in whole numbers: the compiled one is the defined one, number by number, and computes nothing else."""

import ast
import inspect
import re
from dataclasses import replace
from functools import cache

import numba
import numpy as np
import pytest
import torch

from spikegpt import SpikeGPT
from spikegpt.chip import program, reference, step
from spikegpt.chip.making import make_program
from spikegpt.chip.program import QUANTITIES, empty_state
from spikegpt.chip.targets import target_of
from spikegpt.config import INPUT_NEURON, ModelConfig

TEXT = np.frombuffer(b"It was the best of times, it was the worst.", np.uint8).astype(np.int64)
SMALL = ModelConfig(n_layer=2, n_embd=13, ctx_len=16, vocab_size=131)
REMEMBERING = replace(INPUT_NEURON, membrane_decay=0.5, levels=2)
MODELS = {
    "memoryless": SMALL,
    "spiking head": replace(SMALL, spiking_head=True, hidden_levels=1),
    "binary": replace(SMALL, neuron=replace(REMEMBERING, levels=1, signed=False, reset="zero")),
    "subtract": replace(SMALL, neuron=REMEMBERING),
    "never reset": replace(SMALL, neuron=replace(REMEMBERING, reset="none", learnable_decay=True, decay_input=False)),
}
TARGETS = {
    "generic": target_of("generic"),
    "loihi2": target_of("loihi2"),
    "12 bits": target_of("loihi2", weight_bits=3, state_bits=12, table_bits=5),
}


@cache
def model_of(name: str) -> SpikeGPT:
    torch.manual_seed(1)
    model = SpikeGPT(MODELS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # norms, mixes and decays that are not those of the beginning
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def read(made: program.Program, state: program.State, tokens: np.ndarray):
    T, (L, N), C = len(tokens), made.threshold.shape, made.mix.shape[2]
    logits, spikes = np.full((T, made.head.shape[1]), 99), np.full((T, L, N), 99, np.int8)
    heads, saturations = np.full((T, C), 99, np.int8), np.zeros((L + 1, len(QUANTITIES)), np.int64)
    step.read(made, state, tokens, logits, spikes, heads, saturations)
    return logits, spikes, saturations


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_compiled_token_is_the_one_in_unlimited_integers(name, target):
    # from little text: later something saturates
    made = make_program(model_of(name), TEXT[:6], TARGETS[target], headroom_bits=0)
    state, unlimited = empty_state(made), empty_state(made)
    for part in (TEXT[:21], TEXT[21:]):
        found = read(made, state, part)
        *wanted, unlimited = reference.read(made, unlimited, part)
        for ours, theirs in zip((*found, *state), (*wanted, *unlimited), strict=True):
            assert (ours == theirs).all()


def test_hostile_numbers_saturate_and_are_counted():
    made = make_program(model_of("memoryless"), TEXT[:6], target_of("generic", state_bits=12), headroom_bits=0)
    loud = made._replace(square_shift=made.square_shift - 8)
    _, _, saturations = read(loud, empty_state(made), TEXT)
    wanted = reference.read(loud, empty_state(made), TEXT)[2]
    assert saturations[:, program.STREAM].sum() > 0 and saturations[:, program.KEY].sum() > 0
    assert (saturations == wanted).all()


def test_state_stays_within_its_bits():
    made = make_program(model_of("subtract"), TEXT[:6], target_of("generic", state_bits=12), headroom_bits=0)
    state = empty_state(made)
    read(made, state, np.tile(TEXT, 20))
    for name in ("before", "numerator", "denominator", "membrane"):
        assert abs(getattr(state, name)).max() < 2**11, name
    # a channel of the WKV uses all its bits
    assert state.denominator.min() >= 2**9


@pytest.mark.parametrize(
    ("number", "nearest", "zero"), [(5, 1, 1), (6, 2, 1), (-6, -1, -1), (-7, -2, -1), (-5, -1, -1)]
)
def test_rounding_by_hand(number, nearest, zero):
    assert step.shifted.py_func(number, 2, program.NEAREST) == reference.shifted(number, 2, program.NEAREST) == nearest
    assert (
        step.shifted.py_func(number, 2, program.TOWARD_ZERO)
        == reference.shifted(number, 2, program.TOWARD_ZERO)
        == zero
    )


def test_a_sum_is_cut_at_its_limit():
    counts = np.zeros(1, np.int64)
    cut = [step.saturated.py_func(number, 12, counts, 0) for number in (2047, 2048, -2048, -2049)]
    assert cut == [2047, 2047, -2048, -2048] and counts[0] == 2


def test_step_has_no_division_no_float_and_calls_nothing_that_could():
    tree = ast.parse(inspect.getsource(step))
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    operators = {type(node.op) for node in ast.walk(tree) if isinstance(node, ast.BinOp | ast.AugAssign)}
    assert not operators & {ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult}
    constants = {type(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert constants <= {int, bool, str}
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called <= own | {"range", "min", "max", "compiled", "np.empty", "np.int32", "np.int64"}


def test_what_is_compiled_has_no_instruction_of_floats():
    made = make_program(model_of("subtract"), TEXT, target_of("generic"))
    read(made, empty_state(made), TEXT)
    signature = step.read.signatures[0]
    # what comes from the disk has no text
    fresh = numba.njit(error_model="numpy", nogil=True)(step.read.py_func)
    fresh.compile(signature)
    text = fresh.inspect_llvm(signature)
    assert "mul" in text and not re.search(r"\b(double|float|half|f(add|sub|mul|div|cmp)|sitofp|fptosi)\b", text)
