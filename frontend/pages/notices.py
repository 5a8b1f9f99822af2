"""Pages of words: nothing was recorded yet, or there is nothing at this address."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from root_dash.frontend import layout

_WATCH = """from root_dash import ROOT, watch

optimizer = ROOT(ROOT.param_groups(model))
with watch(model, optimizer, db="root-dash.db") as run:
    ...  # your training loop; run.log(loss=loss)"""


def empty() -> Any:
    """Return the page that is shown before the first run: what to do."""
    return layout.notice(
        "No run yet",
        "This page opens the first run by itself as soon as there is one. To see one now:",
        html.Pre("root-dash demo"),
        "Or watch a training script of your own:",
        html.Pre(_WATCH),
    )


def missing(path: str | None, reason: str) -> Any:
    """Return the page of an address that leads nowhere: why, and a link to the newest run."""
    why = f"{reason[:1].upper()}{reason[1:]}." if reason else f"There is no page at {path}."
    return layout.notice("Nothing here", why, dcc.Link("Go to the newest run", href="/"))


def bare() -> Any:
    """Return the page of a run that has ended and holds no frame."""
    return layout.notice(
        "This run holds no frames",
        "It has ended. Either nothing was recorded, or root-dash prune removed what was.",
        dcc.Link("Go to the newest run", href="/"),
    )
