"""Verdicts in: the frames of a run are judged as they are stored, and verdicts are stored in the frames' transactions.

Verdicts depend on the run's frames and their order alone. So whoever stores the next frame first takes over what others
stored since: the fold of the process goes on, or begins with the state that is stored, and judges the frames after it.

A fold that fails never costs a frame: an event says so, and the process judges no further frame of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection, bindparam, delete, func, select, update

from root_dash.records import Event, Float32Array, Frame, IntArray, Layer, statistic_names
from root_dash.records.verdict import Changes, Verdict, severity_rules, to_json
from root_dash.store.backends.backend import backend_of
from root_dash.store.judge import Fold, Judge
from root_dash.store.limits import Limits
from root_dash.store.read import frames as stored_frames
from root_dash.store.read import queries
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decompress, encode, text

EVENT = "diagnosis"
"""Kind of the event that says that a run is judged no further."""

_Held = TypeVar("_Held")

Tell = Callable[[Changes], object]
"""Gets the changes of verdicts once they are stored."""

_SEVERITY, _RULE = (statistic_names("statistics").index(name) for name in ("severity", "severity_rule"))

_frames, _judged = schema.frames.c, schema.judged.c

# Succeeds if the run's last frame before this one is the last one that the process has judged.
_ADVANCE = (
    update(schema.judged)
    .where(
        _judged.run_id == bindparam("run"),
        _judged.frame_id == bindparam("last"),
        ~select(_frames.id)
        .where(_frames.run_id == bindparam("run"), _frames.id > bindparam("last"), _frames.id < bindparam("frame"))
        .exists(),
    )
    .values(frame_id=bindparam("frame"))
)


class _Stopped(Exception):
    """The run cannot be judged any further; the text says why."""


@dataclass(frozen=True, slots=True)
class _Judged:
    """What the fold made of a frame that may not be stored yet."""

    seq: int
    step: int
    time: float
    changes: Changes
    severities: Float32Array
    """Severity and rule of the frame's layers, (rows, 2)."""

    def is_of(self, frame: Frame) -> bool:
        """Return whether it belongs to a frame. A frame that could not be stored is given again."""
        return (self.seq, self.step, self.time) == (frame.seq, frame.step, frame.time)


