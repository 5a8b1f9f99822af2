"""The panels of the overview, in their order: the verdicts, the map, the selected layer."""

from root_dash.frontend.panels.overview import drawer, health_map, verdicts

PANELS = (verdicts.PANEL, health_map.PANEL, *drawer.PANELS)
