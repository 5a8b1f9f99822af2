"""What happens to a run beside its numbers: a new coefficient set is told, at its step."""

from __future__ import annotations

from pathlib import Path

import root_dash
from root_dash.optim.calibration.online import Change
from root_dash.optim.root import ROOT
from tests.monitor.training import Model, train


def test_a_new_coefficient_set_is_an_event(tmp_path: Path) -> None:
    """Every change that a calibration makes is stored with its step, its shape, and what it gains."""
    model = Model()
    optimizer = ROOT(ROOT.param_groups(model), lr=1e-2, calibrate_every=2)
    changes: list[Change] = []
    optimizer.register_change_observer(changes.append)
    path = tmp_path / "run.db"
    with root_dash.watch(model, optimizer, db=path) as run:
        train(model, [optimizer], 12, run.log)
    assert changes
    with root_dash.open(path) as store:
        events = store.events(store.runs()[0].id)
    assert [(event.kind, event.step) for event in events] == [("coefficients", change.step) for change in changes]
    for event, change in zip(events, changes, strict=True):
        assert "{} x {}".format(*change.shape) in event.text
        assert f"{change.error_after:.3g}" in event.text
