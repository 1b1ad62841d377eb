"""A tally by module: as rows for a program, and as the table that people read."""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any

from .text import latex_table, numbered, text_table

if TYPE_CHECKING:
    from .counts import Counts, Tally

SHOWN_MODULES = 40

# always shown, and shown where anything stands
HEADER = ("dense products", "MACs", "ACs")
OPTIONAL = ("unit ACs", "nonzero inputs", "elementwise", "neuron updates", "spikes", "not counted")


def module_rows(tally: "Tally", phase: str | None) -> list[dict[str, Any]]:
    """Return a row for each module that did work of its own, with every quantity of Counts: `Tally.rows`."""
    return [
        {
            "module": module,
            "tokens": tally.token_count(phase),
            **counts.to_dict(),
            "density": counts.density,
            "alphabet": counts.alphabet,
            "uncounted": ", ".join(tally.uncounted_in.get(module, ())),
        }
        for module, counts in tally.by_module(phase).items()
    ]


def tally_text(tally: "Tally") -> str:
    """Return the table for a terminal, and below it the tokens and what has no rule."""
    read = ", ".join(f"{number:,} in {phase}" for phase, number in tally.tokens.items())
    uncounted = ", ".join(f"{item.operator} ({numbered(item.calls, 'call')})" for item in tally.uncounted) or "nothing"
    table = text_table(_table(tally, None, SHOWN_MODULES))
    return "\n".join([table, f"tokens: {read or 'none'}", f"uncounted: {uncounted}"])


def tally_latex(tally: "Tally", phase: str | None) -> str:
    """Return the table with all its modules for LaTeX."""
    return latex_table(_table(tally, phase, None))


def _table(tally: "Tally", phase: str | None, limit: int | None) -> list[list[str]]:
    """Modules, kinds of work and the sum, with blank rows between them."""
    missing = tally.uncounted_in
    modules = [
        (name or "(the model)", counts, len(missing.get(name, ())))
        for name, counts in tally.by_module(phase).items()
        if name in missing or any(_amounts(counts))
    ]
    # where something is missing, that is to be seen; then come products
    complete = sorted((module for module in modules if not module[2]), key=lambda module: module[1].dense_ops == 0)
    if limit is not None and len(complete) > limit:
        left_out = complete[limit - 1 :]
        rest = reduce(add, (counts for _, counts, _ in left_out))
        modules = [
            *(module for module in modules if module not in left_out),
            (f"{len(left_out)} more modules", rest, 0),
        ]
    kinds = [(f"kind: {kind}", counts, 0) for kind, counts in tally.by_kind(phase).items() if any(_amounts(counts))]
    blank = [""] * (1 + len(HEADER) + len(OPTIONAL))
    rows = [
        ["", *HEADER, *OPTIONAL],
        *(_row(*part) for part in modules),
        blank,
        *(_row(*part) for part in kinds),
        _row("all", tally.total(phase=phase), len(tally.uncounted)),
    ]
    return _without_empty_columns(rows)


def _amounts(counts: "Counts") -> tuple[int, ...]:
    elementwise = sum(counts.elementwise.values())
    products = (counts.dense_ops, counts.effective_macs, counts.effective_acs, counts.unit_acs)
    return (*products, elementwise, counts.neuron_updates, counts.events_out)


def _row(name: str, counts: "Counts", uncounted: int) -> list[str]:
    *products, elementwise, updates, spikes = (f"{amount:,}" for amount in _amounts(counts))
    density = "" if counts.density is None else f"{counts.density:.1%}"
    operators = numbered(uncounted, "operator") if uncounted else ""
    return [name, *products, density, elementwise, updates, spikes, operators]


def _without_empty_columns(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    columns = list(zip(*rows, strict=True))
    always = 1 + len(HEADER)
    shown = [column for at, column in enumerate(columns) if at < always or any(set(column[1:]) - {"", "0"})]
    return [list(row) for row in zip(*shown, strict=True)]