class RunJudge:
    """Judges one run in one process, and keeps its verdicts in the database."""

    def __init__(self, judge: Judge, run_id: int, limits: Limits, tell: Tell | None = None) -> None:
        self._judge = judge
        self._run = run_id
        self._limits = limits
        self._tell = tell
        self._fold: Fold | None = None
        self._last = 0  # the last stored frame that the fold has taken
        self._ahead: _Judged | None = None  # the fold has taken this frame as well
        self._frame = 0
        self._untold: list[Changes] = []
        self._layers: list[Layer] = []
        self._slots: dict[int, int] = {}
        self._caught_up = False
        self._unsaved = 0
        self._saved = False
        self._stopped: str | None = None
        self._unsaid: str | None = None

    def judge(self, connection: Connection, frame: Frame, frame_id: int, ids: Mapping[int, int]) -> Frame:
        """Store what a frame changes in the run's verdicts; return the frame with its severities.

        Args:
            connection: inside the transaction that stores the frame.
            frame: the frame, whose row is stored already.
            frame_id: the id of the row.
            ids: the ids of the run's layers by the frame's positions.
        """
        self._frame, self._saved, self._untold = frame_id, False, []
        if self._caught_up:
            self._fold = self._ahead = None  # what was written of the frames before was rolled back
            self._caught_up = False
        if self._stopped is None:
            try:
                frame = with_severities(frame, self._advance(connection, frame, ids).severities)
            except _Stopped as reason:
                self._fold = self._ahead = None
                self._stopped = self._unsaid = str(reason)
        if self._unsaid is not None:
            frame = replace(frame, events=(*frame.events, Event(EVENT, self._unsaid, frame.step, frame.time)))
        return frame

    def keep(self) -> None:
        """Take note that the transaction of the last frame was committed, and tell what it changed."""
        self._unsaid = None
        self._caught_up = False
        if self._ahead is None:
            return
        self._last, self._ahead = self._frame, None
        self._unsaved = 0 if self._saved else self._unsaved + 1
        if self._tell is not None:
            for changes in self._untold:
                self._tell(changes)

    def forget_layers(self) -> None:
        """Look for the run's layers again: some were added."""
        self._slots = {}

    def _advance(self, connection: Connection, frame: Frame, ids: Mapping[int, int]) -> _Judged:
        key = {"run": self._run, "last": self._last, "frame": self._frame}
        alone = self._fold is not None and bool(backend_of(connection).execute(connection, _ADVANCE, key).rowcount)
        if self._ahead is not None and not (alone and self._ahead.is_of(frame)):
            self._fold = self._ahead = None  # the frame that the fold has taken was not stored, or another one before
        if not alone or self._fold is None:
            self._catch_up(connection)
        elif not self._slots:
            self._find_layers(connection)
        if self._ahead is None:
            self._ahead = self._taken(frame, ids)
        self._write(connection, self._ahead.changes, self._frame)
        self._untold.append(self._ahead.changes)
        if self._unsaved + 1 >= self._limits.state_frames:
            self._save(connection)
        return self._ahead

    def _catch_up(self, connection: Connection) -> None:
        """Bring the fold to the frame before this one, and take note that the run is judged up to this one."""
        states = schema.judge_states.c
        self._caught_up = True
        self._find_layers(connection)
        judged = connection.scalar(select(_judged.frame_id).where(_judged.run_id == self._run)) or 0
        newest = connection.scalar(select(states.frame_id).where(states.run_id == self._run)) or 0
        if self._fold is None or newest > self._last:
            self._fold, self._last = self._begun(connection)
            # The fold says again what began since: of frames that were removed it says nothing.
            since = schema.verdicts.c.begun_frame_id > self._last
            connection.execute(delete(schema.verdicts).where(schema.verdicts.c.run_id == self._run, since))
        between = (_frames.run_id == self._run, _frames.id > self._last, _frames.id < self._frame)
        missed = connection.execute(select(func.count()).where(*between)).scalar_one()
        if missed > self._limits.judged_again:
            raise _Stopped(
                f"{missed:,} frames of the run were recorded without diagnosis, too many to be judged now: "
                f"`root-dash diagnose --replay` judges them"
            )
        places = {layer.id: layer.position for layer in self._layers}
        for cursor in list(connection.scalars(select(_frames.id).where(*between).order_by(_frames.id))):
            changes = self._updated(stored_frames.frame(connection, cursor, places))
            self._unsaved += 1
            if cursor > judged:
                self._untold.append(changes)
            self._write(connection, changes, cursor if cursor <= judged else self._frame)
            self._last = cursor
        row = backend_of(connection).insert(schema.judged).values(run_id=self._run, frame_id=self._frame)
        connection.execute(row.on_conflict_do_update(index_elements=["run_id"], set_={"frame_id": self._frame}))

    def _begun(self, connection: Connection) -> tuple[Fold, int]:
        """Return the fold of the state that is stored, and the frame that the state was taken after."""
        row = connection.execute(select(schema.judge_states).where(schema.judge_states.c.run_id == self._run)).first()
        self._unsaved = 0
        if row is not None:
            try:
                known = self._layers[: row.layers]
                fold = self._judge.from_state(known, decompress(row.content, row.size))
                fold.extend(self._layers[row.layers :])
                return fold, row.frame_id
            except Exception:  # noqa: S110 (another version wrote it: the frames are all there)
                pass
        try:
            return self._judge(self._layers), 0
        except Exception as error:
            raise _stopped(error) from error

    def _find_layers(self, connection: Connection) -> None:
        """Look for the run's layers, and add those to the fold that it lacks."""
        known = len(self._layers)
        self._layers = layers_in_order(connection, self._run)
        self._slots = {layer.id: layer.position for layer in self._layers}
        if self._fold is not None:
            try:
                self._fold.extend(self._layers[known:])
            except Exception as error:
                raise _stopped(error) from error

    def _taken(self, frame: Frame, ids: Mapping[int, int]) -> _Judged:
        moved = in_slots(frame, {position: self._slots[layer] for position, layer in ids.items()})
        changes = self._updated(moved)
        assert self._fold is not None
        try:
            # Of a frame without statistics there are no rows.
            slots = np.array([self._slots[ids[position]] for position in frame.layers.tolist()], np.int64)
            scores, rules = self._fold.scores[slots], self._fold.worst_rules[slots]
            severities = np.stack([scores.astype(np.float32), severity_rules(scores, rules)], -1)
        except Exception as error:
            raise _stopped(error) from error
        return _Judged(frame.seq, frame.step, frame.time, changes, severities)

    def _updated(self, frame: Frame) -> Changes:
        assert self._fold is not None
        try:
            return self._fold.update(with_severities(frame, np.nan))
        except Exception as error:
            raise _stopped(error) from error

    def _write(self, connection: Connection, changes: Changes, cursor: int) -> None:
        """Store verdicts in their new form."""
        # The last form of each: PostgreSQL refuses to write a row twice.
        verdicts = {verdict.id: verdict for verdict in changes.all()}
        if not verdicts:
            return
        rows = [self._row(verdict, cursor) for verdict in verdicts.values()]
        into = backend_of(connection).insert(schema.verdicts)
        kept = ("run_id", "number", "begun_frame_id")
        changed = {name: column for name, column in into.excluded.items() if name not in kept}
        connection.execute(into.on_conflict_do_update(index_elements=["run_id", "number"], set_=changed), rows)

    def _row(self, verdict: Verdict, cursor: int) -> dict[str, Any]:
        return {
            "run_id": self._run,
            "number": verdict.id,
            "layer_id": None if verdict.layer is None else self._layers[verdict.layer].id,
            "rule": text(verdict.rule),
            "severity": verdict.severity,
            "since": verdict.since,
            "until": verdict.until,
            "text": text(verdict.text),
            "evidence": json.dumps(to_json(verdict)["evidence"]),
            "under": verdict.under,
            "candidates": json.dumps([self._layers[slot].id for slot in verdict.candidates]),
            "begun_frame_id": cursor,
            "frame_id": cursor,
        }

    def _save(self, connection: Connection) -> None:
        """Store the state of the fold after this frame."""
        assert self._fold is not None
        try:
            state = self._fold.state()
        except Exception as error:
            raise _stopped(error) from error
        row = {
            "frame_id": self._frame,
            "layers": len(self._layers),
            "size": len(state),
            "content": encode(state, "|u1", compress=True),
        }
        into = backend_of(connection).insert(schema.judge_states).values(run_id=self._run, **row)
        connection.execute(into.on_conflict_do_update(index_elements=["run_id"], set_=row))
        self._saved = True


