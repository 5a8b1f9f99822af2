"""The cache of answers: made once, bounded, and anew when the run has changed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from root_dash.frontend import app, ids
from root_dash.frontend.once import Once
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
