"""The verbs `measure` and `compare`: what runs compute, and their report."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..common.printing import command, one_line
from ..common.version import tree_version
from .beginning import check_runs, use_threads
from .idle import idle_in_reading, warn_of_idle_options
from .options import Compare, Measure, Measuring
from .parsing import UsageError, parse

if TYPE_CHECKING:
    from neuromorphic import Profile


def measure_verb(arguments: list[str]) -> int:
    options = parse(Measure, "measure", arguments)
    title = f"What {options.run.resolve().name} computes"
    return _measure([options.run], options, title, command("measure", *arguments), *_checked([options.run], options))


def compare_verb(arguments: list[str]) -> int:
    options = parse(Compare, "compare", arguments)
    if not options.runs:
        raise UsageError("no run given; spikegpt compare RUN [RUN ...] [--twin]")
    runs = list(options.runs)
    profiles, folder = _checked(runs, options)
    if options.twin:
        from ..measure.twins import make_twin

        twin = make_twin(runs[0], cache=options.cache, quiet=options.json, device=options.device)
        runs += [twin] if twin.resolve() not in [run.resolve() for run in runs] else []
    title = " and ".join(run.resolve().name for run in runs)
    return _measure(runs, options, title, command("compare", *arguments), profiles, folder)


def _checked(runs: Sequence[Path], options: Measuring) -> "tuple[list[Profile], Path]":
    """Return (price tables, folder of the report): what cannot work is found before the long part."""
    from neuromorphic import bundled_profiles, load_profile
    from neuromorphic.report.folder import check_folder

    from ..measure.runs import report_folder

    profiles = [load_profile(name) for name in options.prices or bundled_profiles()]
    warn_of_idle_options(options, idle_in_reading(options))
    use_threads(options.threads)
    check_runs(runs)
    folder = options.out or report_folder(runs[0])
    check_folder(folder)
    return profiles, folder


def _measure(
    runs: list[Path], options: Measuring, title: str, words: str, profiles: "list[Profile]", folder: Path
) -> int:
    from neuromorphic.report.folder import comparison_table, write_report

    from ..measure.runs import claims_of, measure_runs

    measurements = measure_runs(
        runs,
        split=options.split,
        file=options.file,
        limit=options.tokens,
        prompt=options.prompt,
        profiles=profiles,
        cache=options.cache,
        device=options.device,
        quantised_twin=isinstance(options, Compare) and options.quantised_twin,
    )
    if options.prompt is not None and all(measurement.firing is None for measurement in measurements):
        warn_of_idle_options(options, {"prompt": "a dense model has no raster"})
    claims = next((claim for claim in map(claims_of, measurements) if claim is not None), None)
    report = write_report(
        folder, measurements, title=title, claims=claims, made={"command": words, "spikegpt": tree_version()}
    )
    if options.json:
        print(json.dumps([measurement.to_dict() for measurement in measurements]))
    else:
        print(f"{comparison_table(measurements)}\n\nreport: {one_line(report)}")
    return 0
