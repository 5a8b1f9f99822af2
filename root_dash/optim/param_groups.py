"""Which of a model's parameters ROOT takes, as which matrices, and which AdamW takes.

Orthogonalizing suits matrices that map activations to activations. A row of an embedding, of the output head or of a
router is the vector of one token, class or expert and is hit by few of a batch's gradients; biases, gains and other
vectors are no matrices at all. Kernels are flattened, those of the first layer too: every sample uses every pixel.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from root_dash.checks import one_of
from root_dash.optim.matrices.layout import PLAIN, Layout
from root_dash.optim.options import ALGORITHMS, Algorithm

# What models call their output layer when neither tying nor its size tells; it is the last Linear of that name.
HEAD_NAMES = ("lm_head", "head", "heads", "head_dist", "classifier", "embed_out", "qa_outputs")
# Names that inner layers bear as well: heads only on the last Linear of all.
LAST_HEAD_NAMES = ("fc", "output", "score")
# Parts of the names of parameters whose rows are looked up, added or used element by element.
TABLE_NAMES = ("emb", "position", "pos_", "_pos", "token", "bias", "codebook", "a_log")
# Linear layers of 3 d outputs, known to be all of Q, then all of K, then all of V. Not among them: `query_key_value`,
# `qkv_proj` and `in_proj`, which in GPT-NeoX, Bloom, CodeGen and DeBERTa take turns from head to head.
QKV_NAMES = ("qkv", "to_qkv", "Wqkv", "c_attn")

Override: TypeAlias = Algorithm | Mapping[str, Any]
"""An algorithm, or options for a group of its own, among them `algorithm` and the layout."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Who steps a parameter, how, and why. `algorithm` is None for a frozen parameter, which nobody steps."""

    names: tuple[str, ...]
    """Several where modules share the parameter; the first is its name in `model.named_parameters()`."""
    parameter: Tensor
    algorithm: Algorithm | None
    reason: str
    layout: Layout = PLAIN
    """The matrices that the parameter consists of; plain for AdamW."""
    override: str | None = None
    """The glob that decided, where one did."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What it sets beside algorithm and layout."""


