"""The split on models as they are in use: Hugging Face's, from random weights, and the plain ones that people write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from root_dash.optim import ROOT
from root_dash.optim.matrices.layout import Layout, pieces
from root_dash.optim.param_groups import param_groups

LANGUAGE = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
EXPERTS = {**LANGUAGE, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


class VisionBlock(nn.Module):
    """A block of a vision transformer with fused Q, K and V, as far as parameters go."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(d, 3 * d), "proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, 2 * d), "fc2": nn.Linear(2 * d, d)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).chunk(3, -1)
        x = x + self.attn["proj"](nn.functional.scaled_dot_product_attention(q, k, v))
        out: Tensor = x + self.mlp["fc2"](self.mlp["fc1"](self.norm2(x)).relu())
        return out


class VisionTransformer(nn.Module):
    """A vision transformer of 8 x 8 images in the names that timm uses."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, d, 4, stride=4)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, d))
        self.blocks = nn.ModuleList(VisionBlock(d) for _ in range(2))
        self.norm = nn.LayerNorm(d)
        self.head = nn.Linear(d, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed["proj"](images).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x[:, 0]))
        return out


class BasicBlock(nn.Module):
    """Two convolutions around which the input is carried."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False, groups=groups)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.downsample(x) + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return out.relu()


