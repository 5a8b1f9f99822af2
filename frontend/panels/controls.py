"""The kinds of controls that stand in the head of a panel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import dash_mantine_components as dmc

from root_dash.frontend.layout import aria
from root_dash.frontend.panels.panel import Control


def segmented(control_id: str, label: str, options: Mapping[str, str], *, rescales: bool = True) -> Control:
    """Return a control of a few values side by side, kept in the URL.

    `options` maps each value to its text; `label` is for readers; `rescales` goes to `Control`.
    """
    component = partial(
        dmc.SegmentedControl, size="xs", className="far", **aria(label=label),
        data=[{"value": value, "label": text} for value, text in options.items()],
    )  # fmt: skip
    return Control(control_id, tuple(options), component, in_url=True, rescales=rescales)


def text(control_id: str, label: str, placeholder: str) -> Control:
    """Return a control of any text, kept in the URL."""
    component = partial(
        dmc.TextInput, size="xs", className="text-control", placeholder=placeholder, debounce=300, **aria(label=label)
    )
    return Control(control_id, (), component, in_url=True, rescales=False)
