from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from root_dash.optim import ROOT
from root_dash.optim.param_groups import decide, describe


class Block(nn.Module):
    """A transformer block, as far as parameters go."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.output = nn.Linear(d, d)
        self.up = nn.Linear(d, 4 * d)
        self.down = nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + self.output(q * k * v)
        out: Tensor = x + self.down(self.up(x).relu())
        return out


class Gpt(nn.Module):
    """A small language model; its context is as long as its width, so that sizes alone confuse."""

    def __init__(self, vocabulary: int = 31, d: int = 16, *, tied: bool, head: str = "lm_head") -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d)
        self.positions = nn.Embedding(d, d)
        self.blocks = nn.ModuleList(Block(d) for _ in range(2))
        self.norm = nn.LayerNorm(d)
        self.head_name = head
        self.add_module(head, nn.Linear(d, vocabulary, bias=False))
        if tied:
            self.get_submodule(head).weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[-1]]
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.get_submodule(self.head_name)(self.norm(x))
        return out


MATRICES = {f"blocks.{i}.{name}.weight" for i in range(2) for name in ("qkv", "output", "up", "down")}


def names_of(model: nn.Module) -> dict[str, set[str]]:
    return {group["algorithm"]: {name for name, _ in group["params"]} for group in ROOT.param_groups(model)}


@pytest.mark.parametrize("head", ["lm_head", "to_logits"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_split(tied: bool, head: str) -> None:
    """ROOT gets the blocks' matrices; embeddings, head and vectors go to AdamW; every parameter goes somewhere once."""
    model = Gpt(tied=tied, head=head)
    names = names_of(model)
    assert names["root"] == MATRICES
    assert names["root"] | names["adamw"] == {name for name, _ in model.named_parameters()}
    assert (f"{head}.weight" in names["adamw"]) == (not tied)
    assert not names["root"] & names["adamw"]


@pytest.mark.parametrize("tied", [True, False])
def test_the_groups_train(tied: bool) -> None:
    """The optimizer takes the groups as they are, keeps the names, and lowers the loss."""
    torch.manual_seed(0)
    model = Gpt(tied=tied)
    optimizer = ROOT(ROOT.param_groups(model), lr=0.01)
    assert set(optimizer.param_groups[0]["param_names"]) == MATRICES
    tokens = torch.randint(0, 31, (8, 16))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_options_reach_their_group() -> None:
    """`root` and `adamw` set options of one group each."""
    optimizer = ROOT(ROOT.param_groups(Gpt(tied=True), root={"momentum": 0.9}, adamw={"lr": 3e-4}), lr=1e-2)
    root, adamw = optimizer.param_groups
    assert (root["algorithm"], root["lr"], root["momentum"]) == ("root", 1e-2, 0.9)
    assert (adamw["algorithm"], adamw["lr"], adamw["momentum"]) == ("adamw", 3e-4, 0.95)


def test_frozen_parameters_are_left_out() -> None:
    """What needs no gradient is in no group, and the description says so."""
    model = Gpt(tied=False)
    model.blocks[0].requires_grad_(False)
    names = names_of(model)
    assert not any(name.startswith("blocks.0") for name in names["root"] | names["adamw"])
    assert "frozen" in describe(model)


def test_convolutions_and_odd_parameters() -> None:
    """Kernels go to ROOT; position tables, class tokens, matrices of one row and shared matrices to AdamW."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 1), nn.Linear(8, 8), nn.Linear(8, 8))
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(4, 8)))
    model.register_parameter("token", nn.Parameter(torch.zeros(1, 1, 8)))
    assert isinstance(model[2], nn.Linear)
    assert isinstance(model[3], nn.Linear)
    assert names_of(model)["root"] == {"0.weight", "2.weight", "3.weight"}
    model[3].weight = model[2].weight
    assert names_of(model)["root"] == {"0.weight"}


def test_a_model_of_one_kind_has_one_group() -> None:
    """No empty group is made."""
    assert set(names_of(nn.Linear(4, 4, bias=False))) == {"root"}
    assert set(names_of(nn.LayerNorm(4))) == {"adamw"}
    assert ROOT.param_groups(nn.ReLU()) == []


def test_every_decision_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """`verbose` prints one line per parameter with its name, shape, algorithm and reason."""
    model = Gpt(tied=True)
    ROOT.param_groups(model, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(decide(model)) == len(list(model.parameters()))
    assert lines[0].split() == ["tokens.weight", "31x16", "adamw", "embedding,", "tied", "as", "lm_head.weight"]
    assert lines[2].split() == ["blocks.0.norm.weight", "16", "adamw", "fewer", "than", "two", "dimensions"]
    assert lines[4].split() == ["blocks.0.qkv.weight", "48x16", "root", "matrix"]
    assert "output head, by its name" in describe(Gpt(tied=False))
    assert "output head, one output per entry of tokens" in describe(Gpt(tied=False, head="to_logits"))