class ResNet(nn.Module):
    """A residual network in the names that torchvision uses; with groups it is a ResNeXt, or depthwise."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, groups))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, groups))
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(images)).relu()))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


def hugging_face(name: str, config: str, **options: Any) -> nn.Module:
    """A model of random weights; nothing is read from disk or network."""
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**options))
    return model


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return hugging_face("GPT2LMHeadModel", "GPT2Config", **sizes, bos_token_id=0, eos_token_id=1)


def llama(**options: Any) -> nn.Module:
    return hugging_face("LlamaForCausalLM", "LlamaConfig", **LANGUAGE, **options)


def qwen2_moe() -> nn.Module:
    return hugging_face("Qwen2MoeForCausalLM", "Qwen2MoeConfig", **EXPERTS, shared_expert_intermediate_size=8)


def qwen3_moe() -> nn.Module:
    return hugging_face("Qwen3MoeForCausalLM", "Qwen3MoeConfig", **EXPERTS, head_dim=4)


def vit() -> nn.Module:
    return hugging_face("ViTForImageClassification", "ViTConfig", **VISION)


def resnet() -> nn.Module:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return hugging_face("ResNetForImageClassification", "ResNetConfig", **sizes)


def in_blocks(prefix: str, *names: str) -> set[str]:
    return {f"{prefix}.{i}.{name}" for i in range(2) for name in names}


ATTENTION = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
SWIGLU = ["gate_proj.weight", "up_proj.weight", "down_proj.weight"]
MODELS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "gpt2": (
        gpt2,
        in_blocks("transformer.h", "attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    ),
    "llama": (llama, in_blocks("model.layers", *ATTENTION, *(f"mlp.{name}" for name in SWIGLU))),
    "qwen2_moe": (
        qwen2_moe,
        in_blocks(
            "model.layers",
            *ATTENTION,
            "mlp.experts.gate_up_proj",
            "mlp.experts.down_proj",
            *(f"mlp.shared_expert.{name}" for name in SWIGLU),
        ),
    ),
    "qwen3_moe": (
        qwen3_moe,
        in_blocks("model.layers", *ATTENTION, "mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
    "vit": (
        vit,
        {"vit.embeddings.patch_embeddings.projection.weight"}
        | in_blocks("vit.layers", *(f"attention.{name}_proj.weight" for name in "qkvo"))
        | in_blocks("vit.layers", "mlp.fc1.weight", "mlp.fc2.weight"),
    ),
    "resnet": (
        resnet,
        {
            "resnet.embedder.embedder.convolution.weight",
            "resnet.encoder.stages.1.layers.0.shortcut.convolution.weight",
            *in_blocks("resnet.encoder.stages.0.layers.0.layer", "convolution.weight"),
            *in_blocks("resnet.encoder.stages.1.layers.0.layer", "convolution.weight"),
        },
    ),
    "plain_vit": (
        VisionTransformer,
        {"patch_embed.proj.weight"}
        | in_blocks("blocks", "attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"),
    ),
    "plain_resnet": (
        ResNet,
        {"conv1.weight"} | {f"layer{i}.0.{name}.weight" for i in (1, 2) for name in ("conv1", "conv2", "downsample.0")},
    ),
}


def names_of(groups: list[dict[str, Any]], algorithm: str) -> set[str]:
    return {name for group in groups if group["algorithm"] == algorithm for name, _ in group["params"]}


def layout_of(groups: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (group,) = [group for group in groups if name in dict(group["params"])]
    return {key: group[key] for key in ("batch_ndim", "split_sizes", "num_heads") if key in group}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_split(kind: str) -> None:
    """ROOT gets the inner matrices and kernels by name; all the rest, each parameter once, goes to AdamW."""
    make, expected = MODELS[kind]
    model = make()
    groups = param_groups(model)
    assert names_of(groups, "root") == expected
    assert names_of(groups, "adamw") == {name for name, _ in model.named_parameters()} - expected
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_experts_are_stacks_of_matrices() -> None:
    """The experts of each layer are orthogonalized one by one, and the router is left to AdamW."""
    for groups in (param_groups(qwen2_moe()), param_groups(qwen3_moe())):
        for name in in_blocks("model.layers", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
            assert layout_of(groups, name) == {"batch_ndim": 1}
        assert layout_of(groups, "model.layers.0.self_attn.q_proj.weight") == {}
        assert "model.layers.0.mlp.gate.weight" in names_of(groups, "adamw")


def test_fused_projections_are_split_where_their_order_is_known() -> None:
    """Linear Q, K and V are split by row; GPT-2's, fused by column, and interleaved ones are left whole."""
    assert layout_of(param_groups(VisionTransformer()), "blocks.0.attn.qkv.weight") == {"split_sizes": (16, 16, 16)}
    assert layout_of(param_groups(VisionTransformer(), split_qkv=False), "blocks.0.attn.qkv.weight") == {}
    assert layout_of(param_groups(gpt2()), "transformer.h.0.attn.c_attn.weight") == {}
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    neox = hugging_face("GPTNeoXForCausalLM", "GPTNeoXConfig", **sizes, num_hidden_layers=1)
    assert layout_of(param_groups(neox), "gpt_neox.layers.0.attention.query_key_value.weight") == {}
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
    options = {"multi_query": False, "bos_token_id": 0, "eos_token_id": 1}
    bigcode = hugging_face("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **sizes, **options)
    assert dict(bigcode.named_parameters())["transformer.h.0.attn.c_attn.weight"].shape == (48, 16)
    assert layout_of(param_groups(bigcode), "transformer.h.0.attn.c_attn.weight") == {}


def test_convolutions_in_groups_are_a_matrix_per_group() -> None:
    """A grouped kernel is cut into its groups; a depthwise one, whose groups are single rows, goes to AdamW."""
    groups = param_groups(ResNet(groups=2))
    assert layout_of(groups, "layer1.0.conv2.weight") == layout_of(groups, "layer2.0.conv2.weight") == {"num_heads": 2}
    assert layout_of(groups, "layer1.0.conv1.weight") == {}
    groups = param_groups(ResNet(groups=8))
    assert "layer1.0.conv2.weight" in names_of(groups, "adamw")
    assert layout_of(groups, "layer2.0.conv2.weight") == {"num_heads": 8}


def test_tied_embeddings_are_the_heads_too() -> None:
    """Where tokens are tied to the head, neither is ROOT's, and the shared weight is in one group once."""
    assert "lm_head.weight" in names_of(param_groups(llama()), "adamw")
    groups = param_groups(llama(tie_word_embeddings=True))
    assert "model.embed_tokens.weight" in names_of(groups, "adamw")
    assert "lm_head.weight" not in names_of(groups, "adamw") | names_of(groups, "root")


def test_sequence_classifiers_have_a_head() -> None:
    """A classifier on a language model is its head, by the several names that there are."""
    llama_ = hugging_face("LlamaForSequenceClassification", "LlamaConfig", **LANGUAGE)
    assert "score.weight" in names_of(param_groups(llama_), "adamw")
    sizes = {key: LANGUAGE[key] for key in list(LANGUAGE)[:5]}
    bert = hugging_face("BertForSequenceClassification", "BertConfig", **sizes)
    assert "classifier.weight" in names_of(param_groups(bert), "adamw")
    assert names_of(param_groups(bert), "root") == {"bert.pooler.dense.weight"} | in_blocks(
        "bert.encoder.layer",
        *(f"attention.self.{name}.weight" for name in ("query", "key", "value")),
        "attention.output.dense.weight",
        "intermediate.dense.weight",
        "output.dense.weight",
    )
    roberta = hugging_face("RobertaForSequenceClassification", "RobertaConfig", **sizes)
    assert "classifier.out_proj.weight" in names_of(param_groups(roberta), "adamw")
    assert "classifier.dense.weight" in names_of(param_groups(roberta), "root")


def loss_of(model: nn.Module) -> Tensor:
    """The loss on four random samples of the model's kind."""
    generator = torch.Generator().manual_seed(0)
    if isinstance(model, VisionTransformer | ResNet):
        images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 1, 0])
        return nn.functional.cross_entropy(model(images), labels)
    if getattr(model, "main_input_name", None) == "pixel_values":
        images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 1, 0])
        loss: Tensor = model(pixel_values=images, labels=labels).loss
        return loss
    tokens = torch.randint(0, 50, (4, 12), generator=generator)
    loss = model(input_ids=tokens, labels=tokens).loss
    return loss


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_trains(kind: str) -> None:
    """ROOT takes the groups as they are, changes every parameter that has a gradient, and lowers the loss."""
    torch.manual_seed(0)
    model = MODELS[kind][0]().train()
    optimizer = ROOT(ROOT.param_groups(model), lr=3e-3)
    losses = []
    for step in range(3):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.step()
        losses.append(loss.item())
        if step == 0:
            for old, (name, parameter) in zip(before, model.named_parameters(), strict=True):
                moves = parameter.grad is not None and bool(parameter.grad.any())
                assert torch.equal(old, parameter.detach()) != moves, name
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", [qwen3_moe, VisionTransformer, lambda: ResNet(groups=2)])
def test_a_step_is_that_of_the_pieces(make: Callable[[], nn.Module]) -> None:
    """Stacked, fused and grouped weights step as if each of their matrices were a parameter of its own."""
    torch.manual_seed(0)
    model = make()
    loss_of(model).backward()
    groups = [g for g in param_groups(model) if g["algorithm"] == "root" and Layout.of(g) != Layout()]
    assert groups
    apart: list[tuple[nn.Parameter, Layout, list[nn.Parameter]]] = []
    for group in groups:
        for _, parameter in group["params"]:
            matrices = [nn.Parameter(piece.clone()) for piece in pieces(parameter.detach(), Layout.of(group))]
            for matrix, grad in zip(matrices, pieces(parameter.grad, Layout.of(group)), strict=True):
                matrix.grad = grad.clone()
            apart.append((parameter, Layout.of(group), matrices))
    options: dict[str, Any] = {"lr": 0.1, "ns_coefficients": "robust"}
    ROOT(groups, **options).step()
    ROOT([matrix for _, _, matrices in apart for matrix in matrices], **options).step()
    for parameter, layout, matrices in apart:
        for found, expected in zip(pieces(parameter.detach(), layout), matrices, strict=True):
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
