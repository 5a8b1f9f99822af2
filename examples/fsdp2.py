"""Shard a model over processes with FSDP2: `torchrun --nproc-per-node 2 examples/fsdp2.py runs.db`.

Call `watch` in every process. Each process measures its shards; the first process merges and stores them. On a machine
with GPUs, use the backend "nccl" and move model and batches to the process's GPU.
"""

import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import mse_loss

from root_dash import ROOT, watch

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for layer in (model[0], model[2], model):
    fully_shard(layer, mesh=mesh)

optimizer = ROOT(ROOT.param_groups(model), lr=1e-2)  # sharded parameters need no further argument
torch.manual_seed(dist.get_rank())  # each process draws batches of its own

with watch(model, optimizer, db=sys.argv[1], name="sharded") as run:
    for _ in range(10):
        inputs = torch.randn(32, 16)
        loss = mse_loss(model(inputs), inputs[:, :4].sin())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        run.log(loss=loss)

dist.destroy_process_group()
