"""Seven counters on thirty models, each against what is right by its own claim: right, listed, wrong or crashed.

    python benchmarks/counters.py [--quick]

What is right is counted product by product one level above the dispatcher (`by_hand.py`), and what dense layers
multiply is also worked out on paper (`counter_models.py`); the two must agree. Counters claim different things, and
each is held to what its documentation says, with the settings that it recommends:
    ours: products with an element of the input; of two nonzeros, MACs and ACs by the vector; spikes and neurons.
    torch: FLOPs of matrix products and convolutions, two to a product, padding and hidden pairs of attention included.
    fvcore: the same products, one FLOP each; its costs of norms and pooling are left out of the comparison.
    ptflops: the same products by its backend `aten`, which it recommends; it adds biases, any number of which is right.
    deepspeed: the same products, its `macs`.
    neurobench: products with a weight, all and of two nonzeros, MACs and ACs by the call; spikes of snnTorch.
    spikingjelly: MACs of calls without an operand of 0 and 1, SynOps of the others; spikes and neurons of its own.
Every counter has two tries, with and without gradients, and the better one counts. "Listed": the figure is off, and the
counter says which operator with products it left out. What is not installed is named and left out. Last line: JSON with
the verdicts by counter.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from by_hand import count_by_hand, count_spikes
from counter_models import CASES, make
from measure import write_result
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from neuromorphic import OpCounter

INSTALL = "pip install --no-deps fvcore iopath yacs termcolor ptflops deepspeed hjson msgpack py-cpuinfo einops"

# parts of the names of operators that multiply matrices
PRODUCTS = re.compile("attention|lstm|gru|rnn|mm|matmul|conv|(?<!bi)linear|einsum|encoder_layer")
NEURONS = ("spikes", "neuron_updates")


class Counted(NamedTuple):
    """What a counter says, by the names of `by_hand.py`, and the operators with products that it says it left out."""

    values: dict[str, float]
    listed: tuple[str, ...] = ()


def with_products(operators: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({name for name in operators if PRODUCTS.search(name)}))


def ours(model: nn.Module, x: Tensor) -> Counted:
    with OpCounter(model) as counter:
        model(x)
    tally = counter.tally()
    total = tally.total()
    values = {"real": total.dense_ops, "macs": total.effective_macs, "acs": total.effective_acs}
    values |= {"spikes": total.events_out, "neuron_updates": total.neuron_updates}
    return Counted(values, with_products(item.operator for item in tally.uncounted))


def of_torch(model: nn.Module, x: Tensor) -> Counted:
    with FlopCounterMode(display=False) as counter:
        model(x)
    return Counted({"full": counter.get_total_flops() / 2})


def fvcore(model: nn.Module, x: Tensor) -> Counted:
    from fvcore.nn import FlopCountAnalysis

    analysis = FlopCountAnalysis(model, x).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    products = sum(number for name, number in analysis.by_operator().items() if PRODUCTS.search(name))
    return Counted({"full": products}, with_products(analysis.unsupported_ops()))


def ptflops(model: nn.Module, x: Tensor) -> Counted:
    from ptflops import get_model_complexity_info

    said = io.StringIO()
    options = {"backend": "aten", "as_strings": False, "print_per_layer_stat": False, "verbose": True, "ost": said}
    with contextlib.redirect_stderr(said):
        macs, _ = get_model_complexity_info(model, (1,), input_constructor=lambda _: x, **options)
    if macs is None:
        # it prints the traceback of the model or its own, and goes on
        raise RuntimeError(said.getvalue().strip().splitlines()[-1])
    return Counted({"full_to_biases": macs}, with_products(re.findall(r"Warning: (\S+) operation", said.getvalue())))


def deepspeed(model: nn.Module, x: Tensor) -> Counted:
    from deepspeed.profiling.flops_profiler import FlopsProfiler

    profiler = FlopsProfiler(model)
    profiler.start_profile()
    try:
        model(x)
        return Counted({"full": profiler.get_total_macs()})
    finally:
        # puts torch's functions back
        profiler.end_profile()


def neurobench(model: nn.Module, x: Tensor) -> Counted:
    import snntorch
    from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
    from neurobench.models import TorchModel

    wrapped = TorchModel(model)
    wrapped.add_activation_module(snntorch.SpikingNeuron)
    wrapped.register_hooks()
    try:
        wrapped(x)
        found = SynapticOperations()(wrapped, None, (x, None))
        # its figures are means over the first dimension
        names = {"connection_macs": "Effective_MACs", "connection_acs": "Effective_ACs", "connections": "Dense"}
        values = {claim: round(found[theirs] * len(x), 6) for claim, theirs in names.items()}
        outputs = [part for hook in wrapped.activation_hooks for part in hook.activation_outputs]
        if outputs and all(isinstance(hook.layer, snntorch.SpikingNeuron) for hook in wrapped.activation_hooks):
            firing_rate = 1 - ActivationSparsity()(wrapped, None, (x, None))
            values["spikes"] = round(firing_rate * sum(part.numel() for part in outputs), 6)
        return Counted(values)
    finally:
        wrapped.cleanup_hooks()


def spikingjelly(model: nn.Module, x: Tensor) -> Counted:
    from spikingjelly.activation_based import monitor, neuron, op_counter

    # batch norms are no products; this is how its documentation leaves them out
    macs = op_counter.MACCounter(extra_ignore_modules=[nn.BatchNorm2d])
    synops, states = op_counter.SynOpCounter(), op_counter.NeuronStateCounter()
    spikes = monitor.OutputMonitor(model, neuron.base_node.BaseNode)
    with op_counter.DispatchCounterMode([macs, synops, states]):
        model(x)
    values = {"call_macs": macs.get_total(), "call_acs": synops.get_total()}
    if spikes.records:
        values["spikes"] = sum(int(record.count_nonzero()) for record in spikes.records)
        # one comparison with the threshold for each neuron and step
        values["neuron_updates"] = states.get_metric_counts()["Global"]["state_comps"]
    return Counted(values)


COUNTERS: dict[str, tuple[str, Callable[[nn.Module, Tensor], Counted]]] = {
    "ours": ("spikegpt", ours),
    "torch": ("torch", of_torch),
    "fvcore": ("fvcore", fvcore),
    "ptflops": ("ptflops", ptflops),
    "deepspeed": ("deepspeed", deepspeed),
    "neurobench": ("neurobench", neurobench),
    "spikingjelly": ("spikingjelly", spikingjelly),
}


def by_hand(name: str) -> Counter:
    """Return what is right of a model, by claim."""
    products = count_by_hand(*make(name))
    if products["full"] != CASES[name].full:
        raise SystemExit(f"{name}: {products['full']} products by hand, {CASES[name].full} on paper; one is wrong")
    # at least; is_right adds the biases
    products["full_to_biases"] = products["full"]
    return products + count_spikes(*make(name))


def is_right(claim: str, value: float, right: Counter) -> bool:
    if claim == "full_to_biases":
        return right["full"] <= value <= right["full"] + right["biases"]
    return value == right[claim]


def judge(counter: str, name: str, right: Counter, with_gradients: bool) -> dict:
    """Return the verdicts on products and, where it counts them, on neurons of one counter, with its figures."""
    model, x = make(name)
    try:
        with torch.set_grad_enabled(with_gradients), contextlib.redirect_stdout(io.StringIO()):
            counted = COUNTERS[counter][1](model, x)
    # whatever it raises is its verdict
    except Exception as error:  # noqa: BLE001
        return {"products": "crashed", "error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    wrong = {claim: right[claim] for claim, value in counted.values.items() if not is_right(claim, value, right)}
    verdicts = {"products": "right"}
    if not wrong.keys() <= set(NEURONS):
        verdicts["products"] = "listed" if counted.listed else "wrong"
    if counted.values.keys() & set(NEURONS):
        verdicts["neurons"] = "wrong" if wrong.keys() & set(NEURONS) else "right"
    return {**verdicts, "counted": counted.values, "but right": wrong, "left out": list(counted.listed)}


def better(counter: str, name: str, right: Counter) -> dict:
    """Return the better of two tries, with and without gradients."""
    order = ("right", "listed", "wrong", "crashed")
    tries = [judge(counter, name, right, with_gradients) for with_gradients in (True, False)]
    return min(tries, key=lambda result: (order.index(result["products"]), result.get("neurons", "")))


def is_installed(counter: str) -> bool:
    try:
        COUNTERS[counter][1](nn.Sequential(nn.Linear(1, 1)), torch.ones(1, 1))
    except ImportError as error:
        print(f"{counter} is left out: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every fifth model")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    counters = [counter for counter in COUNTERS if is_installed(counter)]
    if len(counters) < len(COUNTERS):
        print(INSTALL)
    versions = {counter: importlib.metadata.version(COUNTERS[counter][0]) for counter in counters}
    models = {}
    for name in list(CASES)[:: 5 if options.quick else 1]:
        right = by_hand(name)
        models[name] = {counter: better(counter, name, right) for counter in counters}
        print(f"{name}:", ", ".join(f"{counter} {result['products']}" for counter, result in models[name].items()))
    verdicts = {counter: summary([results[counter] for results in models.values()]) for counter in counters}
    if not options.quick:
        write_result("counters", {"verdicts": verdicts, "versions": versions, "models": models})
    print(json.dumps({"models": len(models), **verdicts}))


def summary(results: list[dict]) -> dict:
    """Return how many models got which verdict; on neurons, of those that have some."""
    return {
        what: dict(Counter(result[what] for result in results if what in result)) for what in ("products", "neurons")
    }


if __name__ == "__main__":
    main()
