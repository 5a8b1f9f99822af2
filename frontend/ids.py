"""The ids of the components of the shell and of the pages. The ids of a panel's parts follow from its own id."""

from __future__ import annotations

from root_dash.records import Kind

# The shell.
URL = "url"
PROVIDER = "provider"
THEME = "theme"
THEME_TOGGLE = "theme-toggle"
VIEW = "view"
"""The store with the view of the address: {"page", "run", "layer", "step", ...}."""
PAGE = "page"
RUN_PICKER = "run-picker"
LAYER_PICKER = "layer-picker"
STATUS = "status"
STATUS_DOT = "status-dot"
STATUS_TEXT = "status-text"
STATUS_STEP = "status-step"
STATUS_AGE = "status-age"
RETRY = "retry"
RUNS = "runs"
"""The interval at which the list of runs is asked for again."""
JUDGED = "judged"
"""The store that changes when the server has judged more of a run that was recorded without diagnosis."""
GONE = "gone"
"""The store for the notice that the run of the view has lost its frames."""
SHORTCUTS = "shortcuts"
CONNECTION = "connection"
"""The bar of `assets/connection.js`, shown while the server does not answer."""
CONNECTION_TEXT = "connection-text"
CONNECTION_RETRY = "connection-retry"
QUIET = "quiet"
"""The store for the stream's notice of a quiet run; `ENDED` then tells whether the run has ended."""
ENDED = "ended"

BOOKKEEPING = "bookkeeping"
"""What recording costs and whether frames were lost, small in the header."""

# The overview.
SELECTED = "selected"
"""The store that says which layer, at which step, the user selected on the map: {"layer", "step"}, or None for both."""
OPENED = "opened"
"""The blocks of the map whose layers are shown."""
SCALARS = "scalars"
UNFOLD = "unfold"
"""The button that shows the map on a phone."""

# A layer's page.
LAYER_TITLE = "layer-title"
LAYER_SHAPE = "layer-shape"
STEPS = "steps"
"""The store with the recorded steps, as `steps.stretches` returns them."""
STEP_SLIDER = "step-slider"
STEP_LABEL = "step-label"
EARLIER = "earlier"
LATER = "later"
FOLLOW = "follow"


def cursor(kind: Kind | None = None) -> str:
    """Return the id of the store with a run's last frame of a kind; if None, of any kind."""
    return "cursor" if kind is None else f"cursor-{kind}"


def shown(kind: Kind) -> str:
    """Return the id of the store with the step that the panels of a kind show; the step is None for the newest."""
    return f"shown-{kind}"


def selected(kind: Kind) -> str:
    """Return the id of the store with the layer and the step that the selection's panels of a kind show."""
    return f"selected-{kind}"
