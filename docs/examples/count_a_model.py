"""Count what any torch model computes, and estimate what that would cost by three price tables."""

import torch
from torch import nn

from neuromorphic import OpCounter, estimate


class Step(nn.Module):
    def forward(self, x):
        return (x > 0.5).to(x)


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 256))
with torch.no_grad(), OpCounter(model) as counter:
    model(torch.randn(1, 32, 16))
tally = counter.tally()
print(tally)

# a step in the place of the ReLU: the second product reads spikes, and only accumulates
spiking = nn.Sequential(model[0], Step(), model[2])
with torch.no_grad(), OpCounter(spiking) as counter:
    spiking(torch.randn(1, 32, 16))
for table in ("horowitz45-fp32", "seneca22", "convention-4.6-0.9"):
    dense, spikes = (estimate(found, table).central_pj for found in (tally, counter.tally()))
    print(f"{table}: {dense / 1e3:.2f} nJ per token, with spikes {spikes / 1e3:.2f} nJ")
