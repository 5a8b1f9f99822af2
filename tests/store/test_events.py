"""Events: what happened to a run, kept with the frame that tells of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from root_dash.exceptions import NotRecorded
from root_dash.records import Event, Run
from root_dash.store import Store
from tests.store.frames import make_frame, make_layers


def test_events_come_back_in_order_and_in_pages(place: Path | str) -> None:
    """What frames tell is read back with ids that ascend, from any of them on, and once however often it is stored."""
    layers = make_layers(2)
    told = [Event("coefficients", f"set {i} · σ", step=i, time=100.0 + i) for i in range(5)]
    with Store.create(place) as store:
        recording = store.begin(Run("u", "run", 1.0), layers)
        for i, events in enumerate((told[:2], [], told[2:])):
            frame = make_frame(i, i + 1, layers, np.random.default_rng(i), ["statistics"])
            for _ in range(2):
                recording.append(replace(frame, events=tuple(events)))
        run = store.runs()[0].id
        found = store.events(run)
        assert [replace(event, id=0) for event in found] == told
        assert [event.id for event in found] == sorted({event.id for event in found})
        assert store.events(run, after=found[1].id, limit=2) == found[2:4]
        assert store.events(run, after=found[-1].id) == []
        with pytest.raises(NotRecorded, match="there is no run 7"):
            store.events(7)
