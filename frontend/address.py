"""The address is the state of a view: `/r/<run>?stat=…` and `/r/<run>/l/<layer>?step=…`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qs

from root_dash.records import STATISTICS

Page = Literal["newest", "overview", "layer", "missing"]

DEFAULT_STATISTIC = "grad_norm"

_PATH = re.compile(r"/r/(?P<run>\d{1,18})(?:/l/(?P<layer>\d{1,18}))?/?", re.ASCII)
_WHOLE = re.compile(r"\d{1,18}", re.ASCII)
_NAMES = frozenset(s.name for s in STATISTICS)


@dataclass(frozen=True, slots=True)
class Address:
    """What an address asks for. `step` is None for the newest, `statistic` always one that exists."""

    page: Page
    run: int | None = None
    layer: int | None = None
    step: int | None = None
    statistic: str = DEFAULT_STATISTIC


def parse(path: str | None, search: str | None = None) -> Address:
    """The address of a path and its query; `"missing"` for whatever is none of ours."""
    if path in (None, "", "/"):
        return Address("newest")
    match = _PATH.fullmatch(path or "")
    if match is None:
        return Address("missing")
    query = parse_qs((search or "").removeprefix("?"))
    step, wanted = query.get("step", [""])[0], query.get("stat", [""])[0]
    return Address(
        page="layer" if match["layer"] else "overview",
        run=int(match["run"]),
        layer=int(match["layer"]) if match["layer"] else None,
        step=int(step) if _WHOLE.fullmatch(step) else None,
        statistic=wanted if wanted in _NAMES else DEFAULT_STATISTIC,
    )


def overview(run: int) -> str:
    """The path of a run's overview."""
    return f"/r/{run}"


def layer(run: int, layer_id: int) -> str:
    """The path of a layer's page."""
    return f"/r/{run}/l/{layer_id}"
