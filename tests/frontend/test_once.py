"""The cache of answers: made once, bounded, and anew when the run has changed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dash import html
from fastapi import FastAPI

from root_dash.frontend import app, ids
from root_dash.frontend.once import Once, weight
from root_dash.frontend.panels import PANELS
from root_dash.frontend.panels.panel import Drawing, Panel, Selection
from root_dash.frontend.theme import Theme
from root_dash.records import Run
from root_dash.store import Store
from tests.frontend.asking import answers
from tests.store.frames import make_frame, make_layers
from tests.waiting import LIMIT_SECONDS


def test_many_that_ask_at_once_get_one_answer() -> None:
    """While one thread makes an answer, the others wait for it."""
    once, made, begun, go_on = Once(), [], threading.Event(), threading.Event()

    def make() -> str:
        made.append(1)
        begun.set()
        assert go_on.wait(LIMIT_SECONDS)
        return "answer"

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(once, "key", make)
        assert begun.wait(LIMIT_SECONDS)
        others = [pool.submit(once, "key", make) for _ in range(3)]
        go_on.set()
        assert [future.result(LIMIT_SECONDS) for future in (first, *others)] == ["answer"] * 4
    assert made == [1]


def test_what_was_used_longest_ago_makes_room() -> None:
    """The size of all answers is bounded, and an answer that is too large is not kept."""
    once, made = Once(1000), []

    def ask(key: str, size: int = 300) -> None:
        once(key, lambda: made.append(key) or "x" * size)  # type: ignore[func-returns-value]

    for key in ("a", "b", "a", "c", "a", "b"):
        ask(key)
    assert made == ["a", "b", "c", "b"]
    for _ in range(2):
        ask("large", 2000)
    assert made[4:] == ["large", "large"]


def test_an_error_is_not_kept() -> None:
    """The next one to ask tries again."""
    once = Once()

    def fail() -> Any:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            once("key", fail)
    assert once("key", lambda: 1) == 1


def test_viewers_share_a_figure_until_the_run_changes(tmp_path: Path) -> None:
    """A panel is drawn once for two viewers, and anew for another theme, another step and after a frame."""
    drawn: list[int | None] = []

    def read(selection: Selection) -> dict[str, Any]:
        drawn.append(selection.step)
        return {}

    def draw(theme: Theme) -> Drawing:
        return Drawing(theme.name)

    panel = Panel("counted", "", "", read, draw, kind="statistics", shows="step", words=True)
    layers, rng = make_layers(1), np.random.default_rng(0)
    with Store.create(tmp_path / "a.db") as store:
        recording = store.begin(Run("run-1", "a run", 0.0), layers)
        recording.append(make_frame(0, 1, layers, rng))
        api = FastAPI()
        app.mount(api, store, {"overview": PANELS["overview"], "layer": (panel,)})

        def ask(theme: str = "light", step: int | None = None) -> Any:
            values = {
                f"{ids.VIEW}.data": {"page": "layer", "run": 1, "layer": 1, "step": None},
                f"{ids.THEME}.data": theme,
                f"{ids.shown('statistics')}.data": {"step": step, "cursor": len(drawn)},
                "stat.value": "grad_norm",
            }
            return answers(api, values)["..counted.children.."].json()["response"]["counted"]["children"]

        assert [ask(), ask(), ask("dark"), ask(step=1), ask(step=1)] == ["light", "light", "dark", "light", "light"]
        assert drawn == [None, None, 1]
        recording.append(make_frame(1, 2, layers, rng))
        assert ask() == ask()
        assert drawn == [None, None, 1, None]


def test_the_map_takes_scalars_that_were_picked_and_layers_have_their_own_drawer(tmp_path: Path) -> None:
    """A control's value may be a list; another selected layer or another value is another answer."""
    with Store.create(tmp_path / "a.db") as store:
        recording = store.begin(Run("run-1", "a run", 0.0), layers := make_layers(2))
        recording.append(make_frame(0, 1, layers, np.random.default_rng(0)))
        api = FastAPI()
        app.mount(api, store, {"overview": PANELS["overview"], "layer": ()})

        def ask(layer: int, scalars: list[str]) -> tuple[str, str]:
            values = {
                f"{ids.VIEW}.data": {"page": "overview", "run": 1, "step": None},
                f"{ids.selected('statistics')}.data": {"layer": layer, "step": 1},
                "stat.value": "grad_norm", "rows.value": "model", f"{ids.SCALARS}.value": scalars,
            }  # fmt: skip
            found = answers(api, values)
            figure, drawer = (
                found["..map.figure...map-title.children...map-hint.children.."],
                found["..drawer.children.."],
            )
            return figure.text, drawer.text

        names = [name for name in store.scalar_names(1)]
        assert len(names) > 1
        (one, first), (_, second), (other, _) = ask(1, names[:1]), ask(2, names[:1]), ask(1, names[1:])
    assert layers[0].name in first
    assert layers[1].name in second
    assert one != other


def test_arrays_and_components_weigh_what_they_hold() -> None:
    """The bound holds for an answer of words, and for numbers that are not sent as text."""
    assert weight({"z": np.zeros(1000)}) > 8000
    assert weight(html.Div([html.P("x" * 1000), html.P("y" * 1000)])) > 2000
