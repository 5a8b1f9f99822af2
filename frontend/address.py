"""The grammar of the URL, which is the state of a view: `/r/<run>?stat=…` and `/r/<run>/l/<layer>?step=…`.

The browser makes and reads addresses by the same templates: `layout.shell` gives `GRAMMAR` to the browser.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs

Page = Literal["newest", "overview", "layer", "missing"]

PATHS: Mapping[Page, str] = {"overview": "/r/{run}", "layer": "/r/{run}/l/{layer}"}
"""The template of each page's path. A name in braces stands for a whole number."""
STEP = "step"
"""The name of the shown step in the query."""
SELECTED = "layer"
"""The name of the layer that is selected on the overview in the query."""
_NUMBER = r"\d{1,18}"
"""A regular expression for a whole number, in the common part of Python's and JavaScript's syntax."""

GRAMMAR = json.dumps({"paths": PATHS, "number": _NUMBER, "step": STEP, "selected": SELECTED})
"""The grammar as JSON, for `assets/address.js`."""


@dataclass(frozen=True, slots=True)
class Address:
    """What an address asks for.

    `step` is None for the newest step. `query` holds the first value of every name in the query; a control takes its
    own value from the query and checks the value.
    """

    page: Page
    run: int | None = None
    layer: int | None = None
    step: int | None = None
    query: Mapping[str, str] = field(default_factory=dict)


def _pattern(template: str) -> re.Pattern[str]:
    named = re.sub(r"{(\w+)}", lambda name: f"(?P<{name[1]}>{_NUMBER})", template)
    return re.compile(f"{named}/?", re.ASCII)


_PATTERNS = {page: _pattern(template) for page, template in PATHS.items()}
_WHOLE = re.compile(_NUMBER, re.ASCII)


def parse(path: str | None, search: str | None = None) -> Address:
    """Parse a path and its query; the page is `"missing"` if the path is no address of the dashboard."""
    if path in (None, "", "/"):
        return Address("newest")
    query = {name: values[0] for name, values in parse_qs((search or "").removeprefix("?")).items()}
    step = query.pop(STEP, "")
    for page, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(path or ""):
            numbers = {name: int(number) for name, number in match.groupdict().items()}
            return Address(page, **numbers, step=int(step) if _WHOLE.fullmatch(step) else None, query=query)
    return Address("missing")


def overview(run: int) -> str:
    """Return the path of a run's overview."""
    return PATHS["overview"].format(run=run)


def layer(run: int, layer_id: int, step: int | None = None) -> str:
    """Return the address of a layer's page, at a step or at the newest."""
    path = PATHS["layer"].format(run=run, layer=layer_id)
    return path if step is None else f"{path}?{STEP}={step}"
