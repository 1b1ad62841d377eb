"""The verb `context`: what a text's memory costs and what it buys."""

import json

from ..common.printing import command, one_line
from ..common.version import tree_version
from .beginning import check_runs, use_threads
from .idle import idle_in_reading, warn_of_idle_options
from .options import Context
from .parsing import UsageError, parse


def context_verb(arguments: list[str]) -> int:
    options = parse(Context, "context", _joined(arguments))
    if not options.runs:
        raise UsageError("no run given; spikegpt context RUN [RUN ...] [--policy SPEC ...]")
    lengths = _lengths(options.lengths)
    warn_of_idle_options(options, idle_in_reading(options))
    use_threads(options.threads)
    check_runs(options.runs)
    import torch

    from ..measure.context import measure_context, table
    from ..measure.context_folder import check_context_folder, context_folder, write_context

    folder = options.out or context_folder(options.runs[0], options.recall)
    check_context_folder(folder)
    points = measure_context(
        options.runs,
        options.policy,
        lengths,
        texts=options.texts,
        split=options.split,
        file=options.file,
        cache=options.cache,
        device=options.device,
        dtype=getattr(torch, options.cache_dtype),
        recall=options.letters if options.recall else None,
        seed=options.seed,
    )
    write_context(folder, points, made={"command": command("context", *arguments), "spikegpt": tree_version()})
    if options.json:
        print(json.dumps([point.to_dict() for point in points]))
    else:
        print(f"{table(points)}\n\nfigures, context.json, context.csv, context.tex: {one_line(folder)}")
    return 0


def _joined(arguments: list[str]) -> list[str]:
    """The words with all policies behind one flag: it may be repeated, and each may have several."""
    words, policies, is_policy = [], [], False
    for word in arguments:
        if word == "--policy" or word.startswith("--policy="):
            is_policy = word == "--policy"
            policies += [] if is_policy else [word.partition("=")[2]]
        elif is_policy and not word.startswith("--"):
            policies.append(word)
        else:
            is_policy = False
            words.append(word)
    if is_policy and not policies:
        raise UsageError("--policy wants a value, such as roco:64; see: spikegpt context --help")
    return [*words, "--policy", *policies] if policies else words


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"--lengths is {text!r}; give whole numbers between commas: 128,512,2048") from None
