"""A raster as a film: token by token, as the model reads them. GIF or WebP, by matplotlib and its own Pillow."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle

from .canvas import MUTED, SPIKE, styled
from .firing_figures import MOST_TOKENS, spike_raster
from .measurement import Raster, Wording

SUFFIXES = (".gif", ".webp")
DOTS_PER_INCH = 100
# of a second, that the whole picture stands before the film begins anew
HELD_S = 2.0


@styled
def spike_film(
    bands: Sequence[Raster],
    name: str,
    wording: Wording | None = None,
    *,
    suffix: str = ".gif",
    tokens_per_s: float = 8.0,
) -> bytes:
    """Return the film of `spike_raster`, in the format of `suffix`: spikes appear with the token that they come with.

    Raises:
        ValueError: there are no bands, the suffix is none of SUFFIXES, or the pace is not above 0.
    """
    if not bands:
        raise ValueError(f"{name} has no spikes to show: a film needs at least one layer")
    if suffix not in SUFFIXES or not tokens_per_s > 0:
        raise ValueError(f"want one of {', '.join(SUFFIXES)} and tokens_per_s above 0, got {suffix!r}, {tokens_per_s}")
    figure = spike_raster(bands, name, wording or Wording())
    # laid out once: nothing moves from frame to frame
    figure.set_dpi(DOTS_PER_INCH)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    n_tokens = min(len(bands[0].prompt), MOST_TOKENS)
    # its types say whole numbers; it divides by any
    writer = PillowWriter(fps=tokens_per_s)  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"film{suffix}")
        with writer.saving(figure, str(path), DOTS_PER_INCH):
            for token in range(n_tokens):
                _show_until(figure.axes[0], token)
                writer.grab_frame()
            for _ in range(round(HELD_S * tokens_per_s)):
                writer.grab_frame()
        return path.read_bytes()


def _show_until(axes: Axes, token: int) -> None:
    """Show the spikes of the tokens up to `token`, and mark that one."""
    left, top = -1.0, axes.get_ylim()[0]
    for patch in axes.patches:
        if isinstance(patch, PathPatch):
            read = Rectangle((left, -1), token + 0.5 - left, top + 1, transform=axes.transData)
            patch.set_clip_path(read)
    for place, label in enumerate(axes.get_xticklabels()):
        label.set_color(SPIKE if place == token else MUTED)
        label.set_fontweight("bold" if place == token else "normal")
