"""Which of a model's parameters ROOT takes, and which AdamW takes.

Orthogonalizing suits matrices that map activations to activations. A row of an embedding, or of the output head, is the
vector of one token and is hit by few of a batch's gradients; biases, gains and other vectors are no matrices at all.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from root_dash.optim.arguments import Algorithm
from root_dash.optim.batches import as_matrix

# What models call their output layer when neither tying nor its size tells.
HEAD_NAMES = ("lm_head", "head", "output", "classifier", "embed_out")


@dataclass(frozen=True, slots=True)
class Decision:
    """Who steps a parameter, and why. `algorithm` is None for a frozen parameter, which nobody steps."""

    names: tuple[str, ...]
    """Several where modules share the parameter; the first is its name in `model.named_parameters()`."""
    parameter: Tensor
    algorithm: Algorithm | None
    reason: str


def param_groups(
    model: nn.Module,
    *,
    root: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> list[dict[str, Any]]:
    """Groups for `ROOT(...)`: matrices and convolution kernels under ROOT, all else under AdamW, frozen ones left out.

    `root` and `adamw` are options of the two groups, as in `adamw={"lr": 3e-4}`. Parameters carry their names.
    `verbose` prints `describe(model)`.
    """
    decisions = decide(model)
    if verbose:
        sys.stdout.write(_table(decisions) + "\n")
    options: dict[Algorithm, Mapping[str, Any]] = {"root": root or {}, "adamw": adamw or {}}
    groups = []
    for algorithm, extra in options.items():
        params = [(d.names[0], d.parameter) for d in decisions if d.algorithm == algorithm]
        if params:
            groups.append({"params": params, "algorithm": algorithm, **extra})
    return groups


def describe(model: nn.Module) -> str:
    """What `param_groups` decides for each parameter, and why: one line each."""
    return _table(decide(model))


def decide(model: nn.Module) -> list[Decision]:
    """One decision per parameter, in the model's order; a shared parameter is one."""
    owners: dict[Tensor, list[tuple[str, nn.Module]]] = {}
    for path, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            owners.setdefault(parameter, []).append((f"{path}.{attribute}" if path else attribute, module))
    head, head_reason = _output_head(model)
    decisions = []
    for parameter, owned in owners.items():
        names = tuple(name for name, _ in owned)
        modules = [module for _, module in owned]
        algorithm: Algorithm | None = "adamw"
        rows, cols = as_matrix(parameter).shape
        if not parameter.requires_grad:
            algorithm, reason = None, "frozen"
        elif parameter.ndim < 2:
            reason = "fewer than two dimensions"
        elif any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in modules):
            reason = "embedding" if len(modules) == 1 else f"embedding, tied as {', '.join(names[1:])}"
        elif head is not None and head in modules:
            reason = head_reason
        elif len(modules) > 1:
            reason = f"shared, as {', '.join(names[1:])}"
        elif "emb" in names[0].rpartition(".")[2].lower():
            reason = "embedding by its name"
        elif min(rows, cols) == 1:
            reason = "a vector in the shape of a matrix"
        else:
            algorithm, reason = "root", "matrix" if parameter.ndim == 2 else f"flattened to {rows} x {cols}"
        decisions.append(Decision(names, parameter, algorithm, reason))
    return decisions


def _output_head(model: nn.Module) -> tuple[nn.Linear | None, str]:
    """The untied output layer, and how it was recognized: by its name, else by having an output per token."""
    embeddings = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    linears = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    weights = {embedding.weight for _, embedding in embeddings}
    if any(linear.weight in weights for _, linear in linears):
        return None, ""  # it is tied, and goes with the embedding
    for path, linear in reversed(linears):
        parts = path.split(".")
        # Not in a numbered block: there, "output" is the projection of an attention or an MLP.
        if parts[-1] in HEAD_NAMES and not any(part.isdigit() for part in parts):
            return linear, "output head, by its name"
    for _, linear in reversed(linears):
        for path, embedding in embeddings:
            if (linear.out_features, linear.in_features) == (embedding.num_embeddings, embedding.embedding_dim):
                return linear, f"output head, one output per entry of {path}"
    return None, ""


def _table(decisions: list[Decision]) -> str:
    rows = [(d.names[0], "x".join(map(str, d.parameter.shape)), d.algorithm or "-", d.reason) for d in decisions]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )
