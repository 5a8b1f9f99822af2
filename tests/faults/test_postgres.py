"""A trainer that records to a PostgreSQL server: it is killed, or the server is."""

from __future__ import annotations

import pytest

import root_dash
from root_dash.monitor.limits.cadence import Cadence
from root_dash.store import examine
from tests.faults.test_kill import are_whole, killed
from tests.monitor.training import Model, root, step
from tests.postgresql import Server
from tests.waiting import until

pytestmark = pytest.mark.heavy


def test_kill_9_of_the_trainer_leaves_whole_frames(database: str) -> None:
    """Trainers that are killed at random moments leave no part of a frame, and miss what was on its way alone."""
    are_whole(database, killed(database, 2))


@pytest.mark.parametrize("crash", [False, True])
def test_a_server_that_goes_costs_no_frame(
    crash: bool, database: str, postgres: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Frames of the time without a server wait, and are stored when it is back; training goes on meanwhile."""
    model = Model()
    optimizers = root(model)
    with root_dash.watch(model, optimizers, db=database, cadence=Cadence(1, 2, 2, 2, 2), max_overhead=1e9) as run:
        for index in range(5):
            step(model, optimizers, index)
        (postgres.kill if crash else postgres.stop)()
        try:
            for index in range(5, 15):
                step(model, optimizers, index)
        finally:
            postgres.start()
        for index in range(15, 20):
            step(model, optimizers, index)
        until(lambda: run.pending <= 1)
    assert run.lost == 0
    assert "se%2Fcret" not in capsys.readouterr().err
    with root_dash.open(database) as store:
        assert [frame.step for frame in store.frames(1)] == list(range(1, 21))
    assert [found.level for found in examine(database) if found.what.startswith("run")] == ["ok"]
