"""Every operator of torch's own database run under the counter: counted as by brute force, a move, listed, or wrong.

`python tests/helpers/operator_net.py` runs all of it and writes docs/counted_operators.md.
"""

import re
import sys
import warnings
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path

import torch
from brute_force import ORACLES
from counting_numbers import Call
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuromorphic import OpCounter
from neuromorphic.count import moves
from neuromorphic.count.counts import ELEMENTWISE
from neuromorphic.count.dispatch import tensors_in, unseen

PAGE = Path(__file__).parents[2] / "docs" / "counted_operators.md"
STATUSES = ("exact", "move", "free", "listed", "wrong")
# torch.empty gives any numbers; these take minutes or need another device
LEFT_OUT = re.compile(r"empty|jiterator|triton|_flash_attention|_efficient_attention|linear_cross_entropy")
DTYPES = (torch.float32, torch.complex64, torch.int64, torch.bool, torch.bfloat16)


REFUSALS = (RuntimeError, NotImplementedError, TypeError, ValueError, IndexError, AttributeError)


class Computes(nn.Module):
    """One operator on its sample, watched call by call."""

    def forward(self, inputs, op, watch):
        with watch:
            return op(inputs.input, *inputs.args, **inputs.kwargs)


class Watch(TorchDispatchMode):
    """Compares what the counter says of each operator with brute force."""

    def __init__(self, counter: OpCounter, net: "Net"):
        super().__init__()
        self.counter, self.net = counter, net
        self.last = self.amounts()

    def amounts(self) -> tuple[Counter, int]:
        tally = self.counter.tally()
        total = tally.total()
        found = Counter({name: getattr(total, name) for name in ELEMENTWISE})
        found.update(dense=total.dense_ops, effective=total.effective_ops)
        return found, sum(entry.calls for entry in tally.uncounted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        before, listed_before = self.last
        output = func(*args, **kwargs)
        if func.is_view:
            return output
        after, listed = self.last = self.amounts()
        name = func._schema.name.split("::")[1].removesuffix("_")
        found = {key: after[key] - before[key] for key in after if after[key] != before[key]}
        with unseen():
            self.net.note(name, func, args, kwargs, output, found, listed > listed_before)
        return output


class Net:
    """operator -> status -> calls; `faults` says what was wrong.

    It runs up to `samples` samples, None for all, that have up to `largest` numbers in a tensor.
    """

    def __init__(self, samples: int | None = None, largest: int = 4000):
        self.samples, self.largest = samples, largest
        self.found: dict[str, Counter] = defaultdict(Counter)
        self.faults: list[str] = []

    def note(self, name, func, args, kwargs, output, found, is_listed):
        if is_listed:
            self.found[name]["wrong" if found else "listed"] += 1
            return
        arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
        arguments |= dict(zip(arguments, args, strict=False)) | kwargs
        if name in moves.FREE or (name == "aminmax" and not arguments["self"].is_floating_point()):
            status, expected = "free", {}
        elif name in moves.MOVES | moves.DRAWS - ORACLES.keys() or (
            name in moves.MOVES_OR_REDUCTIONS and not arguments.get("accumulate") and not arguments.get("reduce")
        ):
            status, expected = "move", {}
        elif name in ORACLES:
            results = [output] if isinstance(output, torch.Tensor) else [*output]
            status, done = "exact", Counter()
            ORACLES[name](Call(arguments, results, done))
            expected = {key: number for key, number in done.items() if number}
        else:
            status, expected = "wrong", "nothing, for it has no oracle"
        if not found and expected and all(tensor.numel() == 1 for tensor in tensors_in(args, kwargs)):
            # made of single constants of the program: prepared once
            return
        if found != expected:
            status = "wrong"
            self.faults.append(f"{func}: counted {found}, by brute force {expected}")
        self.found[name][status] += 1

    def run(self, operators, dtypes) -> "Net":
        """Run samples of each operator in each of the dtypes that it knows."""
        for op in operators:
            if LEFT_OUT.search(op.name):
                continue
            for dtype in dtypes:
                if dtype in op.dtypes:
                    self._run_samples(op, dtype)
        return self

    def _run_samples(self, op, dtype):
        try:
            # the function itself: `sample_inputs` looks through the stack of calls for each of them
            inputs = op.sample_inputs_func(op, "cpu", dtype, requires_grad=False)
            small = list(islice((sample for sample in inputs if _size(sample) <= self.largest), self.samples))
        except REFUSALS:
            return
        for sample in small:
            model = Computes()
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                if not runs(op, sample):
                    continue
                # the second call may be replayed
                samples = [sample.transform(copied) for _ in range(2)]
                try:
                    with OpCounter(model) as counter:
                        for each in samples:
                            model(each, op, Watch(counter, self))
                except REFUSALS as error:
                    self.faults.append(f"{op.name} {dtype}: {error}")

    def status(self, name: str) -> str:
        """wrong if it was once; else exact or a move, if it was so once; else listed."""
        found = self.found[name]
        return next(status for status in ("wrong", "exact", "move", "free", "listed") if found[status])

    def figures(self) -> str:
        statuses = Counter(map(self.status, self.found))
        return ", ".join(f"{statuses[status]} {status}" for status in STATUSES)

    def page(self) -> str:
        named = {status: sorted(name for name in self.found if self.status(name) == status) for status in STATUSES}
        partly = [name for name in named["exact"] if self.found[name]["listed"]]

        def listed(names):
            return ", ".join(f"`{name}`" for name in names) or "none"

        version = torch.__version__.split("+")[0]
        return f"""# Which operators are counted

{len(self.found)} operators run when the test samples of torch {version} (`torch.testing`) do: {self.figures()}. Each \
counted call was compared with a loop over the operator's definition, which counts operations as they are done, and \
products pair by pair (`tests/helpers/brute_force.py`). `python tests/helpers/operator_net.py` writes this page, \
`make test` runs a sample.

| | operators |
|---|---|
| counted, equal to brute force | {listed(named["exact"])} |
| of these, listed as uncounted for some arguments | {listed(partly)} |
| moves: elements read and written, nothing computed | {listed(named["move"])} |
| no part of the model: allocation, layouts and formats of this host, looks at a value | {listed(named["free"])} |
| listed as uncounted; `strict=True` refuses them | {listed(named["listed"])} |
| wrong | {listed(named["wrong"])} |
"""


def runs(op, sample) -> bool:
    """False for samples that torch itself refuses on this machine."""
    try:
        op(sample.transform(copied).input, *sample.transform(copied).args, **sample.transform(copied).kwargs)
    except REFUSALS:
        return False
    return True


def copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def _size(sample) -> int:
    leaves = tree_leaves((sample.input, sample.args, sample.kwargs))
    return max((leaf.numel() for leaf in leaves if isinstance(leaf, torch.Tensor)), default=0)


def operators():
    """Torch's database; imported late, for it takes seconds."""
    from torch.testing._internal.common_methods_invocations import op_db

    return op_db


if __name__ == "__main__":
    net = Net().run(operators(), DTYPES)
    print(net.figures(), *net.faults[:50], sep="\n")
    PAGE.write_text(net.page())
    sys.exit(bool(net.faults))
