"""From an address to a view and its page, on a real store file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dash import no_update

from root_dash.frontend import bookkeeping, routing
from root_dash.frontend.pages import layer, overview
from root_dash.frontend.panels import PANELS
from root_dash.frontend.runs import Runs
from root_dash.frontend.theme import GREEN
from root_dash.records import Run
from root_dash.store import Store, prune
from tests.frontend.test_layout import components
from tests.store.frames import make_layers, record

STEPS = 61


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A finished run of 61 steps and five layers; the last layer is a vector."""
    path = record(tmp_path_factory.mktemp("routing") / "a.db", STEPS, make_layers(5))
    with Store.open(path) as opened:
        yield opened


@pytest.fixture
def matrix(store: Store) -> dict[str, Any]:
    """The view of a matrix under ROOT."""
    return {"page": "layer", "run": 1, "layer": store.layers(1)[0].id, "step": None}


def test_the_root_address_points_to_the_newest_run(store: Store) -> None:
    """`/` has no page of its own if there is a run."""
    answer = routing.route(store, "/", "", None)
    assert answer["view"]["to"] == "/r/1"
    assert answer["view"]["page"] == "overview"
    assert [(run["value"], run["label"]) for run in answer["runs"]] == [("1", "a run")]
    assert answer["settled"] is True


