"""Count what a torch model really computes, and estimate what that would cost on other hardware.

Works on any torch model. Counts are exact integers and know nothing of hardware; prices are cited data; every energy
figure is an estimate from a price table that is named with it.
"""

from .counter import OpCounter, UncountedOperator, declare_cost
from .counts import Counts, Footprint, Site, Tally, Uncounted, total
from .recorder import CountError

__all__ = ["CountError", "Counts", "Footprint", "OpCounter", "Site", "Tally", "Uncounted", "UncountedOperator", "declare_cost", "total"]
