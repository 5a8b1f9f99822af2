"""The grammar of the URL."""

from __future__ import annotations

import pytest

from root_dash.frontend import address
from root_dash.frontend.address import Address, parse
from root_dash.frontend.panels.layer.tensor import TENSOR
from root_dash.frontend.panels.overview.health_map import FILTER, STATISTIC


def test_an_address_names_its_view() -> None:
    """Run, layer, step and statistic come from the path and the query."""
    assert parse("/") == Address("newest")
    assert parse("/r/3", "?stat=stable_rank") == Address("overview", 3, None, None, {"stat": "stable_rank"})
    assert parse("/r/3/l/17", "?step=250") == Address("layer", 3, 17, 250)


@pytest.mark.parametrize(
    "path",
    ["/nope", "/r/", "/r/x", "/r/-1", "/r/1/l", "/r/1/l/x", "/r/1e3", "/r/٣", "/r/" + "9" * 40, "//r/1", "/r/1/l/2/3"],
)
def test_whatever_is_no_whole_number_is_missing(path: str) -> None:
    """An id is at most 18 digits; any other path is no address of the dashboard."""
    assert parse(path).page == "missing"


@pytest.mark.parametrize("search", ["", "?step=x", "?step=-3", "?step=", "?%ff", "nonsense"])
def test_a_bad_query_is_the_default(search: str) -> None:
    """A query without a usable step leaves the newest step."""
    assert parse("/r/1", search).step is None


@pytest.mark.parametrize("search", ["", "?stat=drop table", "?stat=", "?%ff", "?stat"])
def test_a_control_takes_no_value_that_it_does_not_have(search: str) -> None:
    """A query may hold anything; the control then has its first value."""
    assert STATISTIC.value(parse("/r/1", search).query) == "severity"
    assert STATISTIC.value(parse("/r/1", "?stat=stable_rank").query) == "stable_rank"
    assert TENSOR.value(parse("/r/1/l/1", search).query) == "gradient"
    assert TENSOR.value(parse("/r/1/l/1", "?tensor=momentum").query) == "momentum"
    assert (FILTER.value({}), FILTER.value({"only": "<b>*"})) == ("", "<b>*")  # a control without values takes any text


@pytest.mark.parametrize(("run", "layer"), [(1, 1), (3, 17), (10**18 - 1, 10**18 - 1)])
def test_addresses_are_read_back(run: int, layer: int) -> None:
    """An address that was made from a view names the view."""
    assert parse(address.layer(run, layer)) == parse(address.layer(run, layer) + "/") == Address("layer", run, layer)
    assert parse(address.overview(run)) == Address("overview", run)
    assert parse(*address.layer(run, layer, 120).split("?")) == Address("layer", run, layer, 120)
