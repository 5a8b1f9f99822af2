"""From an address to a view and its page, on a real store file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dash import no_update

from root_dash.frontend import bookkeeping, routing
from root_dash.frontend.pages import layer, overview
from root_dash.records import Run
from root_dash.store import Store
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
    assert answer["page"] is None
    assert answer["runs"] == [{"value": "1", "label": "a run"}]
    assert answer["settled"] is True


def test_every_answer_has_the_names_of_its_outputs(store: Store, matrix: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the address, the answer fills each output by its name."""
    for path in ("/", "/r/1", "/r/1/l/1", "/r/99", "/nowhere"):
        assert routing.route(store, path, "", None).keys() == routing.ROUTE.keys()
    with Store.create(tmp_path / "empty.db") as empty:
        assert routing.route(empty, "/", "", None).keys() == routing.ROUTE.keys()
    assert layer.head(store, matrix).keys() == layer.HEAD.keys()
    assert overview.scalars(store, {"run": 1}).keys() == overview.SCALARS.keys()
    assert (
        bookkeeping.header(store, {"run": 1}).keys()
        == bookkeeping.header(store, None).keys()
        == bookkeeping.HEADER.keys()
    )


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_a_layer_with_one_histogram_is_followed(tmp_path: Path, steps: int) -> None:
    """The slider stands at its end, however few steps the run has; elsewhere the page would stop following."""
    with Store.open(record(tmp_path / "x.db", steps, make_layers(1))) as short:
        head = layer.head(short, {"run": 1, "layer": 1, "step": None})
    assert head["follows"]
    assert head["first"] < head["shown"] == head["last"]


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


def test_a_layers_head_names_it_and_its_neighbours(store: Store, matrix: dict[str, Any]) -> None:
    """Name, shape, links around the model, and a slider over the steps that hold histograms."""
    layers = store.layers(1)
    assert layer.head(store, matrix) == {
        "name": "blocks.0.attn.qkv.weight",
        "shape": "16 × 24 · root",
        "back": "/r/1",
        "previous": f"/r/1/l/{layers[4].id}",
        "next": f"/r/1/l/{layers[1].id}",
        "first": 0,
        "last": 60,
        "interval": 10,
        "shown": 60,
        "follows": True,
    }
    for step, shown in ((37, 30), (10**15, 60)):
        head = layer.head(store, {**matrix, "step": step})
        assert (head["shown"], head["follows"]) == (shown, False)
