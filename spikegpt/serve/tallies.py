"""What the server counts of itself, in the text form of Prometheus."""

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping

# upper bounds in seconds
BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

Labels = tuple[tuple[str, str], ...]


class Tally:
    """Counters and the histogram of the time to the first token; the event loop alone writes them."""

    def __init__(self) -> None:
        self.requests: Counter[Labels] = Counter()
        self._firsts = [0] * (len(BOUNDS) + 1)
        self._firsts_s = 0.0

    def answered(self, route: str, status: int) -> None:
        self.requests[(("route", route), ("status", str(status)))] += 1

    def first_token(self, seconds: float) -> None:
        self._firsts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self._firsts_s += seconds

    def text(self, gauges: Mapping[str, Mapping[Labels, float]], counters: Mapping[str, Mapping[Labels, float]]) -> str:
        """Return all of it, with what others count: name -> labels -> value."""
        lines = [*_family("spikegpt_requests_total", "counter", self.requests)]
        for name, values in counters.items():
            lines += _family(name, "counter", values)
        for name, values in gauges.items():
            lines += _family(name, "gauge", values)
        name, below = "spikegpt_first_token_seconds", 0
        lines.append(f"# TYPE {name} histogram")
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._firsts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return "\n".join([*lines, f"{name}_sum {self._firsts_s:.6f}", f"{name}_count {below}"]) + "\n"


def _family(name: str, kind: str, values: Mapping[Labels, float]) -> Iterable[str]:
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
        yield f"{name}{{{inside}}} {value}" if inside else f"{name} {value}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