def _stopped(error: Exception) -> _Stopped:
    reason = f"{type(error).__name__}: {error}"
    return _Stopped(f"the diagnosis failed, and judges no frame of the run until its process begins anew: {reason}")


def layers_in_order(connection: Connection, run_id: int) -> list[Layer]:
    """Return a run's layers in the order in which they were stored, which is their position.

    Attempts at the run may count the layers otherwise.
    """
    columns = schema.layers.c
    query = select(schema.layers).where(columns.run_id == run_id).order_by(columns.id)
    return [replace(queries.to_layer(row), position=slot) for slot, row in enumerate(connection.execute(query))]


def with_severities(frame: Frame, severities: Float32Array | float) -> Frame:
    """Return a frame with other severities and rules, (rows, 2): what a fold makes, it must not read."""
    if not len(frame.layers):
        return frame
    statistics = frame.statistics.copy()
    statistics[:, [_SEVERITY, _RULE]] = severities
    return replace(frame, statistics=statistics)


def in_slots(frame: Frame, slots: Mapping[int, int]) -> Frame:
    """Return a frame whose positions are slots: the places of the layers in the order in which they were stored."""
    if all(position == slot for position, slot in slots.items()):
        return frame
    layers: IntArray = np.array([slots[position] for position in frame.layers.tolist()], np.int64)
    order = np.argsort(layers)

    def moved(held: Mapping[int, _Held]) -> dict[int, _Held]:
        return {slots[position]: one for position, one in held.items()}

    return replace(
        frame,
        layers=layers[order],
        statistics=frame.statistics[order],
        histograms=moved(frame.histograms),
        quantiles=moved(frame.quantiles),
        spectra=moved(frame.spectra),
        masks=moved(frame.masks),
    )
