"""The verb `train`. The same parser reads its flags twice: first those that decide the defaults of the others."""

import json
from pathlib import Path

import tyro
from tyro.conf import OmitArgPrefixes

from ..common.errors import SpikegptError
from ..config import PRESETS, SPIKING, model_preset, train_preset
from .options import Resume, Start, Train


def train_verb(arguments: list[str]) -> int:
    start, _ = tyro.cli(Start, prog="spikegpt train", args=arguments, return_unknown_args=True, add_help=False)
    options = tyro.cli(OmitArgPrefixes[Train], prog="spikegpt train", args=arguments, default=_train_defaults(start))
    from ..train import trainer as train
    from ..train.stop_signals import exit_status

    if options.resume is not None:
        _, others = tyro.cli(Resume, prog="spikegpt train", args=arguments, return_unknown_args=True)
        if others:
            given = ", ".join(other.partition("=")[0] for other in others if other.startswith("--"))
            raise SpikegptError(f"--resume goes on with the run's own configuration; leave out {given}")
        result = train.resume(options.resume, cache=options.cache, quiet=options.json, device=options.device)
    else:
        name = options.from_.resolve().name + "-tuned" if options.from_ else options.preset
        out = options.out or Path("runs") / f"{name}-{options.model.spiking}"
        result = train.train(
            options.model,
            options.train,
            out,
            start=options.from_,
            cache=options.cache,
            quiet=options.json,
            device=options.device,
        )
    status = exit_status(result.signal) if result.interrupted else 0
    if not result.is_main:
        return status
    if options.json:
        valid = result.valid.to_dict() if result.valid else None
        print(
            json.dumps({"run": str(result.run), "step": result.step, "interrupted": result.interrupted, "valid": valid})
        )
    elif result.interrupted:
        print(f"stopped after step {result.step}, saved; continue with: spikegpt train --resume {result.run}")
    else:
        print(f"done: {result.run}\n  spikegpt generate {result.run}\n  spikegpt evaluate {result.run}")
    return status


def _train_defaults(start: Start) -> Train:
    """The defaults that `--preset`, `--from` and `--spiking` ask for, so that other flags change those.

    Each block has its own neuron.
    """
    # an unknown name is left to the parser, which lists the known ones
    changes = {"spiking": start.spiking} if start.spiking in SPIKING else {}
    if start.from_ is None:
        name = start.preset if start.preset in PRESETS else "tiny"
        return Train(model=model_preset(name, **changes), train=train_preset(name))
    if start.preset is not None:
        raise SpikegptError(f"the sizes are those of {start.from_}; leave out --preset")
    from ..train.convert import defaults_from

    model, training = defaults_from(start.from_, **changes)
    return Train(model=model, train=training)
