"""The dashboard in a real Chromium: live beside a training demo, and on a finished run."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, FloatRect, Page, TimeoutError, expect

from root_dash.frontend import ids
from root_dash.frontend.panels import PANELS
from root_dash.frontend.panels.overview import health_map
from root_dash.health import Health
from root_dash.records import Run, statistic_names
from root_dash.store import Store
from tests.browser.conftest import running, tab
from tests.store.frames import make_frame, make_layers, record

pytestmark = [pytest.mark.heavy, pytest.mark.browser]

PATIENCE = 60_000  # ms; two cores train, serve and draw at the same time

# JavaScript for the figure of an id, and for how far its first curve reaches.
PLOT = "document.querySelector(`#${id} .js-plotly-plot`)"
LAST_X = f"Math.max(...({PLOT}?._fullData?.[0]?.x ?? [0]))"

MAP = health_map.PANEL.id
OVERVIEW_GRAPHS, LAYER_GRAPHS = (
    tuple(panel.id for panel in PANELS[page] if not panel.words) for page in ("overview", "layer")
)


def shown_step(page: Page) -> int:
    """Return the step counter in the header."""
    text = page.locator(f"#{ids.STATUS_STEP}").inner_text()
    digits = re.sub(r"\D", "", text)
    return int(digits) if digits else 0


def wait_for_step(page: Page, step: int) -> None:
    """Wait until the step counter in the header has reached a step."""
    page.wait_for_function(
        "([id, step]) => Number(document.getElementById(id)?.innerText.replace(/\\D/g, '') || 0) >= step",
        arg=[ids.STATUS_STEP, step],
        timeout=PATIENCE,
    )


def last_x(page: Page, graph: str) -> float:
    """Return how far the first curve of a figure reaches."""
    reached: float = page.evaluate(f"id => {LAST_X}", graph)
    return reached


def wait_for_curve(page: Page, graph: str, beyond: float) -> None:
    """Wait until the first curve of a figure reaches further than `beyond`."""
    page.wait_for_function(f"([id, beyond]) => {LAST_X} > beyond", arg=[graph, beyond], timeout=PATIENCE)


def x_range(page: Page, graph: str) -> list[float]:
    """Return the range of a figure's x axis."""
    shown: list[float] = page.evaluate(f"id => {PLOT}._fullLayout.xaxis.range", graph)
    return shown


def subplot(page: Page, graph: str, *, first: bool) -> FloatRect:
    """Return the box of the map, which is a figure's first subplot, or of the smallest subplot in the window."""
    if first:
        found = page.locator(f"#{graph} .nsewdrag[data-subplot='xy']").bounding_box()
        assert found is not None
        return found
    boxes = [box for drag in page.locator(f"#{graph} .nsewdrag").all() if (box := drag.bounding_box())]
    return min(boxes, key=lambda box: box["height"])


def drag(page: Page, box: FloatRect, start: float, end: float) -> None:
    """Draw the mouse along the middle of a subplot, from one share of its width to another."""
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=5)
    page.mouse.up()


def wait_until_filled(page: Page, graphs: tuple[str, ...]) -> None:
    """Wait until every figure has data."""
    filled = f"id => ({PLOT}?._fullData ?? []).some(trace => ((trace.z ?? trace.y ?? trace.x)?.length ?? 0) > 0)"
    for graph in graphs:
        page.wait_for_function(filled, arg=graph, timeout=PATIENCE)


