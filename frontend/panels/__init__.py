"""The panels of every page: a page is a list of panels, and a panel is a file."""

from __future__ import annotations

from collections.abc import Mapping

from root_dash.frontend.address import Page
from root_dash.frontend.panels import layer, overview
from root_dash.frontend.panels.panel import Panel

Panels = Mapping[Page, tuple[Panel, ...]]

PANELS: Panels = {"overview": overview.PANELS, "layer": layer.PANELS}
