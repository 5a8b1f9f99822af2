"""Verdicts on the page of a run that was recorded without diagnosis: the server judges the run."""

from __future__ import annotations

import threading
from pathlib import Path

from dash import no_update
from fastapi import FastAPI

from root_dash.frontend import app, ids
from root_dash.frontend.judgement import judgement
from root_dash.frontend.runs import Runs
from root_dash.server.judging import Replays
from root_dash.store import Store
from tests.frontend.asking import answers
from tests.store.frames import make_layers, record
from tests.waiting import until


def test_a_page_shows_the_verdicts_that_the_server_makes(tmp_path: Path) -> None:
    """The card says that the run is being judged, is drawn again when it is judged, and then says what was found."""
    with Store.open(record(tmp_path / "a.db", 6, make_layers(2))) as store:
        replay, api = Replays(store, threading.Event()).verdicts, FastAPI()
        app.mount(api, store, replay=replay)
        listed, view = Runs(store, replay), {"page": "overview", "run": 1, "latest": {"id": 6}}
        assert judgement(store, 1).progress == "unjudged"
        assert Runs(store).again(1, view, [])["judged"] is no_update
        until(lambda: judgement(store, 1, replay).whole)
        told = listed.again(1, view, [])["judged"]
        assert told[:2] == [1, "replayed"]
        assert listed.again(2, view, [], told)["judged"] is no_update
        card = answers(api, {f"{ids.VIEW}.data": view, "stat.value": "severity"})["..verdicts.children.."].json()
        said = str(card["response"]["verdicts"]["children"])
    assert "Nothing is wrong with 2 layers so far" in said
