"""Databases with fewer or more columns and tables than the vocabulary names: read as they are, grown when written."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from root_dash.exceptions import NotRecorded
from root_dash.records import KINDS, Run, statistic_names
from root_dash.store import Limits, PyramidShape, Store, examine, export, prune
from tests.store.admin.test_doctor import _bad
from tests.store.frames import make_frame, make_layers, record
from tests.waiting import at_once

NARROW = Limits(pyramid=PyramidShape(tile=4, factor=2, levels=3, block=2, fine_buckets=1, buckets_per_point=2))
EVERY = {kind: 1 for kind in KINDS}
LATER = {"layer_statistics": "alignment", "spectra": "condition", "masks": "mask_overlap"}
"""A statistic of each kind, of which we say that the vocabulary lacked it when the database was written."""


def _change(place: Path | str, *statements: str) -> None:
    """Change a database as no verb does."""
    with Store.create(place) as store, store._writer.begin() as connection:  # type: ignore[union-attr]
        for statement in statements:
            connection.exec_driver_sql(statement)


def _columns(place: Path | str, table: str) -> set[str]:
    with Store.open(place) as store, store._reader.connect() as connection:
        return store._backend.columns(connection).get(table, set())


def _without_statistics(place: Path | str) -> None:
    """Make a database what a root-dash would have written that did not know the later statistics."""
    drops = [f"ALTER TABLE {table} DROP COLUMN {name}" for table, name in LATER.items()]
    _change(place, *drops, *(f"DELETE FROM pyramid_cells WHERE statistic = '{name}'" for name in LATER.values()))


@pytest.mark.parametrize("end", [True, False])
def test_a_reader_takes_a_missing_column_as_not_recorded(place: Path | str, end: bool, tmp_path: Path) -> None:
    """Histories, grids, single steps, whole frames and exports say NaN, in folded buckets and in open ones."""
    record(place, 30, make_layers(4), cadence=EVERY, end=end, limits=NARROW)
    with Store.open(place, NARROW) as store:
        known = store.history(1, "grad_norm"), store.grid(1, "sigma_max", 5), store.frame(3)
    _without_statistics(place)
    content = place.read_bytes() if isinstance(place, Path) else None
    with Store.open(place, NARROW) as store:
        for name in LATER.values():
            for points in (None, 4, 10):
                history = store.history(1, name, points)
                assert np.isnan(history.values).all()
                assert history.total == 30
            assert len(store.history(1, name).steps) == 30
            for buckets in (5, 100):
                grid = store.grid(1, name, buckets)
                assert np.isnan(grid.values).all()
                assert grid.total == 30
            assert np.isnan(store.statistics(1)[name])
        frame = store.frame(3)
        at = statistic_names("statistics").index("alignment")
        assert np.isnan(frame.statistics[:, at]).all()
        assert np.array_equal(np.delete(frame.statistics, at, 1), np.delete(known[2].statistics, at, 1), equal_nan=True)
        assert np.isnan(frame.masks[0][1]["mask_overlap"])
        assert np.array_equal(store.history(1, "grad_norm").values, known[0].values)
        assert np.array_equal(store.grid(1, "sigma_max", 5).values, known[1].values, equal_nan=True)
    rows = (tmp_path / "out.csv", export(place, tmp_path / "out.csv").rows)
    header, first = rows[0].read_text().splitlines()[:2]
    assert rows[1] == 120
    assert first.split(",")[header.split(",").index("alignment")] == ""
    if isinstance(place, Path):
        assert place.read_bytes() == content


def test_a_writer_adds_the_columns_and_fills_them(place: Path | str) -> None:
    """Opened for writing the tables have the columns; a reader that was open before reads what comes from then on."""
    layers, rng = make_layers(4), np.random.default_rng(0)
    record(place, 30, layers, cadence=EVERY, limits=NARROW)
    _without_statistics(place)
    with Store.open(place, NARROW) as reader:
        assert np.isnan(reader.history(1, "alignment").values).all()
        with Store.create(place, NARROW) as store:
            assert all(name in _columns(place, table) for table, name in LATER.items())
            recording = store.begin(Run("run-1", "a run", 1.7e9), layers)
            frames = [make_frame(seq, 25 + seq, layers, rng) for seq in range(20)]
            for frame in frames:
                recording.append(frame)
            recording.end(2e9)
        history = reader.history(1, "alignment")
        assert history.steps.tolist() == list(range(45))
        assert np.isnan(history.values[:25]).all()
        at = statistic_names("statistics").index("alignment")
        assert history.values[25:].tolist() == [float(frame.statistics[0, at]) for frame in frames]
        expected = max((frame.statistics[0, at] for frame in frames), key=abs)
        assert np.nanmax(reader.grid(1, "alignment", 3).values[0]) == expected
        assert reader.history(1, "mask_overlap").values[-1] == frames[-1].masks[0][1]["mask_overlap"]
    assert _bad(examine(place)) == []


def test_several_may_add_the_columns_at_once(place: Path | str) -> None:
    """Threads that open the same old database for writing at the same moment all get a working store."""
    record(place, 3)
    _without_statistics(place)
    at_once(lambda number: record(place, 3, uid=f"other-{number}"))
    with Store.open(place) as store:
        assert len(store.runs()) == 5
        assert not np.isnan(store.history(5, "alignment").values).any()


def _answers(store: Store) -> list[Any]:
    layers = store.layers(1)
    histories = [store.history(layer.id, name).values for layer in layers for name in ("grad_norm", "sigma_max")]
    return [*histories, store.grid(1, "grad_norm", 5).values, store.frame(3).statistics, store.statistics(1)]


def test_what_a_newer_root_dash_added_is_ignored(place: Path | str, tmp_path: Path) -> None:
    """Unknown columns, tables and statistics of the pyramid disturb neither reading nor recording on nor exporting."""
    layers, rng = make_layers(4), np.random.default_rng(0)
    record(place, 30, layers[:3], cadence=EVERY, limits=NARROW)
    with Store.open(place, NARROW) as store:
        before = _answers(store)
    cells = "SELECT run_id, kind, 'future', block, level, bucket, content FROM pyramid_cells"
    _change(
        place,
        *(f"ALTER TABLE {table} ADD COLUMN future DOUBLE PRECISION" for table in ("runs", "frames", *LATER)),
        *(f"UPDATE {table} SET future = 1" for table in ("runs", "frames", *LATER)),
        "CREATE TABLE future (id INTEGER PRIMARY KEY, text TEXT)",
        "INSERT INTO pyramid_cells (run_id, kind, statistic, block, level, bucket, content) "
        f"{cells} WHERE statistic = 'grad_norm'",
    )
    with Store.open(place, NARROW) as store:
        for one, other in zip(_answers(store), before, strict=True):
            assert one == other if isinstance(one, dict) else np.array_equal(one, other, equal_nan=True)
    assert export(place, tmp_path / "out.csv").rows == 90
    with Store.create(place, NARROW) as store:
        recording = store.begin(Run("run-1", "a run", 1.7e9), layers)  # with a layer more
        for seq, step in enumerate((5, 31, 32, 40)):
            recording.append(make_frame(seq, step, layers, rng))
        recording.end(2e9)
        assert store.history(4, "grad_norm").steps.tolist() == [5, 31, 32, 40]
        with store._reader.connect() as connection:
            stale = connection.exec_driver_sql(
                "SELECT count(*) FROM pyramid_cells c JOIN pyramid p ON p.run_id = c.run_id AND p.kind = c.kind"
                " AND p.level = c.level AND p.bucket = c.bucket"
                " WHERE c.statistic = 'future' AND (p.layers = 4 OR p.last_step > 29)"
            ).scalar_one()
            assert stale == 0  # a newer root-dash would take them for damaged
    assert prune(place, keep_steps=10, dry_run=False).frames > 0
    assert _bad(examine(place)) == []


def test_a_missing_table_holds_nothing_and_is_made_when_written(place: Path | str) -> None:
    """A reader of a database without the table of masks finds no mask; opened for writing, the table is made."""
    layers, rng = make_layers(2), np.random.default_rng(0)
    record(place, 12, layers, cadence={kind: 1 for kind in KINDS if kind != "masks"})
    columns = _columns(place, "masks")
    _change(place, "DROP TABLE masks")
    assert _columns(place, "masks") == set()
    with Store.open(place) as store:
        for read in (store.mask, store.outlier_counts, store.entry_counts):
            with pytest.raises(NotRecorded, match="layer 1 has no mask"):
                read(1)
        assert store.history(1, "mask_overlap").total == store.grid(1, "mask_overlap").total == 0
        assert store.steps(1, "masks").tolist() == []
        assert "mask_overlap" not in store.statistics(1)
        assert store.frame(3).masks == {}
    assert prune(place, keep_steps=5).rows["masks"] == 0
    assert _bad(examine(place, thorough=True)) == []
    with Store.create(place) as store:
        assert _columns(place, "masks") == columns
        recording = store.begin(Run("run-1", "a run", 1.7e9), layers)
        cursor = recording.append(make_frame(0, 12, layers, rng))
        recording.close()
        assert store.mask(1).step == 12
        assert store.frame(cursor).masks.keys() == {0, 1}


@pytest.mark.heavy
def test_a_table_that_is_made_later_is_stored_as_in_a_new_database(database: str) -> None:
    """A PostgreSQL server keeps its BLOBs without compressing them again, and looks up no frame for each row."""
    query = (
        "SELECT string_agg(attname || attstorage::text, ' ' ORDER BY attname), (SELECT count(*) FROM pg_constraint"
        " WHERE conrelid = 'masks'::regclass AND contype = 'f'), (SELECT reloptions FROM pg_class"
        " WHERE relname = 'pk_masks') FROM pg_attribute WHERE attrelid = 'masks'::regclass AND attnum > 0"
    )
    with Store.open(database) as store, store._reader.connect() as connection:
        new = connection.exec_driver_sql(query).one()
    _change(database, "DROP TABLE masks")
    with Store.create(database) as store, store._reader.connect() as connection:
        assert connection.exec_driver_sql(query).one() == new


def test_a_file_that_cannot_be_written_is_read_without_the_columns(tmp_path: Path) -> None:
    """A reader changes nothing: a closed file without a log, opened as one that nobody writes to, says NaN, too."""
    path = record(tmp_path / "x.db", 5)
    assert isinstance(path, Path)
    _without_statistics(path)
    path.chmod(0o444)
    with Store.open(path) as store:
        assert np.isnan(store.history(1, "alignment").values).all()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    names = {row[1] for row in connection.execute("PRAGMA table_info(layer_statistics)")}
    connection.close()
    assert "alignment" not in names
