"""A page whose server goes away, comes back, or comes back with another token."""

from __future__ import annotations

import socket
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from root_dash.frontend import ids
from tests.browser.conftest import running, tab
from tests.browser.test_dashboard import LAYER_GRAPHS, MAP, OVERVIEW_GRAPHS, PATIENCE, wait_until_filled
from tests.store.frames import make_layers, record

pytestmark = [pytest.mark.heavy, pytest.mark.browser]

# The messages of the browser and of Dash in the console when a server is away or refuses.
TROUBLE = r"(401|500) |console: (Failed to load resource: |.*Callback (error updating|failed)|.*WebSocket)"
CALLBACKS = "**/_dash-update-component*"
AWAY = "The server does not answer: trying again."
ASKS = "The server asks for its token: open the URL that root-dash serve printed."
GONE = "The database no longer holds this run or layer: looking again."
FAULT = "The server could not draw the grey panels. Its log says why. Trying again."


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """Two finished runs of three layers."""
    for at in (1, 2):
        record(tmp_path / "runs.db", 30, make_layers(3), uid=f"run-{at}", name=f"run {at}")
    return tmp_path / "runs.db"


@pytest.fixture
def port() -> int:
    """A port on which a server can be started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serving(db: Path, port: int, token: str) -> AbstractContextManager[str]:
    """Run a server on a port, with a token."""
    command = ["serve", str(db), "--port", str(port), "--no-open"]
    return running(command, db.with_suffix(f".{token}.log"), token)


def bar(page: Page, text: str | None) -> None:
    """Wait until the bar shows a text, or (for None) is gone; check that the page is grey while the server is away."""
    shown = page.locator(f"#{ids.CONNECTION}")
    if text is None:
        expect(shown).to_be_hidden(timeout=PATIENCE)
        expect(page.locator("body")).not_to_have_class("stale", timeout=PATIENCE)
        assert page.locator(".card.stale").count() == 0
        return
    expect(page.locator(f"#{ids.CONNECTION_TEXT}")).to_have_text(text, timeout=PATIENCE)
    expect(shown).to_be_visible(timeout=PATIENCE)
    assert shown.get_attribute("role") == "alert"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    if text in (AWAY, ASKS):
        expect(page.locator(f"#{ids.PAGE}")).to_have_css("opacity", "0.45", timeout=PATIENCE)


def pick_run(page: Page, name: str) -> None:
    """Choose a run in the header."""
    page.locator(f"#{ids.RUN_PICKER}").click()
    page.get_by_role("option", name=name).click()


def drawn_run(page: Page, run: int) -> None:
    """Wait until the map shows a run."""
    page.wait_for_function(
        "([id, revision]) => document.querySelector(`#${id} .js-plotly-plot`)?.layout?.uirevision === revision",
        arg=[MAP, f"map {run}"],
        timeout=PATIENCE,
    )


def test_a_bookmark_opens_whole_on_a_server_that_was_just_started(browser: Browser, db: Path, port: int) -> None:
    """The first page of a server has its styles and scripts, whichever page the browser asks for."""
    command = ["serve", str(db), "--port", str(port), "--no-open", "--no-token"]
    for path, graphs in (("/r/1/l/1", LAYER_GRAPHS), ("/r/2", OVERVIEW_GRAPHS)):
        with running(command, db.with_suffix(".log")) as url:
            with tab(browser) as opened:
                opened.page.goto(url.rstrip("/") + path)
                wait_until_filled(opened.page, graphs)
                expect(opened.page.locator(f"#{ids.STATUS_TEXT}")).to_have_text("ended", timeout=PATIENCE)
                expect(opened.page.locator(".head")).to_have_css("height", "46px")


def test_a_page_whose_server_is_away_says_so_and_shows_its_address_when_it_is_back(
    browser: Browser, db: Path, port: int
) -> None:
    """If another run is picked while the server is away, the old panels are grey until the new panels are drawn."""
    with tab(browser, expected=TROUBLE) as opened:
        page = opened.page
        with serving(db, port, "one") as url:
            page.goto(url)
            drawn_run(page, 2)
            expect(page.locator(f"#{ids.CONNECTION}")).to_be_hidden()
        pick_run(page, "run 1")
        bar(page, AWAY)
        assert page.url.endswith("/r/1")
        opened.picture("away-light")
        with serving(db, port, "one"):
            drawn_run(page, 1)
            bar(page, None)
            expect(page.locator(f"#{ids.RUN_PICKER}")).to_have_value("run 1")
            assert page.title() == "run 1 · root-dash"

            page.goto(f"http://127.0.0.1:{port}/r/1/l/1?step=10")
            wait_until_filled(page, LAYER_GRAPHS)
        page.keyboard.press("j")
        bar(page, AWAY)
        expect(page.locator(f"#{ids.LAYER_TITLE}")).to_have_text("blocks.0.attn.qkv.weight")
        with serving(db, port, "one"):
            expect(page.locator(f"#{ids.LAYER_TITLE}")).to_have_text("blocks.0.attn.proj.weight", timeout=PATIENCE)
            bar(page, None)
            wait_until_filled(page, LAYER_GRAPHS)


def test_a_page_that_is_refused_names_the_token_and_recovers_with_it(browser: Browser, db: Path, port: int) -> None:
    """If the server comes back with another token, the page asks seldom, and at once after the URL was opened."""
    with tab(browser, 390, 844, expected=TROUBLE) as opened:
        page = opened.page
        with serving(db, port, "one") as url:
            page.goto(url)
            drawn_run(page, 2)
        with serving(db, port, "two") as url:
            pick_run(page, "run 1")
            bar(page, ASKS)
            opened.picture("token-narrow")
            refused = [error for error in opened.errors if error.startswith("401")]
            assert len(refused) < 10
            other = page.context.new_page()
            other.goto(url)
            drawn_run(other, 2)
            other.close()
            page.bring_to_front()
            drawn_run(page, 1)
            bar(page, None)


def test_a_live_page_says_that_its_stream_is_refused(browser: Browser, db: Path, port: int) -> None:
    """Nobody presses anything: the stream breaks off by itself."""
    record(db, 5, make_layers(3), uid="live", name="live one", end=False)
    with tab(browser, scheme="dark", expected=TROUBLE) as opened:
        page = opened.page
        with serving(db, port, "one") as url:
            page.goto(url)
            drawn_run(page, 3)
        bar(page, AWAY)
        opened.picture("away-dark")
        with serving(db, port, "two"):
            bar(page, ASKS)
        bar(page, AWAY)
        with serving(db, port, "one"):
            bar(page, None)


def test_one_panel_that_fails_is_grey_alone_until_it_is_drawn(browser: Browser, db: Path, port: int) -> None:
    """A fault of one callback leaves the other panels, and the page asks again by itself."""

    def refuse(route: Route) -> None:
        asked = route.request.post_data or ""
        if "spectrum.figure" in asked:
            route.fulfill(status=500, body="{}")
        else:
            route.continue_()

    with serving(db, port, "one") as url, tab(browser, expected=TROUBLE) as opened:
        page = opened.page
        page.route(CALLBACKS, refuse)
        page.goto(url)
        drawn_run(page, 2)
        page.goto(f"http://127.0.0.1:{port}/r/1/l/1")
        bar(page, FAULT)
        expect(page.locator(".card.stale")).to_have_count(1, timeout=PATIENCE)
        expect(page.locator("body")).not_to_have_class("stale")
        opened.picture("fault-light")
        with page.expect_response(lambda response: response.status == 500, timeout=PATIENCE):
            page.locator(f"#{ids.CONNECTION_RETRY}").click()
        page.unroute(CALLBACKS)
        wait_until_filled(page, LAYER_GRAPHS)
        bar(page, None)


def test_a_request_that_is_never_answered_puts_the_bar_up(browser: Browser, db: Path, port: int) -> None:
    """If the server answers a request very late, the page shows the bar first and the answer in the end."""
    held: list[Route] = []
    silent = False

    def answer(route: Route) -> None:
        if silent:
            held.append(route)
        else:
            route.continue_()

    with serving(db, port, "one") as url, tab(browser, expected=TROUBLE) as opened:
        page = opened.page
        page.clock.install()
        page.goto(url)
        drawn_run(page, 2)
        page.route(CALLBACKS, answer)
        silent = True
        pick_run(page, "run 1")
        page.wait_for_function("location.pathname === '/r/1'")
        while not held:
            page.wait_for_timeout(50)
        page.clock.fast_forward(31_000)
        bar(page, AWAY)
        silent = False
        for route in held:
            route.continue_()
        drawn_run(page, 1)
        bar(page, None)
