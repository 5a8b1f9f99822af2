"""Every component's id. A page holds its own; the shell's are always there."""

from __future__ import annotations

from root_dash.records import Kind

# The shell.
URL = "url"
PROVIDER = "provider"
THEME = "theme"
THEME_TOGGLE = "theme-toggle"
VIEW = "view"
"""What the address says: {"page", "run", "layer", "step", "statistic", ...}."""
PAGE = "page"
RUN_PICKER = "run-picker"
LAYER_PICKER = "layer-picker"
STATUS = "status"
STATUS_DOT = "status-dot"
STATUS_TEXT = "status-text"
STATUS_STEP = "status-step"
STATUS_AGE = "status-age"
CURSOR = "cursor"
"""The last frame that the stream told of; `cursor_of` gives the last one that held a kind."""
RETRY = "retry"
CONNECTION = "connection"
"""The bar that `assets/connection.js` shows while the server does not answer."""
CONNECTION_TEXT = "connection-text"
CONNECTION_RETRY = "connection-retry"
QUIET = "quiet"
"""Set by the stream when no frame came for a while; `ENDED` then says whether the run has ended."""
ENDED = "ended"

# The overview.
SUMMARY = "summary"
MAP = "map"
STAT_PICKER = "stat-picker"
STAT_HINT = "stat-hint"

# A layer's page.
LAYER_TITLE = "layer-title"
LAYER_SHAPE = "layer-shape"
BACK = "back"
PREVIOUS_LAYER = "previous-layer"
NEXT_LAYER = "next-layer"
STEP_SLIDER = "step-slider"
STEP_LABEL = "step-label"
EARLIER = "earlier"
LATER = "later"
FOLLOW = "follow"
TENSOR = "tensor"
HISTOGRAM = "histogram"
HISTOGRAM_HINT = "histogram-hint"
QQ = "qq"
QQ_HINT = "qq-hint"
EVOLUTION = "evolution"
EVOLUTION_TITLE = "evolution-title"
SPECTRUM = "spectrum"
SPECTRUM_HINT = "spectrum-hint"
ERRORS = "errors"
MEASURE = "measure"
ERRORS_HINT = "errors-hint"
MASK = "mask"
MASK_HINT = "mask-hint"
STATISTIC_SLOTS = 6


def cursor_of(kind: Kind) -> str:
    """The store that holds the last frame of a kind, so that a panel hears only of what it draws."""
    return f"cursor-{kind}"


def shown(kind: Kind) -> str:
    """The store that says which step the panels of a kind show: None for the newest."""
    return f"shown-{kind}"


def statistic(slot: int) -> str:
    """The graph of one of the small statistics."""
    return f"statistic-{slot}"


def statistic_title(slot: int) -> str:
    """The title of one of the small statistics."""
    return f"statistic-title-{slot}"
