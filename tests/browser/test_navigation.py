"""The way through layers, steps and runs in a real Chromium: what an address says is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from root_dash.frontend import ids
from tests.browser.conftest import running, tab
from tests.browser.test_dashboard import LAYER_GRAPHS, PATIENCE, wait_until_filled
from tests.store.frames import CADENCE, make_layers, record

pytestmark = [pytest.mark.heavy, pytest.mark.browser]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs of three layers, whose recordings are not evenly apart: at 10, 15, 20, 30, 40, 45, ..."""
    path = tmp_path_factory.mktemp("navigation") / "runs.db"
    for at in (1, 2):
        record(path, 60, make_layers(3), uid=f"run-{at}", name="twin", start=1, cadence={**CADENCE, "spectra": 15})
    return path


@pytest.fixture
def page(browser: Browser, database: Path) -> Iterator[Page]:
    """The page of a layer of the first run at step 20, of whose momentum the first row is drawn."""
    with (
        running(["serve", str(database), "--port", "0", "--no-open"], database.with_suffix(".log")) as url,
        tab(browser) as opened,
    ):
        opened.page.goto(url)
        opened.page.wait_for_function("location.pathname === '/r/2'", timeout=PATIENCE)
        opened.page.goto(opened.page.url.replace("/r/2", "/r/1/l/1?step=20&tensor=momentum&stat=grad_std"))
        wait_until_filled(opened.page, LAYER_GRAPHS)
        yield opened.page


def at(page: Page, path: str, step: int | None) -> None:
    """Wait until the address is of a path and a step, and until the page shows the step."""
    page.wait_for_function("path => location.pathname === path", arg=path, timeout=PATIENCE)
    page.wait_for_function(
        "step => new URLSearchParams(location.search).get('step') === step",
        arg=None if step is None else str(step), timeout=PATIENCE,
    )  # fmt: skip
    if step is not None:
        expect(page.locator(f"#{ids.STEP_LABEL}")).to_have_text(f"step {step}", timeout=PATIENCE)
        shown = {10: 10, 15: 10, 20: 20, 45: 40}[step]  # the histogram at or before the step
        expect(page.locator("#histogram-hint")).to_contain_text(f"step {shown} ·", timeout=PATIENCE)


def test_layers_steps_and_runs_are_walked_and_the_view_is_kept(page: Page) -> None:
    """Keys, links and pickers change what they name, and nothing else."""
    at(page, "/r/1/l/1", 20)
    expect(page.locator("#evolution-title")).to_have_text("Momentum over time")
    page.keyboard.press("j")
    at(page, "/r/1/l/2", 20)
    page.locator("[data-go=previous]").click()
    at(page, "/r/1/l/1", 20)
    for key, step in (("Left", 15), ("Left", 10), ("Left", 10), ("Right", 15), ("Right", 20)):
        page.keyboard.press(f"Arrow{key}")
        at(page, "/r/1/l/1", step)
    # Keys that come faster than the page draws are all counted.
    for key, step in (("Right", 45), ("Left", 20)):
        for _ in range(3):
            page.keyboard.press(f"Arrow{key}")
        at(page, "/r/1/l/1", step)
    # After a choice in a picker the keys work as before.
    page.locator(f"#{ids.LAYER_PICKER}").click()
    page.get_by_role("option", name="blocks.0.attn.proj.weight").click()
    at(page, "/r/1/l/2", 20)
    page.keyboard.press("j")
    at(page, "/r/1/l/3", 20)
    # Another run: the layer of the same name at the same step. Runs of one name are told apart.
    page.locator(f"#{ids.RUN_PICKER}").click()
    expect(page.get_by_role("option").first).to_contain_text("twin · run 2ended")
    page.get_by_role("option", name="twin · run 2").click()
    at(page, "/r/2/l/6", 20)
    expect(page.locator("#evolution-title")).to_have_text("Momentum over time")
    page.keyboard.press("?")
    expect(page.locator(f"#{ids.SHORTCUTS}")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(f"#{ids.SHORTCUTS}")).to_be_hidden()
    page.locator("[data-go=back]").click()
    page.wait_for_function("location.pathname === '/r/2' && location.search.includes('grad_std')", timeout=PATIENCE)
    page.go_back()
    at(page, "/r/2/l/6", 20)


def test_a_new_run_appears_in_the_picker_and_a_removed_one_says_so(page: Page, database: Path) -> None:
    """The list of runs follows the database while the page is open."""
    record(database, 3, make_layers(3), uid="run-3", name="a new one")
    page.locator(f"#{ids.RUN_PICKER}").click()
    expect(page.get_by_role("option").first).to_contain_text("a new one", timeout=PATIENCE)
