"""Verdicts over HTTP: those that are stored, and those of runs that were recorded without diagnosis."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from root_dash.health import Health, replay
from root_dash.records import Frame
from root_dash.records.verdict import Changes
from root_dash.server.app import create_app
from root_dash.server.judging import Replays
from root_dash.server.responses import VerdictsJson
from root_dash.settings import Settings
from root_dash.store import Store
from tests.store.write.test_judging import FRAMES, LAYERS, RUN, append
from tests.waiting import until

PATH = "/api/v1/runs/1/verdicts"


def undiagnosed(path: Path, frames: int = len(FRAMES)) -> Path:
    """Record the run without a judge."""
    with Store.create(path) as store:
        recording = store.begin(RUN, LAYERS)
        for frame in FRAMES[:frames]:
            recording.append(frame)
    return path


@contextmanager
def asked(path: Path, **given: Any) -> Iterator[tuple[TestClient, Store]]:
    """Return a client of the API on a database; with `given`, runs are judged otherwise."""
    with Store.open(path) as store:
        app = create_app(Settings(token=None), store)
        if given:
            app.state.replays = Replays(store, threading.Event(), **given)
        yield TestClient(app, base_url="http://127.0.0.1:8050"), store


def test_stored_verdicts_are_answered_by_pages(tmp_path: Path) -> None:
    """With the numbers of their layers, and what they rest on."""
    verdicts = append(tmp_path / "x.db", FRAMES)
    with asked(tmp_path / "x.db") as (client, store):
        found = VerdictsJson.model_validate_json(client.get(PATH).content, strict=True)
        assert found.state == "stored"
        assert [one.text for one in found.verdicts] == [verdict.text for verdict in verdicts]
        first, expected = found.verdicts[0], verdicts[0]
        assert expected.layer is not None
        assert first.layer == store.layers(1)[expected.layer].id
        assert {name: (one.value, one.baseline) for name, one in first.evidence.items()} == dict(expected.evidence)
        page = client.get(f"{PATH}?after=1&limit=2").json()["verdicts"]
        assert [one["id"] for one in page] == [verdict.id for verdict in verdicts[1:3]]


def test_a_run_without_diagnosis_is_judged_when_it_is_asked_for(tmp_path: Path) -> None:
    """The first answer says that it is pending; later ones have the verdicts of a replay; the file stays as it was."""
    path = undiagnosed(tmp_path / "x.db")
    path.chmod(0o444)
    before = path.read_bytes()
    with asked(path) as (client, _):
        assert client.get(PATH).json()["state"] == "pending"
        until(lambda: client.get(PATH).json()["state"] == "replayed", "the replay")
        found = client.get(PATH).json()["verdicts"]
        assert [one["text"] for one in found] == [verdict.text for verdict in replay(LAYERS, FRAMES)]
    assert path.read_bytes() == before


def test_a_replay_goes_on_when_the_run_has_grown(tmp_path: Path) -> None:
    """Without judging again what was judged, and however few runs are kept."""
    path = undiagnosed(tmp_path / "x.db", 60)
    with asked(path, kept=1) as (client, _):
        until(lambda: client.get(PATH).json()["state"] == "replayed", "the replay")
        undiagnosed(path)  # a frame that is stored already stays: these are of another attempt
        assert client.get(PATH).json()["state"] == "pending"
        until(lambda: client.get(PATH).json()["state"] == "replayed", "the rest")
        found = client.get(PATH).json()["verdicts"]
        assert [one["text"] for one in found] == [one.text for one in replay(LAYERS, [*FRAMES[:60], *FRAMES])]


class Failing(Health):
    """A fold that fails at a step."""

    def update(self, frame: Frame) -> Changes:
        """Fail, or do as the fold does."""
        if frame.step == 80:
            raise RuntimeError("a mistake")
        return super().update(frame)


def test_a_diagnosis_that_fails_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the verdicts before the failure, and once in the log."""
    with asked(undiagnosed(tmp_path / "x.db"), judge=Failing) as (client, _):
        until(lambda: client.get(PATH).json()["state"] == "failed", "the failure")
        found = client.get(PATH).json()["verdicts"]
        assert [one["text"] for one in found] == [one.text for one in replay(LAYERS, FRAMES[:79])]
        assert client.get(PATH).json()["state"] == "failed"
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
