"""A recorded run judged anew, in memory: nothing is written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from root_dash.records import Layer
from root_dash.records.verdict import Verdict
from root_dash.store.judge import Fold, Judge
from root_dash.store.read import frames, queries
from root_dash.store.store import Store
from root_dash.store.write.judging import layers_in_order, with_severities


class Replay:
    """Judges a run from its first frame on, some frames at a time, and goes on if the run has grown since.

    A fold that fails raises its error, and fails at the same frame again.
    """

    def __init__(self, store: Store, run_id: int, judge: Judge) -> None:
        self._store = store
        self._run = run_id
        self._judge = judge
        self._fold: Fold | None = None
        self._layers: list[Layer] = []
        self._places: dict[int, int] = {}
        self._verdicts: dict[int, Verdict] = {}
        self.cursor = 0
        """Last frame that was judged; 0 before the first."""

    @property
    def verdicts(self) -> list[Verdict]:
        """The verdicts so far, by id. The layer of a verdict is its place in `Store.layers`."""
        found = self._verdicts
        return [found[number] for number in sorted(found)]

    def advance(self, limit: int = 64) -> bool:
        """Judge the next frames, at most `limit`, and return whether there may be more.

        Raises:
            NotRecorded: the store has no such run.
            StoreError: the database cannot be read.
        """
        notices = self._store.frames(self._run, self.cursor, limit)
        if not notices:
            return False
        with self._store._reading() as connection:
            layers = layers_in_order(connection, self._run)
            if self._fold is None:
                self._fold = self._judge(layers)
            else:
                self._fold.extend(layers[len(self._layers) :])
            self._layers = layers
            model = {layer.id: place for place, layer in enumerate(queries.layers_of(connection, self._run))}
            self._places = {layer.position: model[layer.id] for layer in layers}
            slots = {layer.id: layer.position for layer in layers}
            for notice in notices:
                frame = with_severities(frames.frame(connection, notice.id, slots), np.nan)
                changes = self._fold.update(frame)
                if changes:  # a new dictionary: another thread may be reading the old one
                    self._verdicts = self._verdicts | {one.id: self._placed(one, notice.id) for one in changes.all()}
                self.cursor = notice.id
        return len(notices) == limit

    def _placed(self, verdict: Verdict, cursor: int) -> Verdict:
        layer = None if verdict.layer is None else self._places[verdict.layer]
        candidates = tuple(self._places[slot] for slot in verdict.candidates)
        return replace(verdict, layer=layer, candidates=candidates, cursor=cursor)
