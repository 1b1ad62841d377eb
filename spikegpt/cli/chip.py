"""The verb `simulate`: a run in the whole numbers of a chip."""

import json

from .beginning import check_runs, use_threads
from .idle import idle_in_reading, warn_of_idle_options
from .options import Simulate
from .parsing import parse

# of a chip of spikes; most others price floats
PRICES = ("loihi1-presilicon",)


def simulate_verb(arguments: list[str]) -> int:
    options = parse(Simulate, "simulate", arguments)
    from neuromorphic import load_profile

    from ..chip.targets import target_of
    from ..measure.fixed_point import simulate_run, table

    profiles = [load_profile(name) for name in options.prices or PRICES]
    widths = {name: getattr(options, name) for name in ("weight_bits", "state_bits", "table_bits")}
    target = target_of(options.target, **widths)
    warn_of_idle_options(options, idle_in_reading(options))
    use_threads(options.threads)
    check_runs([options.run])
    result = simulate_run(
        options.run,
        target,
        headroom_bits=options.headroom_bits,
        split=options.split,
        file=options.file,
        limit=options.tokens,
        profiles=profiles,
        cache=options.cache,
    )
    print(json.dumps(result) if options.json else table(result))
    return 0
