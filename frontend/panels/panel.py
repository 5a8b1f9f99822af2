"""A panel: a card of a page, described by an object.

A file `panels/<page>/<name>.py` makes a `PANEL`, and the page's list names it. The page's layout, the ids of the
components and the callbacks follow from the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go

from root_dash.frontend.judgement import Judgement, judgement
from root_dash.frontend.theme import Theme
from root_dash.records import Kind

if TYPE_CHECKING:
    from root_dash.store import Store

Shows = Literal["step", "history", "both"]
"""What a panel shows: the recording at the shown step, all recordings, or all of them with the shown step's value."""


@dataclass(frozen=True, slots=True)
class Control:
    """A control in the head of a panel: its id, its values, and how to make its component.

    A control without `values` takes any text, and is empty at first. `component` takes `id` and `value`. If `in_url` is
    true, the value is kept in the URL's query under the control's id. `rescales` says whether another value gives the
    axes another meaning, so that a zoom must not be kept.
    """

    id: str
    values: tuple[str, ...]
    component: Callable[..., Any]
    in_url: bool = False
    rescales: bool = True

    def value(self, query: Mapping[str, str]) -> str:
        """Return the control's value in a query; the first of its values if the query has none of them."""
        wanted = query.get(self.id) if self.in_url else None
        if not self.values:
            return wanted or ""
        return wanted if wanted in self.values else self.values[0]


@dataclass(frozen=True, slots=True)
class Selection:
    """What the user looks at in a store: a run, a layer (or 0), a step (None: the newest), the values of controls."""

    store: Store
    run: int
    layer: int = 0
    step: int | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    judge: Callable[[Store, int], Judgement] = judgement

    @property
    def judgement(self) -> Judgement:
        """Return the verdicts of the run so far."""
        return self.judge(self.store, self.run)


@dataclass(frozen=True, slots=True)
class Drawing:
    """What a panel draws: a figure or components; a title and a hint if they differ from the panel's own."""

    body: Any
    title: Any = None
    hint: Any = None


@dataclass(frozen=True, slots=True)
class Panel:
    """A card of a page.

    Args:
        id: the id of the figure. The ids of title and hint are derived from this id.
        title: the title; empty for a panel without a card, which is a line of words on the page.
        hint: how to read the panel, in under ten words.
        read: reads from the store what the panel draws, by name.
        draw: makes a drawing from a theme and from what was read, as keyword arguments.
        kind: the panel is drawn again when a frame brings this kind; None: when any frame comes.
        shows: see `Shows`.
        controls: the controls whose values the panel reads. A control stands in the head of the page's first panel
            that reads it.
        words: the drawing is components instead of a figure.
        label: what a screen reader says of the figure; the title, if empty.
        note: a second hint at the head's right end: what can be done with the panel.
        click: the function in `assets/overview.js` that answers a click on the figure.
        selected: the panel shows the layer and the step that are selected on the map, instead of the page's.
        className: the CSS classes of the card.

    Raises:
        ValueError: the panel shows a step, but of no kind.
    """

    id: str
    title: str
    hint: str
    read: Callable[[Selection], Mapping[str, Any]]
    draw: Callable[..., Drawing]
    kind: Kind | None = None
    shows: Shows = "history"
    controls: tuple[Control, ...] = ()
    words: bool = False
    label: str = ""
    note: str = ""
    click: str = ""
    selected: bool = False
    className: str = "wide"

    def __post_init__(self) -> None:
        if self.shows != "history" and self.kind is None:
            raise ValueError(f"panel {self.id!r}: kind must be named if the panel shows {self.shows!r}, not None")

    @property
    def title_id(self) -> str:
        """Return the id of the title."""
        return f"{self.id}-title"

    @property
    def hint_id(self) -> str:
        """Return the id of the hint."""
        return f"{self.id}-hint"

    def answer(self, selection: Selection, theme: Theme) -> dict[str, Any]:
        """Read and draw the panel; return what its callback answers: body and, if it has a card, title and hint."""
        drawing = self.draw(theme, **self.read(selection))
        if isinstance(drawing.body, go.Figure):
            self._keep_zoom(drawing.body, selection)
        if not self.title:
            return {"body": drawing.body}
        title, hint = drawing.title, drawing.hint
        return {
            "body": drawing.body,
            "title": self.title if title is None else title,
            "hint": self.hint if hint is None else hint,
        }

    def _keep_zoom(self, figure: go.Figure, selection: Selection) -> None:
        """Tie a figure's zoom to what the figure shows: a zoom survives an update, but not a change of layer."""
        what = [str(selection.values[control.id]) for control in self.controls if control.rescales]
        plot = figure.layout.uirevision or self.id
        figure.layout.uirevision = " ".join([plot, str(selection.layer or selection.run), *what])


def kinds_at_step(panels: Iterable[Panel], *, selected: bool = False) -> list[Kind]:
    """Return the kinds of the panels that show the page's step, or the selected step, each kind once."""
    kinds = (panel.kind for panel in panels if panel.shows != "history" and panel.selected == selected)
    return list(dict.fromkeys(kind for kind in kinds if kind is not None))
