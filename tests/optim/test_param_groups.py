from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from root_dash.optim import ROOT
from root_dash.optim.param_groups import decide, describe, param_groups


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


def names_of(model: nn.Module, **options: Any) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for group in ROOT.param_groups(model, **options):
        names.setdefault(group["algorithm"], set()).update(name for name, _ in group["params"])
    return names


def layouts_of(model: nn.Module, **options: Any) -> dict[str, dict[str, Any]]:
    """Return the layout of every parameter under ROOT, from its group."""
    keys = ("batch_ndim", "split_sizes", "num_heads")
    return {
        name: {key: group[key] for key in keys if key in group}
        for group in param_groups(model, **options)
        for name, _ in group["params"]
        if group["algorithm"] == "root"
    }


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
    *root, adamw = optimizer.param_groups
    assert {name for group in root for name in group["param_names"]} == MATRICES
    assert adamw["algorithm"] == "adamw"
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
    """`root` and `adamw` set options of the groups of that algorithm."""
    optimizer = ROOT(ROOT.param_groups(Gpt(tied=True), root={"momentum": 0.9}, adamw={"lr": 3e-4}), lr=1e-2)
    *root, adamw = optimizer.param_groups
    assert [(g["algorithm"], g["lr"], g["momentum"]) for g in root] == [("root", 1e-2, 0.9)] * 2
    assert (adamw["algorithm"], adamw["lr"], adamw["momentum"]) == ("adamw", 3e-4, 0.95)


def test_frozen_parameters_are_left_out() -> None:
    """A parameter without gradient is in no group, and the description says so."""
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
    """A model that needs one algorithm has one group."""
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
    assert lines[4].split() == ["blocks.0.qkv.weight", "48x16", "root", "Q,", "K", "and", "V", "fused,", "split"]
    assert "output head, by its name" in describe(Gpt(tied=False))
    assert "output head, one output per entry of tokens" in describe(Gpt(tied=False, head="to_logits"))


def test_attention_of_torch_is_split() -> None:
    """The fused weight of nn.MultiheadAttention is Q, K and V; those of other widths are matrices of their own."""
    three = {"split_sizes": (16, 16, 16)}
    assert layouts_of(nn.MultiheadAttention(16, 2)) == {"in_proj_weight": three, "out_proj.weight": {}}
    assert layouts_of(nn.MultiheadAttention(16, 2), split_qkv=False)["in_proj_weight"] == {}
    assert layouts_of(nn.MultiheadAttention(16, 2, kdim=8, vdim=12, add_bias_kv=True)) == {
        name: {} for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight")
    }


def test_only_known_orders_are_split() -> None:
    """A projection is split by name and size, and stays whole if layers of its name interleave Q, K and V."""
    for name in ("qkv", "to_qkv", "Wqkv", "c_attn"):
        assert layouts_of(nn.ModuleDict({name: nn.Linear(4, 12)})) == {f"{name}.weight": {"split_sizes": (4, 4, 4)}}
        assert layouts_of(nn.ModuleDict({name: nn.Linear(4, 8)})) == {f"{name}.weight": {}}
    for name in ("query_key_value", "qkv_proj", "in_proj", "up"):
        assert layouts_of(nn.ModuleDict({name: nn.Linear(4, 12)})) == {f"{name}.weight": {}}


def test_recurrent_and_bilinear_weights_are_matrices() -> None:
    """The fused gates of a recurrent layer are left whole, and the products of a bilinear one are its columns."""
    assert layouts_of(nn.LSTM(4, 6)) == {"weight_ih_l0": {}, "weight_hh_l0": {}}
    assert "flattened to 5 x 12" in describe(nn.Bilinear(3, 4, 5))


def test_kernels_by_kind() -> None:
    """Each group of a convolution is a matrix; AdamW takes depthwise kernels, but not a kernel of one input channel."""
    assert layouts_of(nn.Conv1d(4, 8, 3, groups=2)) == {"weight": {"num_heads": 2}}
    assert layouts_of(nn.ConvTranspose2d(6, 9, 2, groups=3)) == {"weight": {"num_heads": 3}}
    assert layouts_of(nn.ConvTranspose2d(8, 2, 2, groups=2)) == {"weight": {"num_heads": 2}}
    assert layouts_of(nn.Conv2d(1, 8, 3)) == {"weight": {}}
    for depthwise in (nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3, groups=4)):
        assert "depthwise" in describe(depthwise).splitlines()[0]


def test_routers_and_experts_in_lists() -> None:
    """Experts that are layers of their own are plain matrices; a gate beside experts is a router, another is not."""
    experts = nn.ModuleList(nn.ModuleDict({"w1": nn.Linear(8, 6), "gate": nn.Linear(8, 6)}) for _ in range(3))
    model = nn.ModuleDict({"moe": nn.ModuleDict({"gate": nn.Linear(8, 3), "experts": experts})})
    expected = {f"moe.experts.{i}.{name}.weight" for i in range(3) for name in ("w1", "gate")}
    assert names_of(model)["root"] == expected
    assert "router: a row per expert" in describe(model)
    assert set(layouts_of(nn.ModuleDict({"router": nn.Linear(8, 3), "up": nn.Linear(8, 8)}))) == {"up.weight"}


