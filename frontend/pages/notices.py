"""Pages of words: nothing recorded yet, and nothing at this address."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from root_dash.frontend import layout

_WATCH = """from root_dash import ROOT, watch

optimizer = ROOT(ROOT.param_groups(model))
with watch(model, optimizer, db="root-dash.db") as run:
    ...  # your training loop; run.log(loss=loss)"""


def empty() -> Any:
    """No run yet: what to do."""
    return layout.notice(
        "No run yet",
        "This page opens the first run by itself as soon as there is one. To see one now:",
        html.Pre("root-dash demo"),
        "Or watch a training script of your own:",
        html.Pre(_WATCH),
    )


def missing(path: str | None, reason: str) -> Any:
    """Nothing at this address, and the way back."""
    said = f"{reason[:1].upper()}{reason[1:]}." if reason else f"There is no page at {path}."
    return layout.notice("Nothing here", said, dcc.Link("Go to the newest run", href="/"))
