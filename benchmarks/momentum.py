"""Measure the distance of updates from the polar factor while the demo trains: benchmarks/momentum.py [--steps 1000]

The tiny preset is trained under ROOT with its defaults and coefficients that are fitted online. At the first and every
20th step the benchmark measures ROOT's update of each base, and the updates of other methods on the same base, run as
their users run them: torch.optim.Muon's own function, and the paper's set and Polar Express in bfloat16, all divided by
the Frobenius norm. The reference is the polar factor on the base's range by an SVD in float64. The JSON beside this
file gets the mean polar error per kind of layer, the error in exact arithmetic, and the largest singular value of all
updates of the run.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from typing import Any

import torch
from timing import environment, write_json
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz

from root_dash.coefficients.spectra import polar_error
from root_dash.coefficients.tables import MUON, Coefficients, resolve
from root_dash.demo.model import GPT
from root_dash.demo.text import standard_library
from root_dash.demo.train import PRESETS, build_optimizers, train
from root_dash.optim import ROOT
from root_dash.optim.calibration.online import Change
from root_dash.optim.newton_schulz.orthogonalize import newton_schulz
from root_dash.optim.observation import Observation

EVERY = 20
STEPS = 5
OTHERS = ("muon", "paper", "polar_express")
CPU = torch.device("cpu")

Errors = dict[str, dict[str, list[float]]]


class Watcher:
    """An observer that keeps errors by kind of layer and contender, changes of sets, and the largest σ."""

    def __init__(self, model: GPT) -> None:
        self.kinds = {p: name.split(".")[-2] for name, p in model.named_parameters()}
        self.measured: Errors = defaultdict(lambda: defaultdict(list))
        self.exact: Errors = defaultdict(lambda: defaultdict(list))
        self.largest = 0.0
        self.changes: list[Change] = []
        self.step = 1

    def __call__(self, seen: Observation) -> None:
        if seen.algorithm != "root":
            return
        self.largest = max(self.largest, float(torch.linalg.matrix_norm(seen.update.float(), 2).max()))
        if self.step != 1 and self.step % EVERY:
            return
        bases = seen.momentum if seen.base is None else seen.base
        for parameter, base, update in zip(seen.parameters, bases.clone(), seen.update, strict=True):
            kind = self.kinds[parameter]
            u, sigma, v = torch.linalg.svd(base.double(), full_matrices=False)
            alive = sigma > sigma[0] * max(base.shape) * torch.finfo(torch.float32).eps
            factor = u[:, alive] @ v[alive]
            self.measured[kind]["ours"].append(distance(update, factor))
            for name in OTHERS:
                triples = resolve(name, STEPS, (min(base.shape), max(base.shape)))
                self.measured[kind][name].append(distance(other(name, base, triples), factor))
                self.exact[kind][name].append(polar_error(triples, sigma[alive].numpy(), "frobenius"))


def distance(update: Tensor, factor: Tensor) -> float:
    """Return ‖X − UVᵀ‖_F / ‖UVᵀ‖_F."""
    return float((update.double() - factor).norm() / factor.norm())


def other(name: str, base: Tensor, triples: tuple[Coefficients, ...]) -> Tensor:
    """Return another method's update of a base."""
    if name == "muon":
        return _zeropower_via_newtonschulz(base, MUON, STEPS, 1e-7)
    return newton_schulz(base, triples, normalization="frobenius", dtype=torch.bfloat16).update


def measure(steps: int) -> dict[str, Any]:
    """Train, and return the results."""
    torch.manual_seed(0)
    preset = PRESETS["tiny"]
    model = GPT(preset.shape)
    (optimizer,) = build_optimizers(model, "root", preset)
    assert isinstance(optimizer, ROOT)
    watcher = Watcher(model)
    optimizer.register_observer(watcher)
    optimizer.register_change_observer(watcher.changes.append)
    for state in train(model, [optimizer], standard_library(), preset, steps, lambda **_: None, CPU):
        watcher.step = state.step + 1
        if state.step % 100 == 0:
            print(f"step {state.step}: loss {state.loss:.3f}, largest σ so far {watcher.largest:.4f}", flush=True)
    means = {
        f"{label}": {kind: {name: math.fsum(v) / len(v) for name, v in by.items()} for kind, by in errors.items()}
        for label, errors in (("polar_error", watcher.measured), ("polar_error_in_exact_arithmetic", watcher.exact))
    }
    changes = [{"step": c.step, "shape": c.shape, "from": c.error_before, "to": c.error_after} for c in watcher.changes]
    return {"steps": steps, **means, "largest_singular_value": watcher.largest, "changes": changes}


def print_table(results: dict[str, Any]) -> None:
    """Print the errors by contender and kind of layer, and the ratio of ours to Muon's."""
    errors = results["polar_error"]
    print(f"\n{'mean polar error':<18}" + "".join(f"{kind:>9}" for kind in errors))
    for name in ("ours", *OTHERS):
        print(f"{name:<18}" + "".join(f"{by[name]:>9.4f}" for by in errors.values()))
    print(f"{'ours / muon':<18}" + "".join(f"{by['ours'] / by['muon']:>9.3f}" for by in errors.values()))
    print(f"largest σ of all updates: {results['largest_singular_value']:.4f}")
    for change in results["changes"]:
        print(
            f"new coefficients for {change['shape']} at step {change['step']}: "
            f"{change['from']:.4f} -> {change['to']:.2g}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=PRESETS["tiny"].steps)
    arguments = parser.parse_args()
    results = measure(arguments.steps)
    print_table(results)
    print("written to", write_json(__file__, "tiny", {"environment": environment(CPU), **results}))


if __name__ == "__main__":
    main()
