"""Inks, the meanings of colours, and the two Plotly templates: light and dark.

Every colour has a fixed meaning: blue the data, vermilion beyond the threshold or sick, green ROOT or healthy, amber
Muon or a warning, purple the paper's table, grey the momentum before, dashed ink the ideal. The colours are Okabe and
Ito's, which people with any colour vision can tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'
MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'

BLUE = "#3b82c4"
VERMILION = "#d55e00"
GREEN = "#009e73"
AMBER = "#e69f00"
PURPLE = "#aa6fb0"

Stops = tuple[tuple[float, str], ...]
"""A colour scale: positions in ascending order, from 0 to 1 (from -1 if the scale has two sides)."""


@dataclass(frozen=True, slots=True)
class Theme:
    """The inks and colour scales that differ between light and dark paper."""

    name: Literal["light", "dark"]
    paper: str
    card: str
    line: str
    ink: str
    second: str
    grey: str
    """The ink of the momentum before the outliers are removed."""
    band: str
    """The ink of a confidence band behind the data."""
    curve: str
    """The ink of the band between the least and the largest values of a curve."""
    density: Stops
    """The scale of a density, from nothing to much, in the blue of the data."""
    zero: str
    """The colour of a cell of the map whose value is exactly 0, which no logarithmic scale has."""
    severity: Stops
    """The scale of the map: low values (-1), the middle (0, almost the paper), high values (1)."""
    words: Mapping[str, str]
    """The inks of words that name a coloured line: the same hues, with enough contrast for small text."""

    @property
    def template(self) -> go.layout.Template:
        """Return the template of every figure on this paper."""
        axis = {
            "gridcolor": self.line,
            "linecolor": self.line,
            "zeroline": False,
            "ticks": "",
            "exponentformat": "e",
            "minexponent": 4,
            "title": {"font": {"size": 11, "color": self.second}, "standoff": 6},
            "automargin": True,
            "ticklabelstandoff": 4,
        }
        return go.layout.Template(
            layout={
                "font": {"family": SANS, "size": 11, "color": self.second},
                "paper_bgcolor": "rgba(0,0,0,0)",
                "plot_bgcolor": "rgba(0,0,0,0)",
                "margin": {"l": 8, "r": 8, "t": 6, "b": 6},
                "xaxis": axis,
                "yaxis": axis,
                "showlegend": False,
                "hoverlabel": {
                    "bgcolor": self.card,
                    "bordercolor": self.line,
                    "font": {"family": SANS, "size": 12, "color": self.ink},
                    "align": "left",
                },
                "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": self.second, "activecolor": BLUE},
                "annotationdefaults": {"showarrow": False, "font": {"size": 11}},
                "separators": ".,",
            }
        )


_SEVERITY = (-1.0, -0.6, -0.25, 0.0, 0.25, 0.4, 0.6, 0.8, 1.0)
"""The positions of the colours in the scale of the map."""


def _severity(*colours: str) -> Stops:
    return tuple(zip(_SEVERITY, colours, strict=True))


LIGHT = Theme(
    name="light",
    paper="#f6f7f9",
    card="#ffffff",
    line="#e9edf2",
    ink="#1b2430",
    second="#667085",
    grey="#7b8494",
    band="rgba(102,112,133,0.14)",
    curve="rgba(59,130,196,0.24)",
    density=((0.0, "#f3f7fb"), (0.35, "#b5d3ec"), (0.7, "#3b82c4"), (1.0, "#173f70")),
    zero="#a9b1be",
    severity=_severity(
        "#2c6aa8", "#8dbbe0", "#e8edf3", "#eef1f5", "#f0efeb", "#fbd38b", "#f58e5c", "#d23f76", "#5e1a66"
    ),
    words={BLUE: "#2b6ca6", VERMILION: "#b34e00", GREEN: "#007a59", AMBER: "#946500", PURPLE: "#8b4f91"},
)

DARK = Theme(
    name="dark",
    paper="#10141b",
    card="#171c25",
    line="#2a3140",
    ink="#e8eaed",
    second="#9aa4b2",
    grey="#8b95a5",
    band="rgba(154,164,178,0.20)",
    curve="rgba(59,130,196,0.32)",
    density=((0.0, "#1b2330"), (0.35, "#2b5680"), (0.7, "#4f9bdc"), (1.0, "#b4d9fb")),
    zero="#586274",
    severity=_severity(
        "#86bdf0", "#3d6f9e", "#212c3b", "#1f2734", "#272932", "#70403a", "#c0583f", "#f08a5d", "#ffe0a3"
    ),
    words={BLUE: "#6aa9e0", VERMILION: "#f0803c", GREEN: "#2bb88d", AMBER: "#e9ab22", PURPLE: "#c790cb"},
)


def theme(name: str | None) -> Theme:
    """Return the theme of a name; light for any other name than dark."""
    return DARK if name == "dark" else LIGHT


def scale(stops: Stops) -> list[list[float | str]]:
    """Return stops as Plotly takes them: with positions from 0 to 1."""
    low, high = stops[0][0], stops[-1][0]
    return [[(at - low) / (high - low), colour] for at, colour in stops]
