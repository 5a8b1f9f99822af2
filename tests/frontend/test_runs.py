"""The list of runs: what each does, and the worst that was found in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from root_dash.frontend.runs import Runs, found, state
from root_dash.records import Run
from root_dash.records.verdict import Severity, Verdict
from root_dash.store import Store
from tests.store.frames import make_frame, make_layers

RUN = Run("run-1", "a run", 1000.0)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (RUN, "waiting"),
        (replace(RUN, started_at=100.0), "quiet"),
        (replace(RUN, last_time=1005.0), "live"),
        (replace(RUN, last_time=900.0), "quiet"),
        (replace(RUN, last_time=1005.0, ended_at=1006.0), "ended"),
    ],
)
def test_a_run_is_live_while_frames_come(run: Run, expected: str) -> None:
    """A run that was killed never ends, and is quiet after a while."""
    assert state(run, 1010.0) == expected


def verdict(number: int, severity: Severity, since: int, under: int | None = None) -> Verdict:
    """A finding of a layer."""
    return Verdict(number, 0, "dead-layer", severity, since, "dead", under=under)


def test_the_worst_finding_counts_and_what_follows_from_another_does_not() -> None:
    """The onset is of the first finding of the worst severity."""
    assert found([]) == ("", "")
    many = [verdict(1, "warning", 50), verdict(2, "critical", 90), verdict(3, "critical", 80), verdict(4, "note", 9, 1)]
    assert found(many) == ("critical", "3 findings, worst since step 80")
    assert found(many[:1]) == ("warning", "1 finding since step 50")
    ended = [replace(one, until=99) for one in many]
    assert found(ended) == ("", "3 earlier findings")


def test_the_options_tell_runs_apart_and_follow_what_is_logged(tmp_path: Path) -> None:
    """Two runs of one name have their numbers; the last loss and step are those of the last frame."""
    layers, rng = make_layers(1), np.random.default_rng(0)
    with Store.create(tmp_path / "a.db") as store:
        listed, writers = Runs(store, clock=lambda: 1010.0), []
        for at in (1, 2):
            writers.append(store.begin(replace(RUN, uid=f"run-{at}"), layers))
        for seq, scalars in enumerate(({"train/Loss": 2.0, "lr": 0.1}, {"train/Loss": float("nan")}, {"loss": 3.25})):
            writers[0].append(replace(make_frame(seq, seq + 10, layers, rng), scalars=scalars))
            options = {option["label"]: option for option in listed.options(store.runs())}
            assert options["a run · run 2"]["step"] == "–"
            assert (options["a run · run 1"]["step"], options["a run · run 1"]["loss"]) == (
                f"{seq + 10}",
                ("2", "NaN", "3.25")[seq],
            )
        assert store.last_scalars(1)["lr"] == 0.1
