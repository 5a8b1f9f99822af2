"""One test for each private API of Dash and Plotly that our scripts use, so that an upgrade says what broke."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from root_dash.frontend import address, ids
from root_dash.frontend.panels import PANELS
from root_dash.frontend.static_files import PLOTLY
from tests.browser.conftest import running, tab
from tests.browser.test_dashboard import MAP, OVERVIEW_GRAPHS, PATIENCE, wait_until_filled
from tests.store.frames import make_layers, record

pytestmark = [pytest.mark.heavy, pytest.mark.browser]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with a finished run of three layers."""
    folder = tmp_path_factory.mktemp("private")
    db = record(folder / "runs.db", 30, make_layers(3))
    with running(["serve", str(db), "--port", "0", "--no-open"], folder / "serve.log") as served:
        yield served


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The overview of the run."""
    with tab(browser) as opened:
        opened.page.goto(url)
        wait_until_filled(opened.page, OVERVIEW_GRAPHS)
        yield opened.page


def test_plotly_react_draws_every_update_of_a_graph(page: Page) -> None:
    """plots.js wraps `Plotly.react`: dcc.Graph must call `react` by its name for each new figure."""
    page.evaluate(
        """() => {
            const react = window.Plotly.react;
            window.drawn = [];
            window.Plotly.react = function (box, ...rest) {
                window.drawn.push(box.closest("[id]").id);
                return react.call(this, box, ...rest);
            };
        }"""
    )
    page.locator(f"#{ids.THEME_TOGGLE}").click()
    page.wait_for_function("id => window.drawn.some(drawn => drawn.includes(id))", arg=MAP, timeout=PATIENCE)


def test_dash_sends_a_callbacks_outputs_to_its_update_route(page: Page) -> None:
    """connection.js watches `fetch` for this route, and reads the outputs from the body."""
    with page.expect_request("**/_dash-update-component*", timeout=PATIENCE) as asked:
        page.locator(f"#{ids.THEME_TOGGLE}").click()
    output = json.loads(asked.value.post_data or "{}")["output"]
    assert output.startswith("..")
    assert output.endswith("..")
    assert {part.split(".")[0] for part in output[2:-2].split("...")} & {panel.id for panel in PANELS["overview"]}


def test_dash_marks_what_it_loads(page: Page) -> None:
    """stream.js holds updates back while an element of the page has this attribute."""
    page.evaluate(
        """() => {
            window.marked = false;
            new MutationObserver(() => {
                if (document.querySelector("#page [data-dash-is-loading='true']")) window.marked = true;
            }).observe(document.body, { subtree: true, childList: true, attributes: true });
        }"""
    )
    page.locator(f"#{ids.THEME_TOGGLE}").click()
    page.wait_for_function("window.marked", timeout=PATIENCE)


def test_dash_component_api_gives_the_layers_of_the_picker(page: Page) -> None:
    """view.js reads the layers of the picker to walk through them."""
    layers = page.evaluate("id => window.dash_component_api.getLayout(id).props.data", ids.LAYER_PICKER)
    assert [layer["value"] for layer in layers] == ["1", "2", "3"]


def test_dash_set_props_is_seen_at_once_by_the_component_api(page: Page) -> None:
    """layer.js reads the slider's value after it has set it: keys that come fast are all counted."""
    code = (
        "id => { dash_clientside.set_props(id, { value: '2' }); return dash_component_api.getLayout(id).props.value; }"
    )
    assert page.evaluate(code, ids.LAYER_PICKER) == "2"


def test_the_browser_makes_and_reads_addresses_as_the_server_does(page: Page) -> None:
    """Both sides make the same address for a view, and both read an address or both refuse it."""
    for run, layer in ((1, 2), (31, 10**17)):
        numbers = {"run": str(run), "layer": str(layer)}
        made = page.evaluate("numbers => window.rootDashAddress.make('layer', numbers, { step: 7 })", numbers)
        path, _, query = made.partition("?")
        assert path == address.layer(run, layer)
        assert address.parse(path, query) == address.Address("layer", run, layer, 7)
        assert page.evaluate("path => window.rootDashAddress.read('layer', path)", path) == numbers
        made = page.evaluate("numbers => window.rootDashAddress.make('overview', numbers)", numbers)
        assert made == address.overview(run)
    wrong = ("/r/1", "/r/1/l/x", "/r/1/l/" + "9" * 19, "/x/r/1/l/2", "/r/1/l/2/3", "/r/٣/l/1")
    for path in ("/r/1/l/2", "/r/1/l/2/", *wrong):
        read = page.evaluate("path => window.rootDashAddress.read('layer', path)", path)
        assert (read is not None) == (address.parse(path).page == "layer")


def test_the_graphs_are_drawn_by_our_bundle_of_plotly(page: Page) -> None:
    """The page keeps Dash from loading the full bundle, three times as large."""
    loaded = page.evaluate("performance.getEntriesByType('resource').map(entry => entry.name)")
    plotly = [name for name in loaded if "plotly" in name]
    assert [name.partition("/assets/")[2].partition("?")[0] for name in plotly] == [PLOTLY.stem]
