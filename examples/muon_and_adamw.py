"""Record torch's own Muon, with AdamW for the other parameters: `python examples/muon_and_adamw.py runs.db`.

`watch` takes any optimizer of torch, or several in the order in which they step. For optimizers other than ROOT the
update is measured: how far the weights moved, over the learning rate.
"""

import math
import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Muon

from root_dash import watch

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(64, 32), nn.Linear(32, 32, bias=False), nn.ReLU(), nn.Linear(32, 64))
hidden = model[1].weight
muon = Muon([hidden], lr=2e-2)
adamw = AdamW([p for p in model.parameters() if p is not hidden], lr=3e-3)

# A step of so small a model takes less time than recording it: without max_overhead, steps would be left out.
with watch(model, [muon, adamw], db=sys.argv[1], name="torch Muon and AdamW", max_overhead=math.inf) as run:
    for _ in range(60):
        tokens = torch.randint(64, (32, 8))
        following = (3 * tokens + 1) % 64
        loss = cross_entropy(model(tokens).flatten(0, 1), following.flatten())
        loss.backward()
        for optimizer in (muon, adamw):
            optimizer.step()
            optimizer.zero_grad()
        run.log(loss=loss)
