"""The store: a database of runs, written by trainers and read by any number of viewers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sqlalchemy import func, select

from root_dash.exceptions import NotRecorded
from root_dash.records import (
    KINDS,
    QUANTILE_COUNT,
    Attempt,
    CountArray,
    Event,
    Frame,
    Grid,
    Histogram,
    HistogramHistory,
    History,
    IntArray,
    Kind,
    Layer,
    Mask,
    Notice,
    OutlierCounts,
    Quantiles,
    Run,
    Spectrum,
    TensorName,
    statistic_names,
)
from root_dash.records.verdict import Verdict
from root_dash.store.backends.notifications import Follower
from root_dash.store.database import Database
from root_dash.store.pyramid import downsampling, views
from root_dash.store.pyramid.buckets import Buckets
from root_dash.store.read import frames, queries, verdicts
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode
from root_dash.store.tables.histogram_codec import unpack
from root_dash.store.write import attempts, outlier_counts


class Store(Database):
    """Runs in one database. `Store.open` reads it, also while a trainer writes; `Store.create` writes it too.

    The read verbs may be called from any thread. A verb that takes a step answers with the latest recording at or
    before the step, or without a step with the newest recording; the record says its step. A step outside 64 bits is a
    ValueError, and what is not in the store is a NotRecorded error.
    """

    # Runs, layers and frames

    def runs(self) -> list[Run]:
        """Return all runs, the newest first."""
        with self._reading() as connection:
            return queries.runs(connection)

    def run(self, run_id: int) -> Run:
        """Return the run with this id."""
        with self._reading() as connection:
            found = queries.runs(connection, run_id)
        if not found:
            raise NotRecorded(f"there is no run {run_id}")
        return found[0]

    def layers(self, run_id: int) -> list[Layer]:
        """Return a run's layers in the order of the model."""
        with self._reading() as connection:
            return queries.layers_of(connection, run_id)

    def layer(self, layer_id: int) -> Layer:
        """Return the layer with this id."""
        with self._reading() as connection:
            row = connection.execute(select(schema.layers).where(schema.layers.c.id == layer_id)).first()
        if row is None:
            raise NotRecorded(f"there is no layer {layer_id}")
        return queries.to_layer(row)

    def run_of(self, layer_id: int) -> int:
        """Return the id of a layer's run."""
        with self._reading() as connection:
            return queries.run_of(connection, layer_id)

    def frames(self, run_id: int, after: int = 0, limit: int = 1000) -> list[Notice]:
        """Return at most `limit` frames of a run with a cursor beyond `after`, in the order of storing."""
        with self._reading() as connection:
            ids = self._backend.frame_ids()
            query = queries.notices_query(run_id).where(ids > after).order_by(ids).limit(limit)
            found = [queries.to_notice(row) for row in connection.execute(query)]
            if not found:
                queries.require_run(connection, run_id)
        return found

    @contextmanager
    def following(self, run_id: int) -> Iterator[Follower]:
        """Follow a run in an event loop: the follower's `wait` returns when the run may have new frames."""
        if self._listener is None:
            yield Follower()
            return
        with self._listener.following(run_id) as follower:
            yield follower

    def latest(self, run_id: int) -> Notice | None:
        """Return the newest frame of a run, or None while the run has no frame."""
        with self._reading() as connection:
            newest = queries.notices_query(run_id).order_by(self._backend.frame_ids().desc()).limit(1)
            row = connection.execute(newest).first()
            if row is None:
                queries.require_run(connection, run_id)
        return None if row is None else queries.to_notice(row)

    def frame(self, cursor: int) -> Frame:
        """Return the frame of a cursor, as the frame was appended."""
        with self._reading() as connection:
            return frames.frame(connection, cursor)

    def attempt(self, uid: str) -> Attempt:
        """Return the attempt with this uid, with its last stored `seq`."""
        with self._reading() as connection:
            found = attempts.find(connection, uid)
        if found is None:
            raise NotRecorded("there is no such attempt")
        return found

    def events(self, run_id: int, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return at most `limit` events of a run with an id beyond `after`, in the order of storing."""
        columns = schema.events.c
        query = select(columns.kind, columns.text, columns.step, columns.time, columns.id).where(
            columns.run_id == run_id, columns.id > after
        )
        with self._reading() as connection:
            found = [Event(*row) for row in connection.execute(query.order_by(columns.id).limit(limit))]
            if not found:
                queries.require_run(connection, run_id)
        return found

    # Verdicts

    def verdicts(self, run_id: int, after: int = 0, limit: int | None = None) -> list[Verdict]:
        """Return the stored verdicts of a run with an id beyond `after`, by id: all, or the first `limit`.

        The layer of a verdict is its place in `layers`. If `is_judged` is false, the run's frames were recorded without
        diagnosis, some or all: `root_dash.health.replay` judges them.
        """
        with self._reading() as connection:
            found = verdicts.verdicts(connection, run_id, after, limit)
        return found

    def changed_verdicts(self, run_id: int, after: int, until: int) -> list[Verdict]:
        """Return the verdicts that frames beyond the cursor `after`, up to the cursor `until`, brought to their form.

        A verdict is listed once, with the frame that changed it last.
        """
        with self._reading() as connection:
            return verdicts.changed(connection, run_id, after, until)

    def is_judged(self, run_id: int) -> bool:
        """Return whether the verdicts of all frames of a run are stored."""
        with self._reading() as connection:
            queries.require_run(connection, run_id)
            return verdicts.is_judged(connection, run_id)

    # Numbers over the steps

    def steps(self, layer_id: int, kind: Kind) -> IntArray:
        """Return the steps, ascending, at which a kind was recorded for a layer."""
        with self._reading() as connection:
            run_id = queries.run_of(connection, layer_id)
            if kind == "scalars":
                query = select(schema.scalars.c.step).where(schema.scalars.c.run_id == run_id)
                return np.array(sorted(set(connection.scalars(query))), np.int64)
            return views.recorded(Buckets(connection, run_id), kind, layer_id)[0]

    def scalar_names(self, run_id: int) -> list[str]:
        """Return the names of a run's scalars, in alphabetical order."""
        columns = schema.scalars.c
        names: list[str] = []
        with self._reading() as connection:
            queries.require_run(connection, run_id)
            # From name to name: a look-up for each name, however many values the name has.
            query = select(func.min(columns.name)).where(columns.run_id == run_id)
            name = connection.scalar(query)
            while name is not None:
                names.append(name)
                name = connection.scalar(query.where(columns.name > name))
        return names

    def scalar(self, run_id: int, name: str, max_points: int = 2000) -> History:
        """Return a scalar over the steps: at most `max_points` points with all extremes."""
        table = schema.scalars
        with self._reading() as connection:
            where = (table.c.run_id == run_id) & (table.c.name == name)
            steps, values = queries.series(connection, run_id, table, table.c.value, where)
            if not len(steps):
                queries.require_run(connection, run_id)
                raise NotRecorded(f"run {run_id} logged nothing of that name")
        kept = downsampling.decimate(values, max_points)
        return History(name, steps[kept], values[kept], len(steps))

    def last_scalars(self, run_id: int) -> dict[str, float]:
        """Return the value that a run logged last of each of its scalars, by name."""
        columns = schema.scalars.c
        last = {}
        for name in self.scalar_names(run_id):
            with self._reading() as connection:
                where = (columns.run_id == run_id) & (columns.name == name)
                newest = select(columns.value).where(where).order_by(columns.frame_id.desc()).limit(1)
                last[name] = queries.number(connection.scalar(newest))
        return last

    def cost(self, run_id: int, max_points: int = 2000) -> History:
        """Return the seconds of the training thread that recording took, over the steps."""
        with self._reading() as connection:
            steps, values = queries.costs(connection, run_id)
            if not len(steps):
                queries.require_run(connection, run_id)
        kept = downsampling.decimate(values, max_points)
        return History("cost", steps[kept], values[kept], len(steps))

    def history(self, layer_id: int, statistic_name: str, max_points: int | None = None) -> History:
        """Return a statistic of a layer over the steps: all points, or at most `max_points` with all extremes."""
        if max_points is not None and max_points < 4:
            raise ValueError(f"max_points must be at least 4, got {max_points}")
        kind = queries.statistic_kind(statistic_name)
        with self._reading() as connection:
            source = Buckets(connection, queries.run_of(connection, layer_id))
            if max_points is None:
                steps, values = views.history(source, kind, layer_id, statistic_name)
                total = len(steps)
            else:
                steps, values, total = views.thinned(source, kind, layer_id, statistic_name, max_points)
        return History(statistic_name, steps, values, total)

    def grid(self, run_id: int, statistic_name: str, buckets: int = 512) -> Grid:
        """Return a statistic of all layers of a run over the steps, in at most `buckets` columns."""
        kind = queries.statistic_kind(statistic_name)
        with self._reading() as connection:
            layers = queries.layers_of(connection, run_id)
            source = Buckets(connection, run_id)
            cells = views.grid(source, kind, statistic_name, buckets)
            slots = np.searchsorted(source.layers, np.array([layer.id for layer in layers], np.int64))
        return Grid(
            statistic_name,
            tuple(layers),
            cells.starts,
            cells.ends,
            cells.values[slots] if layers else cells.values,
            shown=len(cells.starts),
            total=cells.total,
        )

    def statistics(self, layer_id: int, step: int | None = None) -> dict[str, float]:
        """Return a layer's statistics by name. Each kind answers with its own latest recording."""
        found: dict[str, float] = {}
        with self._reading() as connection:
            queries.run_of(connection, layer_id)
            for kind in KINDS:
                names = statistic_names(kind)
                if names:
                    row = queries.at_step(connection, kind, layer_id, step, names)
                    if row is not None:
                        found |= {name: queries.number(row._mapping[name]) for name in names}
        if not found:
            raise queries.not_recorded("statistics", layer_id, step)
        return found

    # Arrays

    def histogram(self, layer_id: int, step: int | None = None, tensor: TensorName = "gradient") -> Histogram:
        """Return the histogram of a tensor's entries."""
        names = [f"{queries.checked_tensor(tensor)}_{part}" for part in ("counts", "nan", "inf")]
        with self._reading() as connection:
            edges = self._edges_of(connection, queries.run_of(connection, layer_id))
            row = queries.at_step(connection, "histograms", layer_id, step, names, required=names[0])
        if row is None:
            raise queries.not_recorded(f"histogram of the {tensor}", layer_id, step)
        return Histogram(unpack([row[1]])[0], nan=row[2] or 0, inf=row[3] or 0, step=row[0], edges=edges)

    def histograms(self, layer_id: int, tensor: TensorName = "gradient", max_points: int = 256) -> HistogramHistory:
        """Return at most `max_points` histograms over the steps, evenly apart, with the first and the newest."""
        names = [f"{queries.checked_tensor(tensor)}_counts"]
        with self._reading() as connection:
            run_id = queries.run_of(connection, layer_id)
            edges = self._edges_of(connection, run_id)
            rows, total = queries.over_steps(connection, run_id, "histograms", layer_id, max_points, names)
        held = [row for row in rows if row[1] is not None]
        steps = np.array([row[0] for row in held], np.int64)
        return HistogramHistory(steps, unpack([row[1] for row in held]), edges, total if held else 0)

    def quantiles(self, layer_id: int, step: int | None = None, tensor: TensorName = "gradient") -> Quantiles:
        """Return the quantiles of a tensor's entries."""
        names = [f"{queries.checked_tensor(tensor)}_{part}" for part in ("values", "count")]
        with self._reading() as connection:
            queries.run_of(connection, layer_id)
            row = queries.at_step(connection, "quantiles", layer_id, step, names, required=names[0])
        if row is None:
            raise queries.not_recorded(f"quantiles of the {tensor}", layer_id, step)
        return Quantiles(decode(row[1], "<f4", QUANTILE_COUNT), count=row[2], step=row[0])

    def spectrum(self, layer_id: int, step: int | None = None) -> Spectrum:
        """Return a layer's singular values."""
        with self._reading() as connection:
            queries.run_of(connection, layer_id)
            row = queries.at_step(connection, "spectra", layer_id, step, queries.SPECTRUM)
        if row is None:
            raise queries.not_recorded("spectrum", layer_id, step)
        return queries.to_spectrum(row)

    def spectra(self, layer_id: int, max_points: int = 256) -> list[Spectrum]:
        """Return at most `max_points` spectra over the steps, evenly apart, with the first and the newest."""
        with self._reading() as connection:
            run_id = queries.run_of(connection, layer_id)
            rows, _ = queries.over_steps(connection, run_id, "spectra", layer_id, max_points, queries.SPECTRUM)
        return [queries.to_spectrum(row) for row in rows]

    def mask(self, layer_id: int, step: int | None = None) -> Mask:
        """Return where a layer's outliers were."""
        names = [name for name in schema.masks.c.keys() if name != "step"]
        with self._reading() as connection:
            queries.run_of(connection, layer_id)
            row = queries.at_step(connection, "masks", layer_id, step, names)
        if row is None:
            raise queries.not_recorded("mask", layer_id, step)
        return queries.to_mask(row)

    def outlier_counts(self, layer_id: int, step: int | None = None) -> OutlierCounts:
        """Return how often each row and column of a layer was an outlier, over the run's masks up to a step."""
        with self._reading() as connection:
            queries.run_of(connection, layer_id)
            counts = outlier_counts.latest(connection, layer_id, step)
        if counts is None:
            raise queries.not_recorded("mask", layer_id, step)
        return counts

    def entry_counts(self, layer_id: int) -> CountArray:
        """Return how often each entry of a layer was an outlier, over the run's exact masks: (rows, cols)."""
        counts: CountArray | None = None
        steps = self.steps(layer_id, "masks").tolist()
        for step in steps:
            mask = self.mask(layer_id, step)
            if mask.packed:
                dense = mask.dense()
                counts = dense.astype(np.uint32) if counts is None else counts + dense
        if counts is None:
            raise queries.not_recorded("exact mask" if steps else "mask", layer_id, None)
        return counts
