"""The two kinds of controls that stand in the head of a panel."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import dash_mantine_components as dmc

from root_dash.frontend.layout import aria
from root_dash.frontend.panels.panel import Control


def segmented(control_id: str, label: str, options: Mapping[str, str]) -> Control:
    """Return a control of a few values side by side. `options` maps each value to its text; `label` is for readers."""
    component = partial(
        dmc.SegmentedControl, size="xs", className="far", **aria(label=label),
        data=[{"value": value, "label": text} for value, text in options.items()],
    )  # fmt: skip
    return Control(control_id, tuple(options), component, in_url=True)


def picker(control_id: str, label: str, groups: Mapping[str, Mapping[str, str]], **how: Any) -> Control:
    """Return a control of many values in groups, to open and to search; `how` goes to `Control`."""
    component = partial(
        dmc.Select, allowDeselect=False, searchable=True, size="xs", className="stat-picker", maxDropdownHeight=460,
        **aria(label=label),
        data=[
            {"group": group, "items": [{"value": value, "label": text} for value, text in options.items()]}
            for group, options in groups.items()
        ],
    )  # fmt: skip
    return Control(control_id, tuple(value for options in groups.values() for value in options), component, **how)