def click_map(page: Page, layer: str) -> None:
    """Select a layer a third of the way through the steps, by a click on its cell once the cell's numbers are shown."""
    shown = page.locator(f"#{MAP} .hoverlayer .hovertext", has_text=layer)
    for _ in range(PATIENCE // 1000):
        # The map may still grow to its height: look anew where the row is.
        box = subplot(page, MAP, first=True)
        row: float = page.evaluate(f"([id, name]) => {PLOT}._fullLayout.yaxis.d2p(name)", [MAP, layer])
        x, y = box["x"] + box["width"] / 3, box["y"] + row
        page.mouse.move(x + 1, y)
        page.mouse.move(x, y)
        with suppress(TimeoutError):
            shown.wait_for(timeout=1000)
            break
    page.mouse.click(x, y)
    expect(page.locator("#drawer-name")).to_have_text(layer, timeout=PATIENCE)


def click_name(page: Page, name: str) -> None:
    """Click the name of a row of the map."""
    box: FloatRect = page.evaluate(
        "text => { const all = [...document.querySelectorAll('#map .ytick text')];"
        " return all.find((tick) => tick.textContent === text).getBoundingClientRect().toJSON(); }",
        name,
    )
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_a_training_run_is_seen_live(browser: Browser, tmp_path: Path) -> None:
    """Counter and curve advance without a reload and keep the zoom; the map opens a layer; the slider moves."""
    demo = ["demo", "--steps", "2000", "--no-open", "--db", str(tmp_path / "demo.db")]
    with running(demo, tmp_path / "demo.log") as url, tab(browser) as opened:
        page = opened.page
        page.goto(url)
        assert "token" not in page.url
        wait_for_step(page, 3)
        wait_until_filled(page, OVERVIEW_GRAPHS)
        expect(page.locator(f"#{ids.STATUS_TEXT}")).to_have_text("live")
        page.evaluate("window.notReloaded = true")
        before, curve = shown_step(page), last_x(page, MAP)
        wait_for_step(page, before + 5)
        wait_for_curve(page, MAP, curve)

        whole = x_range(page, MAP)
        drag(page, subplot(page, MAP, first=False), 0.2, 0.6)
        page.wait_for_function(f"([id, low]) => {PLOT}._fullLayout.xaxis.range[0] > low", arg=[MAP, whole[0] + 0.5])
        zoomed = x_range(page, MAP)
        wait_for_curve(page, MAP, last_x(page, MAP))
        assert x_range(page, MAP) == zoomed
        box = subplot(page, MAP, first=False)
        page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        wait_for_step(page, 21)
        opened.picture("overview-live")

        click_map(page, "blocks.1.up.weight")
        page.keyboard.press("Enter")
        expect(page.locator(f"#{ids.LAYER_TITLE}")).to_have_text("blocks.1.up.weight", timeout=PATIENCE)
        assert re.search(r"/r/\d+/l/\d+", page.url)
        wait_until_filled(page, LAYER_GRAPHS)
        page.locator(f"#{ids.FOLLOW}").check(force=True)
        wait_for_step(page, shown_step(page) + 3)
        opened.picture("layer-live")

        thumb = page.locator(f"#{ids.STEP_SLIDER} [role=slider]")
        newest = page.locator(f"#{ids.STEP_LABEL}").inner_text()
        thumb.press("Home")
        expect(page.locator(f"#{ids.STEP_LABEL}")).not_to_have_text(newest, timeout=PATIENCE)
        expect(page.locator(f"#{ids.STEP_LABEL}")).to_contain_text("step 1", timeout=PATIENCE)
        expect(page.locator(f"#{ids.FOLLOW}")).not_to_be_checked(timeout=PATIENCE)
        wait_until_filled(page, LAYER_GRAPHS)
        assert page.evaluate("window.notReloaded") is True


def test_a_finished_run_opens_with_every_panel_filled(browser: Browser, tmp_path: Path) -> None:
    """In light, dark and narrow windows, by its address alone."""
    db = record(tmp_path / "runs.db", 60)
    with running(["serve", str(db), "--port", "0", "--no-open"], tmp_path / "serve.log") as url:
        for name, size, scheme in (
            ("light", (1440, 900), "light"),
            ("dark", (1440, 900), "dark"),
            ("narrow", (390, 844), "light"),
        ):
            with tab(browser, *size, scheme) as opened:
                page = opened.page
                page.goto(url)
                wait_until_filled(page, OVERVIEW_GRAPHS)
                expect(page.locator(f"#{ids.STATUS_TEXT}")).to_have_text("ended")
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
                opened.picture(f"overview-{name}")
                if name == "narrow":
                    page.goto(page.url.split("?")[0] + "/l/2")
                else:
                    page.locator(".chip", has_text="size").click()  # which needs no diagnosis
                    page.wait_for_selector(f"#{MAP} .ytick", timeout=PATIENCE)
                    click_map(page, "blocks.0.attn.proj.weight")
                    page.keyboard.press("Enter")
                expect(page.locator(f"#{ids.LAYER_TITLE}")).to_be_visible(timeout=PATIENCE)
                wait_until_filled(page, LAYER_GRAPHS)
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
                opened.picture(f"layer-{name}")


def test_the_overview_says_which_layer_is_sick_and_leads_there(browser: Browser, tmp_path: Path) -> None:
    """The sentence, the selection, the zoom and the folded blocks leave the page where it is; "why" opens the onset."""
    layers, sick = make_layers(90), "blocks.2.attn.proj.weight"
    with Store.create(tmp_path / "sick.db", judge=Health) as store:
        recording = store.begin(Run("run-1", "a run", 0.0, optimizer={"name": "ROOT"}), layers)
        for step in range(30):
            frame = make_frame(step, step, layers, np.random.default_rng(step), ("statistics", "scalars"))
            statistics = frame.statistics.copy()
            statistics[11, statistic_names("statistics").index("grad_nan")] = float(step >= 20)
            recording.append(replace(frame, statistics=statistics))
        recording.end(30.0)
    arguments = ["serve", str(tmp_path / "sick.db"), "--port", "0", "--no-open"]
    with running(arguments, tmp_path / "serve.log") as url, tab(browser) as opened:
        page = opened.page
        page.goto(url)
        expect(page.locator("h1")).to_have_text("1 of 90 layers needs a look", timeout=PATIENCE)
        expect(page.locator("#drawer-name")).to_have_text(sick, timeout=PATIENCE)
        page.wait_for_function("document.title.startsWith('1 sick')", timeout=PATIENCE)
        page.wait_for_selector(f"#{MAP} .ytick", timeout=PATIENCE)
        assert page.evaluate("document.documentElement.scrollHeight <= 1.02 * window.innerHeight")

        click_name(page, "▸ blocks.2")
        page.wait_for_function("document.querySelectorAll('#map .ytick').length === 23", timeout=PATIENCE)
        assert "opened=blocks.2" in page.url
        click_map(page, "blocks.2.mlp.up.weight")
        assert re.search(r"/r/1\?.*layer=13", page.url)
        whole = x_range(page, MAP)
        drag(page, subplot(page, MAP, first=True), 0.2, 0.6)
        page.wait_for_function(f"([id, low]) => {PLOT}._fullLayout.xaxis.range[0] > low", arg=[MAP, whole[0] + 0.5])
        box = subplot(page, MAP, first=True)
        page.mouse.dblclick(box["x"] + box["width"] / 2, box["y"] + 4)
        page.wait_for_function(f"([id, low]) => {PLOT}._fullLayout.xaxis.range[0] <= low", arg=[MAP, whole[0]])
        assert "/l/" not in page.url
        opened.picture("overview-sick")

        page.locator(".verdict .why").click()
        expect(page.locator(f"#{ids.LAYER_TITLE}")).to_have_text(sick, timeout=PATIENCE)
        assert re.search(r"/r/1/l/12\?opened=.*step=20$", page.url)  # the rest of the view is handed on
        page.locator("[data-go=back]").click()
        page.wait_for_function("location.search.includes('layer=12')", timeout=PATIENCE)
        expect(page.locator("#drawer-name")).to_have_text(sick, timeout=PATIENCE)


def test_an_address_that_leads_nowhere_says_so(browser: Browser, tmp_path: Path) -> None:
    """The address of a missing run or layer shows a sentence, not a broken page, and its status is 404."""
    db = record(tmp_path / "runs.db", 3)
    with (
        running(["serve", str(db), "--port", "0", "--no-open"], tmp_path / "serve.log") as url,
        tab(browser, expected="404 |console: Failed to load resource") as opened,
    ):
        opened.page.goto(url)
        base = opened.page.url.split("/r/")[0].rstrip("/")
        for path in ("/r/999", "/r/1/l/999", "/r/x", "/nowhere"):
            opened.page.goto(base + path)
            expect(opened.page.locator(f"#{ids.PAGE} .notice")).to_be_visible(timeout=PATIENCE)
