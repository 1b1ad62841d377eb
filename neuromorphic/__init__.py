"""Count what a torch model really computes, and estimate what that would cost on other hardware.

Works on any torch model. Counts are exact integers and know nothing of hardware; prices are cited data; every energy
figure is an estimate from a price table that is named with it. Reports are in `report.folder`, pictures in
`report.figures` and `report.firing_figures`.
"""

from .count.counter import OpCounter, UncountedOperator, declare_cost
from .count.counts import Counts, Footprint, Site, Tally, Uncounted, total
from .count.recorder import CountError
from .energy.estimate import BreakEven, EnergyEstimate, Term, break_even_density, estimate
from .energy.prices import PriceError, Profile, bundled_profiles, load_profile
from .energy.published import PublishedSaving, published_saving
from .firing.raster import raster
from .firing.statistics import FiringStatistics
from .report.measurement import Claims, LayerOps, Measurement, NeuronPlace, Raster, Wording, layer_ops, per_token

__all__ = [
    "BreakEven",
    "Claims",
    "CountError",
    "Counts",
    "EnergyEstimate",
    "FiringStatistics",
    "Footprint",
    "LayerOps",
    "Measurement",
    "NeuronPlace",
    "OpCounter",
    "PriceError",
    "Profile",
    "PublishedSaving",
    "Raster",
    "Site",
    "Tally",
    "Term",
    "Uncounted",
    "UncountedOperator",
    "Wording",
    "break_even_density",
    "bundled_profiles",
    "declare_cost",
    "estimate",
    "layer_ops",
    "load_profile",
    "per_token",
    "published_saving",
    "raster",
    "total",
]
