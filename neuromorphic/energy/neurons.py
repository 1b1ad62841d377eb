"""What neurons and elementwise operations cost: each operation once, as itself or within the update of a neuron.

A neuron that declares itself says what its update consists of. One that was only seen to emit spikes is made of
elementwise operators, which stand beside its spikes in the same module: where a table has a price for the update, it
replaces them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..count.counts import Counts, Site, total
from .prices import Profile
from .terms import Amount, Charge, exactly

# what may stand in a module that is a neuron and nothing else
OF_NEURONS = frozenset(("elementwise", "neuron", "state", "move"))
# a module that does none of these charges nothing up: it is the threshold of a neuron around it
CHARGING = ("add", "mul", "div")


@dataclass(frozen=True)
class Neurons:
    """The neurons of a measurement, and which sites hold their operations."""

    updates: int
    declared: frozenset[Site]
    """sites at which neurons declare their operations"""
    replaced: frozenset[Site]
    """sites of elementwise operations that neurons consist of"""
    shared: frozenset[Site]
    """the same in modules that do other work too: which of the operations are the neurons' nobody knows"""
    unknown_updates: int
    """updates of which no operation was seen or declared"""


def find_neurons(sites: Mapping[Site, Counts], kinds: Mapping[str, str]) -> Neurons:
    """Return the neurons in `sites`; `kinds` are those of their operators."""
    elementwise: dict[str, list[Site]] = {}
    # modules with other work than neurons', in them or in a module inside them
    busy: set[str] = set()
    for site in sites:
        if kinds[site.operator] == "elementwise":
            elementwise.setdefault(site.module, []).append(site)
        elif kinds[site.operator] not in OF_NEURONS:
            busy.update(_outwards(site.module))
    declared, replaced, shared = set[Site](), set[Site](), set[Site]()
    updates = unknown = 0
    for site, counts in sites.items():
        if kinds[site.operator] != "neuron" or not counts.neuron_updates:
            continue
        updates += counts.neuron_updates
        if any(counts.elementwise.values()):
            declared.add(site)
            continue
        found: list[Site] = []
        for module in _outwards(site.module):
            beside = elementwise.get(module, [])
            found += beside
            (shared if module in busy else replaced).update(beside)
            if module in busy or any(getattr(sites[part], name) for part in beside for name in CHARGING):
                break
        unknown += 0 if found else counts.neuron_updates
    return Neurons(updates, frozenset(declared), frozenset(replaced), frozenset(shared - replaced), unknown)


def _outwards(module: str) -> Iterator[str]:
    """Yield the paths of a module and of those around it."""
    yield module
    while module:
        module = module.rpartition(".")[0]
        yield module


def neurons_and_elementwise(sites: Mapping[Site, Counts], neurons: Neurons, profile: Profile) -> list[Charge]:
    """Return a charge for neuron updates, if they have a price, and one for each other class of elementwise work."""
    price = profile.prices.get("neuron_update")
    if price is None and profile.scope != "all_in":
        unknown = exactly(neurons.unknown_updates)
        hidden = Charge("neuron_update", unknown.high, ((unknown, None),), "nobody saw or declared what they do")
        return [hidden, *_elementwise(sites, frozenset(), frozenset(), profile)]
    rest = _elementwise(sites, neurons.declared | neurons.replaced, neurons.shared, profile)
    if price is None:
        # an all-in price contains the updates; work outside of neurons, such as a norm, was not measured with them
        return rest
    updates = exactly(neurons.updates)
    note = "replaces the elementwise operations of the neurons"
    return [Charge("neuron_update", neurons.updates, ((updates, price),), note), *rest]


def _elementwise(
    sites: Mapping[Site, Counts], left_out: frozenset[Site], shared: frozenset[Site], profile: Profile
) -> list[Charge]:
    certain = total(counts for site, counts in sites.items() if site not in left_out | shared).elementwise
    open_to = total(sites[site] for site in shared).elementwise
    return [
        Charge(
            name,
            count + open_to[name],
            ((Amount(count, count, count + open_to[name]), profile.prices.get(name)),),
            "high: also those of modules that emit spikes and do other work too" if open_to[name] else "",
        )
        for name, count in certain.items()
    ]