def test_every_answer_has_the_names_of_its_outputs(store: Store, matrix: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the address, the answer fills each output by its name."""
    for path in ("/", "/r/1", "/r/1/l/1", "/r/99", "/nowhere"):
        assert routing.route(store, path, "", None).keys() == routing.ROUTE.keys()
    with Store.create(tmp_path / "empty.db") as empty:
        assert routing.route(empty, "/", "", None).keys() == routing.ROUTE.keys()
    assert layer.head(store, PANELS["layer"], matrix).keys() == layer.HEAD.keys()
    assert overview.scalars(store, {"run": 1}).keys() == overview.SCALARS.keys()
    assert (
        bookkeeping.header(store, {"run": 1}).keys()
        == bookkeeping.header(store, None).keys()
        == bookkeeping.HEADER.keys()
    )


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_layer_with_one_histogram_is_followed(tmp_path: Path, steps: int) -> None:
    """The slider has two ends, however few steps the run has; its upper end is the newest step."""
    with Store.open(record(tmp_path / "x.db", steps, make_layers(1))) as short:
        head = layer.head(short, PANELS["layer"], {"run": 1, "layer": 1, "step": None})
    assert head["first"] < head["last"]
    assert sum(1 + (last - first) // every for first, last, every in head["steps"]) == (1 if steps else 0)


def test_runs_of_several_processes_are_told_apart(tmp_path: Path) -> None:
    """The runs of several processes bear one name, so the picker adds the rank to all but the first."""
    with Store.create(tmp_path / "x.db") as several:
        for rank in range(2):
            several.begin(Run(f"run-{rank}", "a run", float(rank), rank=rank), make_layers())
        runs = routing.route(several, "/r/1", "", None)["runs"]
    assert [run["label"] for run in runs] == ["a run · rank 1", "a run"]


def test_an_empty_store_says_what_to_run_and_looks_again(tmp_path: Path) -> None:
    """Without a run the page says how to make one, and asks for a run by itself."""
    with Store.create(tmp_path / "empty.db") as empty:
        answer = routing.route(empty, "/", "", None)
    assert answer["view"] == {"page": "empty"}
    assert "root-dash demo" in str(answer["page"])
    assert answer["runs"] == []
    assert answer["settled"] is False


@pytest.mark.parametrize("path", ["/nope", "/r/99", "/r/1/l/999", "/r/999999999999999999", "/r/1/l/1e3"])
def test_an_address_of_nothing_is_a_page_of_words(store: Store, path: str) -> None:
    """For unknown paths, runs and layers the page shows the way back."""
    answer = routing.route(store, path, "", None)
    assert answer["view"] == {"page": "missing"}
    assert "Nothing here" in str(answer["page"])


def test_a_layer_of_another_run_is_missing(tmp_path: Path) -> None:
    """The layer must belong to the run of the address."""
    record(tmp_path / "two.db", 2, uid="one")
    record(tmp_path / "two.db", 2, uid="two")
    with Store.open(tmp_path / "two.db") as both:
        other = both.layers(2)[0].id
        assert routing.route(both, f"/r/1/l/{other}", "", None)["view"] == {"page": "missing"}


def test_walking_from_layer_to_layer_keeps_the_page(store: Store, matrix: dict[str, Any]) -> None:
    """The figures of the next layer are drawn into the same cards: nothing jumps."""
    path = f"/r/1/l/{store.layers(1)[1].id}"
    answer = routing.route(store, path, "?step=20", matrix)
    view = answer["view"]
    assert answer["page"] is no_update
    assert (view["layer"], view["step"], view["ended"]) == (store.layers(1)[1].id, 20, True)
    assert view["latest"]["step"] == STEPS - 1
    assert "step-slider" in str(routing.route(store, path, "", {"page": "overview"})["page"])


@pytest.mark.parametrize(("search", "shown"), [("?stat=stable_rank", "stable_rank"), ("?stat=no", "severity")])
def test_the_address_sets_the_controls_of_a_page(store: Store, search: str, shown: str) -> None:
    """The overview opens with the statistic of its address, and with the first if the address names no statistic."""
    page = routing.route(store, "/r/1", search, {"page": "overview"})["page"]
    assert [part.value for part in components(page) if getattr(part, "id", "") == "stat"] == [shown]


@pytest.mark.parametrize(
    ("search", "place"), [("?layer={}&step=20", 2), ("?layer=999", None), ("?layer=x", None), ("", None)]
)
def test_an_overview_selects_the_layer_of_its_address(store: Store, search: str, place: int | None) -> None:
    """The address keeps the selected layer; a layer that the run does not have selects nothing."""
    layers = store.layers(1)
    view = routing.route(store, "/r/1", search.format(layers[2].id), None)["view"]
    assert view["chosen"] == (None if place is None else layers[place].id)
    assert view["layer"] is None


def test_a_quiet_run_is_asked_whether_it_has_ended(store: Store, tmp_path: Path) -> None:
    """The answer is the id of a run that has ended, and None for a run that only pauses."""
    assert routing.ended(store, {"run": 1}) == 1
    assert routing.ended(store, {"page": "empty"}) is None
    with Store.open(record(tmp_path / "live.db", 3, end=False)) as live:
        assert routing.ended(live, {"run": 1}) is None


def test_a_layers_head_names_it_and_its_steps(store: Store, matrix: dict[str, Any]) -> None:
    """Name, shape, and a slider over the recorded steps. A run that has ended is not followed, but shown at its end."""
    assert layer.head(store, PANELS["layer"], matrix) == {
        "name": "blocks.0.attn.qkv.weight",
        "shape": "16 × 24 · root",
        "whole": "blocks.0.attn.qkv.weight",
        "steps": [[0, 60, 10]],
        "first": 0,
        "last": 60,
        "follow": "follow",
        "colour": GREEN,
    }
    assert layer.head(store, PANELS["layer"], {**matrix, "ended": True})["follow"] == "newest"


@pytest.mark.parametrize(("like", "to"), [("1", "/r/2/l/3"), ("2", "/r/2"), ("99", "/r/2"), ("x", "/r/2")])
def test_a_run_is_asked_for_the_layer_of_the_same_name(tmp_path: Path, like: str, to: str) -> None:
    """The run switch of a layer's page stays on the layer if the other run has it; the rest of the view is kept."""
    record(tmp_path / "two.db", 2, make_layers(2), uid="one")
    record(tmp_path / "two.db", 2, make_layers(1), uid="two")
    with Store.open(tmp_path / "two.db") as both:
        view = routing.route(both, "/r/2", f"?like={like}&step=20&stat=grad_std", None)["view"]
    assert view["to"] == f"{to}?step=20&stat=grad_std"
    assert (view["run"], view["page"]) == (2, "layer" if "/l/" in to else "overview")


def test_a_value_that_a_control_does_not_have_is_named(store: Store) -> None:
    """The page says what it shows instead; a value that the control has needs no words."""
    said = [str(routing.route(store, "/r/1", search, None)["page"]) for search in ("?stat=<b>no", "?stat=grad_std", "")]
    assert "asks for stat “<b>no”, which is unknown. It shows severity." in said[0]
    assert ["which is unknown" in words for words in said] == [True, False, False]


def test_a_run_that_was_pruned_says_so(tmp_path: Path) -> None:
    """A run that has ended waits for no first frame; an open page hears that its frames are gone."""
    with Store.create(record(tmp_path / "a.db", 5)) as pruned:
        listed = Runs(pruned)
        before = routing.route(pruned, "/r/1", "", None, listed=listed)
        assert listed.again(1, before["view"], before["runs"]) == {
            name: no_update for name in ("runs", "gone", "judged")
        }
        prune(tmp_path / "a.db", before=1e12, dry_run=False)
        answer = routing.route(pruned, "/r/1", "", before["view"], listed=listed)
        again = listed.again(2, before["view"], before["runs"])
    assert "This run holds no frames" in str(answer["page"])
    assert again["gone"] == 2
    assert again["runs"][0]["step"] == "–"