def param_groups(
    model: nn.Module,
    *,
    root: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    split_qkv: bool = True,
    overrides: Mapping[str, Override] | None = None,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Groups for `ROOT(...)`: matrices and convolution kernels under ROOT, all else under AdamW, frozen ones left out.

    Parameters carry their names. Those of one layout (`batch_ndim`, `split_sizes`, `num_heads`) are one group.

    Args:
        model: the model.
        root: options of the groups under ROOT.
        adamw: options of those under AdamW, as in `adamw={"lr": 3e-4}`.
        split_qkv: orthogonalize Q, K and V apart where a fused weight is known to have them one after the other:
            `nn.MultiheadAttention` of one width, and Linear layers of `QKV_NAMES` with three times as many outputs as
            inputs. Other fused weights are left whole: name their layout in `overrides`.
        overrides: by globs over names, of which the first that matches counts, what to decide instead: `"root"`,
            `"adamw"`, or a mapping of options, as in `{"*.q_proj.weight": {"num_heads": 12}}`.
        verbose: print `describe(model)`.

    Raises:
        ValueError: a glob that matches no parameter, or a layout that a parameter does not have.
    """
    decisions = decide(model, split_qkv=split_qkv, overrides=overrides)
    if verbose:
        sys.stdout.write(_table(decisions) + "\n")
    options: dict[Algorithm, Mapping[str, Any]] = {"root": root or {}, "adamw": adamw or {}}
    groups: dict[tuple[Algorithm, Layout, str | None], dict[str, Any]] = {}
    for algorithm, common in options.items():
        for d in decisions:
            if d.algorithm == algorithm:
                # A glob that says no more than "root" or "adamw" needs no group of its own.
                key = (algorithm, d.layout, d.override if d.options else None)
                new = {"params": [], "algorithm": algorithm, **common, **d.layout.options(), **d.options}
                groups.setdefault(key, new)["params"].append((d.names[0], d.parameter))
    return list(groups.values())


def describe(model: nn.Module, *, split_qkv: bool = True, overrides: Mapping[str, Override] | None = None) -> str:
    """What `param_groups` decides for each parameter, and why: one line each."""
    return _table(decide(model, split_qkv=split_qkv, overrides=overrides))


def decide(
    model: nn.Module, *, split_qkv: bool = True, overrides: Mapping[str, Override] | None = None
) -> list[Decision]:
    """One decision per parameter, in the model's order; a shared parameter is one.

    Raises:
        ValueError: a glob that matches no parameter, or a layout that a parameter does not have.
    """
    uses: dict[Tensor, list[_Use]] = {}
    for path, module in model.named_modules():
        parent = model.get_submodule(path.rpartition(".")[0])
        for attribute, parameter in module.named_parameters(recurse=False):
            uses.setdefault(parameter, []).append(_Use(path, attribute, module, parent))
    heads = _output_heads(model)
    decisions = [_decide(parameter, owned, heads, split_qkv) for parameter, owned in uses.items()]
    unmatched = set(overrides or {})
    for i, decision in enumerate(decisions):
        for glob, override in (overrides or {}).items():
            if any(fnmatchcase(name, glob) for name in decision.names):
                unmatched.discard(glob)
                decisions[i] = _overridden(decision, glob, override, uses[decision.parameter][0], split_qkv)
                break
    if unmatched:
        raise ValueError(f"overrides must match a parameter that none before them does, got {sorted(unmatched)!r}")
    return decisions


@dataclass(frozen=True, slots=True)
class _Use:
    """A module that has the parameter, where, and under which attribute."""

    path: str
    attribute: str
    module: nn.Module
    parent: nn.Module

    @property
    def name(self) -> str:
        return f"{self.path}.{self.attribute}" if self.path else self.attribute

    @property
    def kind(self) -> str:
        return type(self.module).__name__.lower()


def _decide(parameter: Tensor, uses: list[_Use], heads: Mapping[nn.Module, str], split_qkv: bool) -> Decision:
    names, use = tuple(use.name for use in uses), uses[0]
    if not parameter.requires_grad:
        return Decision(names, parameter, None, "frozen")
    if parameter.ndim < 2:
        return Decision(names, parameter, "adamw", "fewer than two dimensions")
    if any(isinstance(use.module, nn.Embedding | nn.EmbeddingBag) for use in uses):
        reason = "embedding" if len(uses) == 1 else f"embedding, tied as {', '.join(names[1:])}"
        return Decision(names, parameter, "adamw", reason)
    for use in uses:
        if use.module in heads:
            return Decision(names, parameter, "adamw", heads[use.module])
    if len(uses) > 1:
        return Decision(names, parameter, "adamw", f"shared, as {', '.join(names[1:])}")
    if reason := _other_than_a_map(use):
        return Decision(names, parameter, "adamw", reason)
    layout, reason = _layout(parameter.shape, use, split_qkv)
    if any(min(shape) == 1 for shape in layout.shapes(parameter.shape)[:1]):
        return Decision(names, parameter, "adamw", "a vector in the shape of a matrix")
    return Decision(names, parameter, "root", reason, layout)


def _other_than_a_map(use: _Use) -> str:
    """Why a parameter of two dimensions or more is no map of activations; empty if it is one."""
    module = use.module
    in_container = isinstance(module, nn.ParameterList | nn.ParameterDict)
    own_name = f"{use.path.rpartition('.')[2]}.{use.attribute}" if in_container else use.attribute
    found = [part for part in TABLE_NAMES if part in own_name.lower()]
    if found:
        return f"a table by its name, with {found[0]!r} in it"
    if "embedding" in use.kind and not isinstance(module, nn.Linear | _ConvNd):
        return "embedding, by its module"
    if isinstance(module, _ConvNd) and module.groups == module.in_channels > 1:
        return "depthwise: every row filters a channel of its own"
    named_gate = use.path.rpartition(".")[2] == "gate" and any("expert" in n for n, _ in use.parent.named_children())
    if "router" in use.path.lower() or "router" in use.kind or named_gate:
        return "router: a row per expert, as a head has one per class"
    return ""


def _layout(shape: torch.Size, use: _Use, split_qkv: bool) -> tuple[Layout, str]:
    """The matrices of a parameter of at least two dimensions, in words too."""
    module = use.module
    if isinstance(module, _ConvNd) and module.groups > 1:
        layout = Layout(num_heads=module.groups)
        return layout, "a matrix per group of the convolution, {} x {}".format(*layout.shapes(shape)[0])
    if not isinstance(module, _ConvNd) and len(shape) > 2 and _of_experts(use):
        layout = Layout(batch_ndim=len(shape) - 2)
        return layout, "a matrix per expert, {} x {}".format(*shape[-2:])
    if split_qkv and shape[0] == 3 * shape[1] and len(shape) == 2 and _is_qkv(use):
        return Layout(split_sizes=(shape[1],) * 3), "Q, K and V fused, split"
    if len(shape) == 2:
        return PLAIN, "matrix"
    return PLAIN, "flattened to {} x {}".format(*PLAIN.shapes(shape)[0])


def _of_experts(use: _Use) -> bool:
    return "expert" in use.kind or any(part in use.name.lower() for part in ("expert", "moe"))


def _is_qkv(use: _Use) -> bool:
    """Whether a (3 d, d) weight is known to be Q, K and V one after the other."""
    if isinstance(use.module, nn.MultiheadAttention):
        return use.attribute == "in_proj_weight"
    # GPT-BigCode, known by its switch for multi-query attention, has another order in its c_attn.
    named = use.path.rpartition(".")[2] in QKV_NAMES and not hasattr(use.parent, "multi_query")
    return named and isinstance(use.module, nn.Linear)


def _output_heads(model: nn.Module) -> dict[nn.Module, str]:
    """The output layers, and how each was recognized: by its name, else by having an output per token."""
    # An adapter beside the head is not the head.
    linears = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear) and "lora_" not in p]
    last = linears[-1][1] if linears else None
    named: dict[str, nn.Module] = {}
    for path, linear in linears:
        for prefix, part in _unnumbered(path):
            if part in HEAD_NAMES or (part in LAST_HEAD_NAMES and linear is last):
                named[prefix] = linear  # the last one of several
                break
    if named:
        return dict.fromkeys(named.values(), "output head, by its name")
    embeddings = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    weights = {embedding.weight for _, embedding in embeddings}
    if any(linear.weight in weights for _, linear in linears):
        return {}  # it is tied, and goes with the embedding
    for path, linear in reversed(linears):
        if linear is not last and any(part.isdigit() for part in path.split(".")):
            continue
        for name, embedding in embeddings:
            # A square table tells nothing: many inner layers are square.
            size = (embedding.num_embeddings, embedding.embedding_dim)
            if (linear.out_features, linear.in_features) == size and size[0] != size[1]:
                return {linear: f"output head, one output per entry of {name}"}
    return {}


def _unnumbered(path: str) -> Iterator[tuple[str, str]]:
    """The parts of a module's path, each with the path up to it, as far as there is no number.

    In a numbered block "output" is the projection of an attention or an MLP, not the head.
    """
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return
        yield ".".join(parts[: i + 1]), part


def _overridden(decision: Decision, glob: str, override: Override, use: _Use, split_qkv: bool) -> Decision:
    """The decision as the user wants it. Frozen parameters stay so."""
    if not isinstance(override, str | Mapping):
        raise TypeError(f"overrides must be names of algorithms, or mappings of options, got {override!r} for {glob!r}")
    wanted = {"algorithm": override} if isinstance(override, str) else dict(override)
    algorithm = wanted.pop("algorithm", decision.algorithm)
    if algorithm is not None:
        one_of("overrides", algorithm, ALGORITHMS, ", or options")
    if decision.algorithm is None or algorithm is None:
        return decision
    layout, shape = PLAIN, decision.parameter.shape
    given = {name: wanted.pop(name) for name in asdict(PLAIN) if name in wanted}
    if algorithm == "root":
        natural = _layout(shape, use, split_qkv)[0] if len(shape) >= 2 else PLAIN
        layout = Layout.of({**asdict(natural), **given})
        layout.check(shape, decision.names[0])
    elif given:
        raise ValueError(
            f"overrides must give {', '.join(given)} under ROOT only, got {glob!r} for {decision.names[0]}"
        )
    reason = f"overridden by {glob!r}"
    return replace(decision, algorithm=algorithm, reason=reason, layout=layout, override=glob, options=wanted)


def _table(decisions: list[Decision]) -> str:
    rows = [(d.names[0], "x".join(map(str, d.parameter.shape)), d.algorithm or "-", d.reason) for d in decisions]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )
