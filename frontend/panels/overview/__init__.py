"""The panels of the overview, in their order."""

from root_dash.frontend.panels.overview import loss_map, summary

PANELS = (summary.PANEL, loss_map.PANEL)
