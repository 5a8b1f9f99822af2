"""The stream of notices: frames beyond a cursor, and frames that are stored later."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from root_dash.exceptions import NotRecorded
from root_dash.records import Notice, Run
from root_dash.records.verdict import Verdict
from root_dash.server.app import create_app
from root_dash.server.responses import VerdictJson
from root_dash.server.stream import tail
from root_dash.settings import Settings
from root_dash.store import Store
from tests.store.frames import make_frame
from tests.store.write.test_judging import FRAMES, append
from tests.waiting import LIMIT_SECONDS


async def collect(store: Store, cursor: int, page: int = 1000) -> list[Notice | Verdict]:
    """Return the notices beyond the cursor that there are now, and the verdicts that their frames changed."""
    return [notice async for notice in tail(store, 1, cursor, follow=False, page=page)]


def test_a_tail_holds_the_frames_beyond_the_cursor(store: Store) -> None:
    """Each frame beyond the cursor comes once and in order."""
    assert asyncio.run(collect(store, 0)) == store.frames(1)
    assert asyncio.run(collect(store, 42)) == store.frames(1, 42)
    assert asyncio.run(collect(store, 45)) == []


def test_a_tail_pages_through_many_frames(store: Store) -> None:
    """More frames than a page holds come without a gap."""
    assert asyncio.run(collect(store, 0, page=7)) == store.frames(1)


@pytest.mark.parametrize("page", [1, 7, 1000])
def test_a_tail_tells_verdicts_before_their_frames(tmp_path: Path, page: int) -> None:
    """Whoever stops anywhere and resumes after the last notice has all verdicts in their present form in the end."""
    verdicts = append(tmp_path / "x.db", FRAMES)
    with Store.open(tmp_path / "x.db") as store:
        whole = asyncio.run(collect(store, 0, page))
        assert [one for one in whole if isinstance(one, Notice)] == store.frames(1)
        assert sorted((one for one in whole if isinstance(one, Verdict)), key=lambda one: one.id) == verdicts
        for stop in range(0, len(whole), 10):
            seen = whole[:stop]
            cursor = max((one.id for one in seen if isinstance(one, Notice)), default=0)
            seen += asyncio.run(collect(store, cursor, page))
            known = {one.id: one for one in seen if isinstance(one, Verdict)}
            assert [known[number] for number in sorted(known)] == verdicts


def test_a_tail_of_an_unknown_run_raises(store: Store) -> None:
    """The tail of an unknown run raises an error instead of being empty."""

    async def ask() -> None:
        async for _ in tail(store, 99, 0, follow=True):
            raise AssertionError

    with pytest.raises(NotRecorded):
        asyncio.run(ask())


def test_a_tail_follows_a_writer_and_stops_when_told(tmp_path: Path) -> None:
    """Frames that are stored later arrive. Once `stopping` is set, the tail ends, and a later one too."""

    async def follow(store: Store) -> list[int]:
        recording, rng, stopping = store.begin(Run("u", "", 1.0), []), np.random.default_rng(0), threading.Event()
        seen: list[int] = []
        complete = asyncio.Event()

        async def listen() -> None:
            async for notice in tail(store, 1, 0, follow=True, interval=0.005, stopping=stopping):
                assert isinstance(notice, Notice)
                seen.append(notice.seq)
                if notice.seq == 4:
                    complete.set()

        listening = asyncio.create_task(listen())
        for seq in range(5):
            await asyncio.to_thread(recording.append, make_frame(seq, seq, [], rng, ["scalars"]))
            await asyncio.sleep(0.01)
        async with asyncio.timeout(LIMIT_SECONDS):
            await complete.wait()
        stopping.set()
        await asyncio.wait_for(listening, LIMIT_SECONDS)
        await asyncio.wait_for(listen(), LIMIT_SECONDS)
        return seen

    with Store.create(tmp_path / "x.db") as store:
        assert asyncio.run(follow(store)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("query", "headers", "first"),
    [("", {}, 1), ("?after=40", {}, 41), ("?after=3", {"Last-Event-ID": "43"}, 44)],
)
def test_the_route_streams_events_from_the_cursor(
    query: str, headers: dict[str, str], first: int, store: Store, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream begins after `after` or, if it resumes, after `Last-Event-ID`. The id of an event is its cursor."""

    async def finite(*args: object, follow: bool, **options: object) -> object:
        assert follow
        async for notice in tail(*args, follow=False):  # type: ignore[arg-type]
            yield notice

    monkeypatch.setattr("root_dash.server.stream.tail", finite)
    response = client.get(f"/api/v1/runs/1/stream{query}", headers=headers)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [event.split("\n") for event in response.text.strip().split("\n\n")]
    assert [event[1] for event in events] == [f"id: {cursor}" for cursor in range(first, 46)]
    assert events[-1][0] == 'data: {"id": 45, "step": 44, "time": 1700000044.0, "kinds": ["statistics", "scalars"]}'


@pytest.mark.parametrize("value", ["x", "-1", "1.5", str(2**63), ""])
def test_a_bad_last_event_id_is_refused(value: str, client: TestClient) -> None:
    """A `Last-Event-ID` that is no cursor is a 422: to begin again without a word would hide the gap."""
    response = client.get("/api/v1/runs/1/stream", headers={"Last-Event-ID": value})
    assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")


def test_the_route_streams_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict is an event of a type of its own and without an id, so that it does not move the cursor."""

    async def finite(*args: object, follow: bool, **options: object) -> object:
        async for one in tail(*args, follow=False):  # type: ignore[arg-type]
            yield one

    verdicts = append(tmp_path / "x.db", FRAMES)
    monkeypatch.setattr("root_dash.server.stream.tail", finite)
    with Store.open(tmp_path / "x.db") as store:
        client = TestClient(create_app(Settings(token=None), store), base_url="http://127.0.0.1:8050")
        text = client.get("/api/v1/runs/1/stream").text
        layers = store.layers(1)
    events = [dict(line.split(": ", 1) for line in event.split("\n")) for event in text.strip().split("\n\n")]
    told = [event for event in events if event.get("event") == "verdict"]
    assert len(told) == len(verdicts)
    assert all("id" not in event for event in told)
    for event in told:
        found = VerdictJson.model_validate_json(event["data"], strict=True)
        expected = next(verdict for verdict in verdicts if verdict.id == found.id)
        assert (found.text, found.until) == (expected.text, expected.until)
        assert found.layer == (None if expected.layer is None else layers[expected.layer].id)
