"""Accumulate gradients over four batches and clip them: `python examples/gradient_accumulation.py runs.db`.

A recorded step is a step of the optimizer. Its gradient is the sum over the four batches, after clipping: the gradient
that the optimizer uses.
"""

import math
import sys

import torch
from torch import nn
from torch.nn.functional import mse_loss

from root_dash import ROOT, watch

ACCUMULATED = 4

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 1))
optimizer = ROOT(ROOT.param_groups(model), lr=1e-2)

# A step of so small a model takes less time than recording it: without max_overhead, steps would be left out.
config = {"accumulated": ACCUMULATED}
with watch(model, optimizer, db=sys.argv[1], name="accumulated", config=config, max_overhead=math.inf) as run:
    for _ in range(40):
        total = torch.zeros(())
        for _ in range(ACCUMULATED):
            inputs = torch.randn(32, 16)
            loss = mse_loss(model(inputs), inputs.sum(1, keepdim=True).sin()) / ACCUMULATED
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        run.log(loss=total)
