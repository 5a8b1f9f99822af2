"""The split of a model's parameters: ROOT takes some, as one or more matrices each, and AdamW takes the rest.

Orthogonalization suits matrices that map activations to activations. A row of an embedding, of the output head or of a
router is the vector of one token, class or expert, and few samples of a batch give it a gradient. Biases, gains and
other vectors are not matrices. Convolution kernels are flattened, also in the first layer: every sample uses every
pixel.
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

# Names of output layers, for models whose head is neither tied nor known by its size: the last Linear of this name.
HEAD_NAMES = ("lm_head", "head", "heads", "head_dist", "classifier", "embed_out", "qa_outputs")
# Names that inner layers have too: only the last Linear of the model is a head by such a name.
LAST_HEAD_NAMES = ("fc", "output", "score")
# Parts of parameter names that mark tables: their rows are looked up, added or used element by element.
TABLE_NAMES = ("emb", "position", "pos_", "_pos", "token", "bias", "codebook", "a_log")
# Names of Linear layers with 3 d outputs: all of Q, then all of K, then all of V. `query_key_value`, `qkv_proj` and
# `in_proj` are not in the list, because in GPT-NeoX, Bloom, CodeGen and DeBERTa Q, K and V alternate from head to head.
QKV_NAMES = ("qkv", "to_qkv", "Wqkv", "c_attn")

Override: TypeAlias = Algorithm | Mapping[str, Any]
"""The name of an algorithm, or options for a group of its own, which may include `algorithm` and the layout."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on a parameter: algorithm, matrices and reason. A frozen parameter has no algorithm."""

    names: tuple[str, ...]
    """All names, if modules share the parameter. The first is its name in `model.named_parameters()`."""
    parameter: Tensor
    algorithm: Algorithm | None
    reason: str
    layout: Layout = PLAIN
    """The matrices of the parameter; plain for AdamW."""
    override: str | None = None
    """The deciding glob of `overrides`, or None."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of the override besides algorithm and layout."""


