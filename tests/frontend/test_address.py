"""The address is the state of a view."""

from __future__ import annotations

import pytest

from root_dash.frontend import address
from root_dash.frontend.address import Address, parse


def test_an_address_names_its_view() -> None:
    """Run, layer, step and statistic come from the path and the query."""
    assert parse("/") == Address("newest")
    assert parse("/r/3", "?stat=stable_rank") == Address("overview", 3, None, None, "stable_rank")
    assert parse("/r/3/l/17", "?step=250") == Address("layer", 3, 17, 250)
    assert parse(address.layer(3, 17)) == Address("layer", 3, 17)
    assert parse(address.overview(3)) == Address("overview", 3)


@pytest.mark.parametrize(
    "path",
    ["/nope", "/r/", "/r/x", "/r/-1", "/r/1/l", "/r/1/l/x", "/r/1e3", "/r/٣", "/r/" + "9" * 40, "//r/1", "/r/1/l/2/3"],
)
def test_whatever_is_no_whole_number_is_missing(path: str) -> None:
    """An id is digits and few of them; anything else is no address of ours."""
    assert parse(path).page == "missing"


@pytest.mark.parametrize("search", ["", "?step=x", "?step=-3", "?step=", "?stat=drop table", "?%ff", "nonsense"])
def test_a_bad_query_is_the_default(search: str) -> None:
    """A query that says nothing usable leaves the newest step and the first statistic."""
    assert parse("/r/1", search) == Address("overview", 1, None, None, address.DEFAULT_STATISTIC)
