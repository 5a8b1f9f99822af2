"""The verdicts of a run and who made them: the recording, or the server if the run was recorded without diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from root_dash.records.verdict import Verdict

if TYPE_CHECKING:
    from root_dash.store import Store

JudgeAnew = Callable[[int], tuple[Literal["replayed", "pending", "failed"], Sequence[Verdict]]]
"""Judges a run by its number, bit by bit: returns how far the run is judged, and the verdicts so far."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdicts of a run so far. `progress` is `"unjudged"` if nobody judges the run."""

    progress: Literal["stored", "replayed", "pending", "failed", "unjudged"]
    verdicts: Sequence[Verdict] = ()

    @property
    def whole(self) -> bool:
        """Return whether all frames are judged."""
        return self.progress in ("stored", "replayed")

    @property
    def revision(self) -> tuple[str, int, int]:
        """Return what changes with every verdict that is added or changed."""
        return self.progress, len(self.verdicts), max((one.cursor for one in self.verdicts), default=0)


def judgement(store: Store, run_id: int, replay: JudgeAnew | None = None) -> Judgement:
    """Return the judgement of a run; `replay` judges runs whose verdicts are not stored.

    Raises:
        NotRecorded: the store has no such run.
    """
    if store.is_judged(run_id):
        return Judgement("stored", store.verdicts(run_id))
    return Judgement("unjudged", store.verdicts(run_id)) if replay is None else Judgement(*replay(run_id))