def test_stacks_of_experts() -> None:
    """Parameters of experts have one matrix per expert; other stacked parameters are flattened."""
    experts = nn.ParameterDict({"up": torch.zeros(3, 8, 6), "up_bias": torch.zeros(3, 6), "one": torch.zeros(1, 8, 6)})
    model = nn.ModuleDict({"experts": experts, "other": nn.ParameterDict({"up": torch.zeros(3, 8, 6)})})
    stack = {"batch_ndim": 1}
    assert layouts_of(model) == {"experts.up": stack, "experts.one": stack, "other.up": {}}


def test_tables_by_their_names_and_modules() -> None:
    """AdamW takes tables that are looked up or added, in any module; adapters are matrices, except on embeddings."""

    class TokenEmbedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(9, 4))

    tables = {name: torch.zeros(6, 4) for name in ("pos_embed", "position_table", "rel_pos_h", "bias", "A_log")}
    adapted = {"lora_A": nn.Linear(8, 2), "lora_embedding_A": nn.ParameterDict({"default": torch.zeros(2, 9)})}
    model = nn.ModuleDict({"tokens": TokenEmbedding(), "tables": nn.ParameterDict(tables), **adapted})
    assert names_of(model)["root"] == {"lora_A.weight"}
    assert "embedding, by its module" in describe(model)


def test_heads_by_their_places() -> None:
    """Names of heads count outside numbered blocks, and for the last layer under them; `fc` must be the last of all."""
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    assert names_of(nn.ModuleDict({"classifier": inner}))["root"] == {"classifier.0.weight"}
    assert "root" not in names_of(nn.ModuleDict({"head": nn.Linear(4, 3), "head_dist": nn.Linear(4, 3)}))
    assert names_of(nn.ModuleDict({"fc": nn.Linear(4, 4), "out": nn.Linear(4, 4)}))["root"] == {
        "fc.weight",
        "out.weight",
    }
    adapters = nn.ModuleDict({"base_layer": nn.Linear(4, 3), "lora_B": nn.Linear(2, 3)})
    assert names_of(nn.ModuleDict({"lm_head": adapters}))["root"] == {"lm_head.lora_B.weight"}


def test_a_square_table_makes_no_head() -> None:
    """An encoder whose context is as long as its width, or as its inner width, keeps its inner layers."""
    layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 8)) for _ in range(2))
    model = nn.ModuleDict({"square": nn.Embedding(8, 8), "tall": nn.Embedding(32, 8), "layers": layers})
    assert len(names_of(model)["root"]) == 6


def test_overrides_decide() -> None:
    """The first glob that matches counts; options make a group of their own, and keep what they do not set."""
    overrides: dict[str, Any] = {
        "lm_head.*": "root",
        "blocks.0.up.weight": "adamw",
        "*.up.weight": {"lr": 0.5},
        "*.qkv.weight": {"split_sizes": [32, 16], "num_heads": [2, 1]},
        "positions.weight": {"lr": 0.25},
    }
    model = Gpt(tied=False)
    names = names_of(model, overrides=overrides)
    assert names["root"] == MATRICES - {"blocks.0.up.weight"} | {"lm_head.weight"}
    assert layouts_of(model, overrides=overrides)["blocks.1.qkv.weight"] == {
        "split_sizes": (32, 16),
        "num_heads": (2, 1),
    }
    groups = ROOT.param_groups(model, adamw={"lr": 0.125}, overrides=overrides)
    assert [(g["algorithm"], len(g["params"]), g.get("lr")) for g in groups] == [
        ("root", 2, None),  # Q, K and V of the two blocks, in the model's order of groups
        ("root", 5, None),
        ("root", 1, 0.5),
        ("adamw", 14, 0.125),
        ("adamw", 1, 0.25),
    ]
    assert "overridden by 'lm_head.*'" in describe(model, overrides=overrides)


def test_overrides_keep_the_layout_that_they_do_not_set() -> None:
    """Heads cut Q, K and V further, and a frozen parameter stays frozen."""
    model = Gpt(tied=True)
    overrides = {"*.qkv.weight": {"num_heads": 2, "lr": 0.5}}
    layout = {"split_sizes": (16, 16, 16), "num_heads": 2}
    assert layouts_of(model, overrides=overrides)["blocks.0.qkv.weight"] == layout
    model.requires_grad_(False)
    assert ROOT.param_groups(model, overrides=overrides) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"nothing.*": "root"}, "overrides must match a parameter that no earlier glob matches, got \\['nothing"),
        ({"*": "adamw", "norm.*": "root"}, "overrides must match a parameter that no earlier glob matches"),
        ({"*.up.weight": "sgd"}, "overrides must be one of 'root', 'adamw', or options, got 'sgd'"),
        (
            {"*.up.*": {"num_heads": 2}},
            "overrides must give num_heads under ROOT only, got '\\*.up.\\*' for blocks.0.up.b",
        ),
        ({"*.up.weight": {"num_heads": 3}}, "num_heads must divide the rows of its block, 64, got 3 for parameter"),
        ({"norm.weight": "root"}, "batch_ndim must leave 2 dimensions to the matrix"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict[str, Any], message: str) -> None:
    """A glob for nothing, an unknown algorithm and a layout that does not fit are errors."""
    with pytest.raises(ValueError, match=f"^{message}"):
        ROOT.param_groups(Gpt(tied=True), overrides=overrides)


@pytest.mark.parametrize("override", [3, ["root"], None, {"algorithm": 3}])
def test_overrides_of_a_wrong_type_are_refused(override: Any) -> None:
    """The error is a TypeError that says what an override may be."""
    with pytest.raises(TypeError, match=r"^overrides must be .* got"):
        ROOT.param_groups(Gpt(tied=True), overrides={"*.up.weight": override})
