"""Train a small network under ROOT, and record every step: `python examples/minimal.py runs.db`.

Then: `root-dash serve runs.db`.
"""

import math
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from root_dash import ROOT, watch

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
inputs = torch.randn(4096, 20)
labels = (inputs[:, :10].sum(1) > inputs[:, 10:].sum(1)).long()

# Hidden matrices go to ROOT; biases and the output layer go to AdamW. ROOT.param_groups says why on request.
optimizer = ROOT(ROOT.param_groups(model), lr=2e-2)

# A step of so small a model takes less time than recording it: without max_overhead, steps would be left out.
with watch(model, optimizer, db=sys.argv[1], name="minimal", max_overhead=math.inf) as run:
    for _ in range(100):
        batch = torch.randint(len(inputs), (64,))
        loss = cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log(loss=loss)  # takes the tensor as it is and does not wait for a device

print(f"loss after 100 steps: {loss.item():.3f}")
