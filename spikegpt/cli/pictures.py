"""The verb `raster`: the spikes of a text as a picture or a film."""

import json

from ..common.errors import SpikegptError
from ..common.printing import one_line
from .beginning import use_threads
from .options import Spikes
from .parsing import UsageError, parse

PICTURES, FILMS = (".png", ".svg"), (".gif", ".webp")


def raster_verb(arguments: list[str]) -> int:
    options = parse(Spikes, "raster", arguments)
    suffix = options.out.suffix.lower()
    if suffix not in PICTURES + FILMS:
        known = f"{', '.join(PICTURES)} is a picture, {' or '.join(FILMS)} a film"
        raise UsageError(f"--out is {one_line(options.out)}, whose ending says no format; {known}")
    use_threads(options.threads)
    from neuromorphic import Wording
    from neuromorphic.report.canvas import to_png, to_svg
    from neuromorphic.report.film import spike_film
    from neuromorphic.report.firing_figures import spike_raster

    from ..checkpoint.weights import load_model
    from ..common.files import write_atomically
    from ..measure.rasters import encoded_text, neuron_places, text_rasters

    model, tokenizer = load_model(options.run, device=options.device)
    bands = text_rasters(model, tokenizer, encoded_text(tokenizer, options.text), options.sites, options.neurons)
    name, wording = options.run.resolve().name, Wording(places=neuron_places(model, model.sites()))
    content: str | bytes
    if suffix in FILMS:
        content = spike_film(bands, name, wording, suffix=suffix, tokens_per_s=options.tokens_per_s)
    else:
        content = (to_svg if suffix == ".svg" else to_png)(spike_raster(bands, name, wording))
    try:
        write_atomically(options.out, content)
    except OSError as error:
        raise SpikegptError(f"cannot write {options.out}: {error.strerror}; give another --out") from None
    print(json.dumps({"picture": str(options.out)}) if options.json else one_line(options.out))
    return 0
