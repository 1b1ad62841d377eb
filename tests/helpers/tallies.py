"""Small tallies for tests of energies, and their estimates by term."""

import pytest

from neuromorphic.count.counts import Footprint, Site, Tally
from neuromorphic.energy.estimate import estimate
from neuromorphic.energy.prices import load_profile

KINDS = {"mm": "matmul", "layer_norm": "norm", "mul": "elementwise", "lif": "neuron", "wkv": "scan"}


def make_tally(phase="prefill", tokens=2, uncounted=(), parameters=10, **operators):
    """One site per operator, all in one phase."""
    return Tally(
        sites={Site("layer", operator, phase): counts for operator, counts in operators.items()},
        kinds=KINDS,
        tokens={phase: tokens},
        uncounted=tuple(uncounted),
        footprint=Footprint(parameters=parameters, zero_parameters=0, buffers=0, state=0, peak_activations=0),
    )


def price(tally, profile="horowitz45-fp32", phase=None):
    """(estimate, term name -> term)."""
    result = estimate(tally, load_profile(profile), phase)
    return result, {term.name: term for term in result.terms}


def energies(term):
    return pytest.approx((term.low_pj, term.central_pj, term.high_pj))
