"""What counts would cost: price tables, estimates, and the published arithmetic."""

from .estimate import BreakEven, EnergyEstimate, Term, break_even_density, estimate

__all__ = ["BreakEven", "EnergyEstimate", "Term", "break_even_density", "estimate"]
