"""What tests of the counter share: counts of one call, operands, counts of single products, foreign spiking stacks."""

import itertools

import pytest
import torch
from torch import nn

from neuromorphic import OpCounter


def count(model, *inputs, **options):
    with torch.no_grad(), OpCounter(model, **options) as counter:
        model(*inputs)
    return counter.tally()


def linear(weight, bias=None):
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data.copy_(weight)
    if bias is not None:
        layer.bias.data.copy_(bias)
    return layer


def amounts(tally):
    """Everything that must not depend on how the work was cut into calls."""
    counts = tally.total().to_dict()
    del counts["calls"]
    return counts


def brute_force(x, weight):
    """Count products one by one; a row decides whether they are MACs or ACs."""
    macs = acs = units = 0
    for row in x.double().tolist():
        whole = all(value == int(value) for value in row)
        spiking = whole and max(map(abs, row)) <= 1
        for value, out in itertools.product(enumerate(row), weight.double().tolist()):
            k, number = value
            if number != 0 and out[k] != 0:
                macs, acs = macs + (not spiking), acs + spiking
                units += int(abs(number)) if whole and not spiking else 0
    return macs, acs, units


def operations(counts):
    """(MACs, ACs, dense products)."""
    return counts.effective_macs, counts.effective_acs, counts.dense_ops


def spikes(*shape, rate=0.4, seed=0):
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < rate).float()


def reals(*shape, density=1.0, seed=0):
    """Numbers that are not whole, and zeros: the first of each row is never 0."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(*shape, generator=generator) + 0.125
    kept = torch.rand(*shape, generator=generator) < density
    kept[..., 0] = True
    return values * kept


def random_case(seed, levels, n=7, k=5, m=3, dtype=torch.float32):
    """(x (n, k), weight (m, k)), both with zeros; the values of x are in `levels`, or real."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-8, 9, (m, k), generator=generator) / 4 + 0.125
    weight = weight * (torch.rand(m, k, generator=generator) < 0.7)
    if levels is None:
        x = torch.randint(-8, 9, (n, k), generator=generator) / 4 + 0.125
        x = x * (torch.rand(n, k, generator=generator) < 0.6)
        # a row of reals must not look like spikes by chance
        x[:, 0] = 0.375
    else:
        x = torch.tensor(levels)[torch.randint(len(levels), (n, k), generator=generator)]
        x[0, :2] = torch.tensor([min(levels), max(levels)])
    return x.to(dtype), weight.to(dtype)


LEVELS = {"real": None, "binary": [0.0, 1.0], "ternary": [-1.0, 0.0, 1.0], "integer": [-3.0, 0.0, 1.0, 4.0]}


class Computes(nn.Module):
    """function(*inputs, *parameters, *buffers)."""

    def __init__(self, function, *parameters, buffers=()):
        super().__init__()
        self.function, self.weights = function, nn.ParameterList(parameters)
        for number, buffer in enumerate(buffers):
            self.register_buffer(f"buffer_{number}", buffer)

    def forward(self, *inputs):
        return self.function(*inputs, *self.weights, *self.buffers())


class SnnTorchStack(nn.Module):
    """Two layers of snnTorch neurons over (T, B, C); keeps how many spikes they emitted."""

    def __init__(self):
        super().__init__()
        snntorch = pytest.importorskip("snntorch")
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 4)
        self.first, self.second = snntorch.Leaky(beta=0.9, threshold=0.2), snntorch.Leaky(beta=0.9, threshold=0.2)

    def forward(self, x):
        potential, other_potential = self.first.reset_mem(), self.second.reset_mem()
        self.emitted, outputs = 0, []
        for step in x:
            hidden, potential = self.first(self.up(step), potential)
            spike, other_potential = self.second(self.down(hidden), other_potential)
            self.emitted += int(hidden.sum() + spike.sum())
            outputs.append(spike)
        return torch.stack(outputs)


class SpikingJellyStack(nn.Sequential):
    """The same of SpikingJelly in multi-step mode; its state is reset before each run."""

    def __init__(self, *layers):
        parts = {
            part: pytest.importorskip(f"spikingjelly.activation_based.{part}")
            for part in ("neuron", "layer", "functional")
        }
        self.start_anew = parts["functional"].reset_net
        neuron, each_step = parts["neuron"].LIFNode, parts["layer"].SeqToANNContainer
        super().__init__(
            *(neuron(step_mode="m", v_threshold=0.2) if layer == "LIF" else each_step(layer) for layer in layers)
        )

    def forward(self, x):
        self.start_anew(self)
        self.emitted = 0
        for layer in self:
            x = layer(x)
            self.emitted += int(x.sum()) if type(layer).__name__ == "LIFNode" else 0
        return x
