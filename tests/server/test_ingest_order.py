"""Recordings over HTTP in any order of messages and with restarts, compared with a plain dictionary."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from root_dash.records import Frame
from root_dash.store import Store
from root_dash.wire import End
from tests.server.test_ingest import Server, problem
from tests.store.read.test_frames import same_frames, trained


class Ingesting(RuleBasedStateMachine):
    """A trainer and a server that restarts. Whatever is sent, in any order, is stored once, as it came first."""

    folder: Path
    count = 0

    @initialize()
    def set_up(self) -> None:
        """Begin with an empty database."""
        Ingesting.count += 1
        path = self.folder / f"{Ingesting.count}.db"
        Store.create(path).close()
        self.server = Server(path)
        self.model: dict[int, Frame] = {}
        self.begun = self.ended = False

    @rule()
    def begin(self) -> None:
        """Begin the attempt, for the first time or again."""
        assert self.server.begin().status_code == 200
        self.begun = True

    @rule(seqs=st.lists(st.integers(0, 6), min_size=1, max_size=4))
    def append(self, seqs: list[int]) -> None:
        """Send frames in any order, some of them again."""
        response = self.server.append([trained(seq, ["scalars"]) for seq in seqs])
        if not self.begun and not self.ended:
            problem(response, 404)
        elif self.ended:
            new = max(seqs) > max(self.model, default=-1)
            assert response.status_code == (409 if new else 200)
        else:
            assert response.status_code == 200
            for seq in seqs:
                self.model.setdefault(seq, trained(seq, ["scalars"]))
            assert response.json()["last_seq"] == max(self.model)

    @precondition(lambda self: self.model and self.begun and not self.ended)
    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        """Send another frame under a number that is taken."""
        seq = data.draw(st.sampled_from(sorted(self.model)))
        problem(self.server.append([replace(trained(seq, ["scalars"]), time=0.0)]), 409)

    @precondition(lambda self: self.begun and not self.ended)
    @rule(missing=st.booleans())
    def end(self, missing: bool) -> None:
        """End the attempt, or try to end it before the last frame has arrived."""
        last = max(self.model, default=-1) + missing
        response = self.server.end(End(1.8e9, 0, last if last >= 0 else None))
        assert response.status_code == (412 if missing else 200)
        self.ended = not missing

    @rule()
    def restart(self) -> None:
        """Stop the server and start it again."""
        self.server.stop()
        self.server.start()
        self.begun = False

    @invariant()
    def stored(self) -> None:
        """The database holds what the model holds."""
        runs = self.server.store.runs()
        found = {frame.seq: frame for frame in self.server.frames()} if runs else {}
        assert found.keys() == self.model.keys()
        assert all(same_frames(found[seq], frame) for seq, frame in self.model.items())
        assert not runs or runs[0].frames == len(self.model)

    def teardown(self) -> None:
        """Stop the server."""
        self.server.stop()


def test_any_order_of_messages_stores_each_frame_once(tmp_path: Path) -> None:
    """Messages that are sent again, reordered and changed, across restarts, leave what a dictionary would hold."""
    Ingesting.folder = tmp_path
    run_state_machine_as_test(
        Ingesting,
        settings=settings(max_examples=15, stateful_step_count=12, suppress_health_check=list(HealthCheck)),
    )
