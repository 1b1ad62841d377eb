"""What the processor has that kernels are compiled for."""

from numba.core.registry import cpu_target


def has_features(*names: str) -> bool:
    """Return whether compiled code may use these features of the processor, by LLVM's names."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return {f"+{name}" for name in names} <= set(features.split(","))
