"""Train on one machine and record on another: `python examples/far_trainer.py http://host:8050 WRITE_TOKEN`.

On the other machine: `root-dash serve runs.db --host 0.0.0.0`, which prints the write token. Frames wait in a folder on
this machine until the server has stored them: a server that is away costs the training nothing.
"""

import math
import sys

import torch
from torch import nn
from torch.nn.functional import mse_loss

from root_dash import ROOT, watch

server, token = sys.argv[1:3]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = ROOT(ROOT.param_groups(model), lr=1e-2)

# A step of so small a model takes less time than recording it: without max_overhead, steps would be left out.
with watch(
    model, optimizer, server=server, token=token, spool="root-dash-spool", name="far away", max_overhead=math.inf
) as run:
    for _ in range(30):
        inputs = torch.randn(64, 16)
        loss = mse_loss(model(inputs), inputs.prod(1, keepdim=True))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log(loss=loss)

print("what the server does not have yet: root-dash sync --server", server)
