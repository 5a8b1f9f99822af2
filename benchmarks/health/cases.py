"""The trainings of the benchmark of diagnosis, in an order in which any beginning is a fair share of all of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from benchmarks.health.families import FAMILIES
from root_dash.demo.sick import FAULTS, PaperSquareSet, SlowDrift

OPTIMIZERS = ("root", "muon", "adamw", "sgd")
SCENARIOS = (
    "constant", "warmup-cosine", "warmup-stable-decay", "step-decay", "restarts", "clipping", "dropout",
    "growing-batch", "small-batch", "accumulating", "freezing", "fine-tuning", "resuming",
)  # fmt: skip
SICK_SCENARIOS = ("constant", "warmup-cosine", "dropout", "clipping", "step-decay", "restarts")
SICK_FAMILIES = ("mlp", "gpt", "conv", "rnn", "experts", "regression", "recommender", "contrast")


@dataclass(frozen=True, slots=True)
class Case:
    """One training. `fault` is "" in a healthy one; `split` names the question that it answers."""

    family: str
    optimizer: str
    scenario: str
    fault: str
    seed: int
    steps: int
    split: str
    twin: bool = False
    """Whether the fault never begins: all else is as in the sick training of the same fields."""

    @property
    def name(self) -> str:
        """The case as a file name."""
        parts = (self.split, self.family, self.optimizer, self.scenario, self.fault or "healthy", str(self.seed))
        return "_".join(parts) + self.twin * "_twin"

    @property
    def onsets(self) -> tuple[int, int]:
        """The range of first sick steps, of which one is drawn."""
        return 180, 270


def healthy(split: str, seed: int, repeats: int) -> list[Case]:
    """Return healthy trainings: each family under each optimizer, `repeats` times, in a scenario each."""
    found = []
    for repeat in range(repeats):
        for row, family in enumerate(FAMILIES):
            for column, optimizer in enumerate(OPTIMIZERS):
                scenario = SCENARIOS[(3 * row + 5 * column + 7 * repeat + seed) % len(SCENARIOS)]
                number = seed + 100 * repeat + 10 * column
                found.append(Case(family, optimizer, scenario, "", number, 900 if repeat % 3 == 2 else 700, split))
    random.Random(seed).shuffle(found)  # noqa: S311  # an order, no secret
    return found


def sick(split: str, seed: int, repeats: int) -> list[Case]:
    """Return sick trainings: each fault in `repeats` of the families and optimizers that can have it."""
    found = []
    for row, fault in enumerate(FAULTS):
        able = OPTIMIZERS[:2] if fault == PaperSquareSet.name else OPTIMIZERS
        pairs = [(family, optimizer) for family in SICK_FAMILIES for optimizer in able]
        random.Random(f"{seed} {fault}").shuffle(pairs)  # noqa: S311
        for repeat in range(repeats):
            family, optimizer = pairs[repeat % len(pairs)]
            scenario = SICK_SCENARIOS[(row + repeat) % len(SICK_SCENARIOS)]
            drifts = fault == SlowDrift.name
            case = Case(family, optimizer, scenario, fault, seed + 50 + repeat, 560 if drifts else 340, split)
            found += [case, replace(case, twin=True)] if drifts else [case]
    random.Random(seed).shuffle(found)  # noqa: S311
    return found