def param_groups(
    model: nn.Module,
    *,
    root: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    split_qkv: bool = True,
    overrides: Mapping[str, Override] | None = None,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Return groups for `ROOT(...)`: matrices and convolution kernels under ROOT, all other parameters under AdamW.

    Frozen parameters are left out. The parameters carry their names. Parameters of one layout (`batch_ndim`,
    `split_sizes`, `num_heads`) form one group.

    Args:
        model: the model.
        root: options of the groups under ROOT.
        adamw: options of the groups under AdamW, as in `adamw={"lr": 3e-4}`.
        split_qkv: orthogonalize Q, K and V apart if a fused weight is known to have them one after the other:
            `nn.MultiheadAttention` of one width, and Linear layers of `QKV_NAMES` with three times as many outputs as
            inputs. Other fused weights stay whole: name their layout in `overrides`.
        overrides: decisions by globs over names: `"root"`, `"adamw"`, or a mapping of options, as in
            `{"*.q_proj.weight": {"num_heads": 12}}`. The first glob that matches a parameter counts.
        verbose: print `describe(model)`.

    Raises:
        TypeError: an override that is neither a name nor a mapping.
        ValueError: a glob that matches no parameter, or a layout that does not fit a parameter.
    """
    decisions = decide(model, split_qkv=split_qkv, overrides=overrides)
    if verbose:
        sys.stdout.write(_table(decisions) + "\n")
    options: dict[Algorithm, Mapping[str, Any]] = {"root": root or {}, "adamw": adamw or {}}
    groups: dict[tuple[Algorithm, Layout, str | None], dict[str, Any]] = {}
    for algorithm, common in options.items():
        for d in decisions:
            if d.algorithm == algorithm:
                # A glob that sets only "root" or "adamw" needs no group of its own.
                key = (algorithm, d.layout, d.override if d.options else None)
                new = {"params": [], "algorithm": algorithm, **common, **d.layout.options(), **d.options}
                groups.setdefault(key, new)["params"].append((d.names[0], d.parameter))
    return list(groups.values())


def describe(model: nn.Module, *, split_qkv: bool = True, overrides: Mapping[str, Override] | None = None) -> str:
    """Return the decision of `param_groups` on each parameter, and its reason, as a line per parameter."""
    return _table(decide(model, split_qkv=split_qkv, overrides=overrides))


def decide(
    model: nn.Module, *, split_qkv: bool = True, overrides: Mapping[str, Override] | None = None
) -> list[Decision]:
    """Return one decision per parameter, also for a shared parameter, in the model's order.

    Raises:
        TypeError: an override that is neither a name nor a mapping.
        ValueError: a glob that matches no parameter, or a layout that does not fit a parameter.
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
        raise ValueError(f"overrides must match a parameter that no earlier glob matches, got {sorted(unmatched)!r}")
    return decisions


@dataclass(frozen=True, slots=True)
class _Use:
    """A module that has a parameter: its path, the attribute of the parameter, and the parent module."""

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
    """Return the reason why a parameter of two dimensions or more does not map activations, or an empty string."""
    module = use.module
    in_container = isinstance(module, nn.ParameterList | nn.ParameterDict)
    own_name = f"{use.path.rpartition('.')[2]}.{use.attribute}" if in_container else use.attribute
    found = [part for part in TABLE_NAMES if part in own_name.lower()]
    if found:
        return f"a table by its name, with {found[0]!r} in it"
    if "embedding" in use.kind and not isinstance(module, nn.Linear | _ConvNd):
        return "embedding, by its module"
    if isinstance(module, _ConvNd) and module.groups == module.in_channels > 1:
        return "depthwise: every row filters its own channel"
    named_gate = use.path.rpartition(".")[2] == "gate" and any("expert" in n for n, _ in use.parent.named_children())
    if "router" in use.path.lower() or "router" in use.kind or named_gate:
        return "router: a row per expert, as a head has one per class"
    return ""


def _layout(shape: torch.Size, use: _Use, split_qkv: bool) -> tuple[Layout, str]:
    """Return the layout of a parameter of at least two dimensions, and its description."""
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
    """Return whether a (3 d, d) weight is known to be Q, K and V one after the other."""
    if isinstance(use.module, nn.MultiheadAttention):
        return use.attribute == "in_proj_weight"
    # GPT-BigCode, recognized by its option for multi-query attention, has another order in its c_attn.
    named = use.path.rpartition(".")[2] in QKV_NAMES and not hasattr(use.parent, "multi_query")
    return named and isinstance(use.module, nn.Linear)


def _output_heads(model: nn.Module) -> dict[nn.Module, str]:
    """Return the output layers, and how each was recognized: by its name, else by an output per token."""
    # An adapter beside the head is not the head.
    linears = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Linear) and "lora_" not in p]
    last = linears[-1][1] if linears else None
    named: dict[str, nn.Module] = {}
    for path, linear in linears:
        for prefix, part in _unnumbered(path):
            if part in HEAD_NAMES or (part in LAST_HEAD_NAMES and linear is last):
                named[prefix] = linear  # if there are several, the last
                break
    if named:
        return dict.fromkeys(named.values(), "output head, by its name")
    embeddings = [(p, m) for p, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    weights = {embedding.weight for _, embedding in embeddings}
    if any(linear.weight in weights for _, linear in linears):
        return {}  # the head is tied, and belongs to the embedding
    for path, linear in reversed(linears):
        if linear is not last and any(part.isdigit() for part in path.split(".")):
            continue
        for name, embedding in embeddings:
            # The size of a square table proves nothing: many inner layers are square.
            size = (embedding.num_embeddings, embedding.embedding_dim)
            if (linear.out_features, linear.in_features) == size and size[0] != size[1]:
                return {linear: f"output head, one output per entry of {name}"}
    return {}


def _unnumbered(path: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a module's path up to the first number, each with the path to its end.

    In a numbered block "output" is the projection of an attention or an MLP, not the head.
    """
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return
        yield ".".join(parts[: i + 1]), part


def _overridden(decision: Decision, glob: str, override: Override, use: _Use, split_qkv: bool) -> Decision:
    """Return the decision with the user's override. Frozen parameters stay frozen."""
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
