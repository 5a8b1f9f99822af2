"""The shell and the pages: ids, labels, and the components that the callbacks need."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

from root_dash.frontend import app, layout
from root_dash.frontend.bookkeeping import share, summary, words
from root_dash.frontend.pages import layer, notices, overview
from root_dash.frontend.panels import PANELS
from root_dash.frontend.static_files import ASSETS, StaticFiles
from root_dash.records import History, Layer, Notice, Run
from root_dash.store import Store
from tests.store.frames import record
from tests.waiting import LIMIT_SECONDS


def components(tree: Any) -> Iterator[Any]:
    """Every component of a layout, depth first."""
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from components(part)
    elif hasattr(tree, "to_plotly_json"):
        yield tree
        yield from components(getattr(tree, "children", None))


PAGES: dict[str, Callable[[], Any]] = {
    "overview": lambda: overview.page(PANELS["overview"], {}),
    "layer": lambda: layer.page(PANELS["layer"], {}),
    "empty": notices.empty,
    "missing": lambda: notices.missing("/nope", ""),
}


@pytest.mark.parametrize("page", PAGES)
def test_ids_are_unique_on_every_page(page: str) -> None:
    """The shell and a page together have no id twice."""
    tree = [layout.shell(), PAGES[page]()]
    known = [component.id for component in components(tree) if getattr(component, "id", None)]
    assert [name for name, times in Counter(known).items() if times > 1] == []


def test_every_id_of_a_callback_is_in_some_page(tmp_path: Path) -> None:
    """A callback on a component that no page has would never run."""
    with Store.open(record(tmp_path / "a.db", 2)) as store:
        dash = app.dashboard(FastAPI(), store, StaticFiles())
    known = {
        component.id
        for component in components([layout.shell(), *(page() for page in PAGES.values())])
        if getattr(component, "id", None)
    }
    used = set()
    for callback in dash._callback_list:
        used |= {part["id"] for part in [*callback["inputs"], *callback["state"]]}
        outputs = callback["output"].strip(".").split("...") if callback["output"] else []
        used |= {output.rpartition(".")[0] for output in outputs if not callback.get("no_output")}
    assert used - known == set()
    assert len(dash._callback_list) > 15


def test_controls_and_figures_are_named_for_screen_readers() -> None:
    """Every control and every figure has a label."""
    tree = [layout.shell(), *(page() for page in PAGES.values())]
    for component in components(tree):
        kind = type(component).__name__
        if kind in ("Select", "SegmentedControl") or (kind == "Button" and len(str(component.children)) < 2):
            assert getattr(component, "aria-label", ""), component
        if "graph-box" in str(getattr(component, "className", "")):
            assert getattr(component, "aria-label", "").strip()


def test_every_hint_is_short() -> None:
    """A hint tells how to read a panel in under ten words."""
    hints = [c.children for c in components(PAGES["layer"]()) if getattr(c, "className", "") == "hint" and c.children]
    assert hints
    assert all(len(hint.split()) < 10 for hint in hints)


def test_the_sentence_says_what_is_recorded() -> None:
    """Layers by optimizer, the cadence of each kind, frames kept and lost."""
    layers = [
        Layer("norm", (8,), "adamw", 0),
        Layer("q", (8, 8), "root", 1),
        Layer("k", (8, 8), "root", 2),
    ]
    cadence = {"statistics": 1, "histograms": 10, "quantiles": 10, "spectra": 25, "masks": 25, "scalars": 1}
    run = Run("u", "run", 0.0, cadence=cadence, frames=1240)
    assert summary(run, layers) == (
        "2 matrices under ROOT and 1 tensor under AdamW; "
        "statistics every step, histograms every 10, spectra and masks every 25; 1,240 frames, none lost."
    )
    assert "3 lost" in summary(Run("u", "run", 0.0, frames=1, lost=3), layers)
    assert summary(Run("u", "run", 0.0), []) == "no layers; 0 frames, none lost."


def test_the_header_says_what_recording_costs() -> None:
    """The share of the step time, whatever the cadence and a pause between two attempts; lost frames are a warning."""
    notices = [
        Notice(at, 1, at, step, time, ())
        for at, (step, time) in enumerate([(2, 4.0), (4, 8.0), (6, 912.0), (8, 916.0)])
    ]
    cost = History("cost", np.array([2, 4, 6, 8]), np.full(4, 0.07))
    assert np.isclose(share(cost, notices), 4 * 0.07 / 7 / 2.0)
    assert np.isnan(share(cost, notices[:1]))
    assert [part.children for part in words(Run("u", "", 0.0), 0.004)] == ["hook 0.4 % of step time"]
    assert [part.children for part in words(Run("u", "", 0.0, lost=3), np.nan)] == ["3 frames lost"]


def test_assets_call_nothing_outside() -> None:
    """The machine itself serves everything: scripts and styles name no other address."""
    for asset in ASSETS.iterdir():
        text = asset.read_text(encoding="utf-8").replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert "http://" not in text
        assert "https://" not in text
        assert "@import" not in text
    assert layout.CONFIG["showSendToCloud"] is False


def test_the_dashboard_needs_no_torch_and_no_sql() -> None:
    """Importing the dashboard pulls in neither torch nor SQL."""
    code = (
        "import sys, root_dash.frontend.app as app; "
        "assert not {'torch', 'sqlalchemy'} & set(sys.modules), 'pulled in'; print(app.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
