"""Recordings as files for other tools, in Parquet, CSV or JSON: `root-dash export`."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from sqlalchemy import ColumnElement, Connection, case, func, select

from root_dash.exceptions import NotRecorded, RootDashError, missing_extra
from root_dash.records import TENSORS, statistic_names
from root_dash.records.plain import plain, strict
from root_dash.store.backends.choose import backend_for
from root_dash.store.backends.location import LocationLike, parse
from root_dash.store.backends.sqlite_file import identity
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import decode
from root_dash.store.tables.growth import readable
from root_dash.store.tables.histogram_codec import unpack

What = Literal["statistics", "scalars", "events", "verdicts", "spectra", "histograms", "quantiles"]
"""A table that can be exported."""

FileFormat = Literal["parquet", "csv", "json"]

_BATCH_ROWS = 5000  # a few megabytes of the widest rows
_Kind = Literal["integer", "number", "text", "integers", "numbers"]
_Row = tuple[Any, ...]
_Source = tuple[list["_Field"], Any, list[Any]]
"""The fields of a table, what they are selected from, and the order."""


@dataclass(frozen=True, slots=True)
class Exported:
    """The written file, and the number of its rows."""

    path: Path
    rows: int


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    kind: _Kind
    column: ColumnElement[Any]
    decode: Callable[[Any], Any] | None = None


def export(
    path: LocationLike,
    to: str | os.PathLike[str],
    what: What = "statistics",
    *,
    run: int | None = None,
    form: FileFormat | None = None,
) -> Exported:
    """Write the rows of all runs, or of a single run, in the order of recording.

    A row says its run, attempt, step, time and layer. If two attempts recorded a step, the file has the rows of both.
    Arrays are lists, in CSV as JSON. NaN, "not recorded", is null in Parquet and JSON and empty in CSV. Infinities stay
    infinities; in JSON they are the strings "Infinity" and "-Infinity". The file takes its place when it is whole.

    Args:
        path: the database; a run may be recording to it.
        to: the file to write.
        what: which recordings.
        run: the id of the run; None for all runs.
        form: the format of the file; None if the ending of the file's name says the format.

    Raises:
        ValueError: `what` or the format is unknown, or `to` is the database.
        NotRecorded: there is no such run.
        RootDashError: Parquet needs pyarrow, which is not installed, or the file cannot be written.
        StoreError: the database cannot be read.
    """
    backend, to = backend_for(parse(path)), Path(to)
    if what not in get_args(What):
        raise ValueError(f"what must be one of {', '.join(get_args(What))}, got {what!r}")
    chosen = form or to.suffix.lstrip(".").lower()
    if chosen not in _WRITERS:
        raise ValueError(f"the format must be one of {', '.join(_WRITERS)}, got {chosen!r}")
    if identity(to) == backend.identity() is not None:
        raise ValueError(f"to must be another file than the database, got {to}")
    engine = backend.open_reader()
    try:
        with backend.translated(), engine.connect() as connection:
            if (
                run is not None
                and connection.execute(select(schema.runs.c.id).where(schema.runs.c.id == run)).first() is None
            ):
                raise NotRecorded(f"there is no run {run}")
            fields, rows = _rows(connection, what, run)
            with _whole(to) as part, closing(rows):
                written = _WRITERS[chosen](part, fields, rows)
    finally:
        engine.dispose()
    return Exported(to, written)


@contextmanager
def _whole(to: Path) -> Iterator[Path]:
    """Yield a file to write to, which then takes the place of the given file, or is removed if writing failed."""
    try:
        part = _make_beside(to)
        try:
            yield part
            part.replace(to)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RootDashError(f"{to} cannot be written: {(error.strerror or str(error)).lower()}") from None


def _make_beside(to: Path) -> Path:
    """Make an empty file under a free name: two exports at once have files of their own, and nobody loses a file."""
    for number in count(1):
        part = to.with_name(f"{to.name}.part{number if number > 1 else ''}")
        try:
            os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return part
    raise AssertionError("there is always a number")


def _rows(connection: Connection, what: What, run: int | None) -> tuple[list[_Field], Generator[_Row]]:
    fields, source, order = _SOURCES[what](connection)
    query = select(*(field.column for field in fields)).select_from(source).order_by(*order)
    if run is not None:
        query = query.where(schema.runs.c.id == run)

    def decoded() -> Generator[_Row]:
        with connection.execution_options(yield_per=_BATCH_ROWS).execute(query) as found:
            for row in found:
                yield tuple(
                    value if field.decode is None or value is None else field.decode(value)
                    for field, value in zip(fields, row, strict=True)
                )

    return fields, decoded()


def _run_fields() -> list[_Field]:
    return [_Field("run", "integer", schema.runs.c.id), _Field("run_name", "text", schema.runs.c.name)]


def _with_frame(table: Any) -> tuple[list[_Field], Any]:
    frames = schema.frames
    source = table.join(frames, frames.c.id == table.c.frame_id).join(schema.runs, schema.runs.c.id == frames.c.run_id)
    return [
        *_run_fields(),
        _Field("attempt", "integer", frames.c.attempt_id),
        _Field("step", "integer", table.c.step),
        _Field("time", "number", frames.c.time),
    ], source


def _with_layer(table: Any, fields: Sequence[_Field]) -> _Source:
    keys, source = _with_frame(table)
    source = source.join(schema.layers, schema.layers.c.id == table.c.layer_id)
    return [*keys, _Field("layer", "text", schema.layers.c.name), *fields], source, [table.c.frame_id, table.c.layer_id]


def _statistics(connection: Connection) -> _Source:
    table = readable(connection, schema.layer_statistics)
    return _with_layer(table, [_Field(name, "number", table.c[name]) for name in statistic_names("statistics")])


def _spectra(connection: Connection) -> _Source:
    table = readable(connection, schema.spectra)
    numbers = [_Field(name, "number", table.c[name]) for name in statistic_names("spectra")]
    arrays = [_Field(name, "numbers", table.c[name], _floats) for name in ("momentum", "base", "update")]
    return _with_layer(table, [*numbers, _Field("estimated", "integer", table.c.estimated), *arrays])


def _histograms(connection: Connection) -> _Source:
    table = readable(connection, schema.histograms)
    fields = []
    for tensor in TENSORS:
        held = table.c[f"{tensor}_counts"].is_not(None)
        for name in (f"{tensor}_nan", f"{tensor}_inf"):  # a count of 0 is stored as NULL
            fields.append(_Field(name, "integer", case((held, func.coalesce(table.c[name], 0))).label(name)))
        fields.append(_Field(f"{tensor}_counts", "integers", table.c[f"{tensor}_counts"], _counts))
    return _with_layer(table, fields)


def _quantiles(connection: Connection) -> _Source:
    table = readable(connection, schema.quantiles)
    fields = []
    for tensor in TENSORS:
        fields.append(_Field(f"{tensor}_count", "integer", table.c[f"{tensor}_count"]))
        fields.append(_Field(f"{tensor}_values", "numbers", table.c[f"{tensor}_values"], _floats))
    return _with_layer(table, fields)


def _scalars(connection: Connection) -> _Source:
    table = readable(connection, schema.scalars)
    keys, source = _with_frame(table)
    fields = [*keys, _Field("name", "text", table.c.name), _Field("value", "number", table.c.value)]
    return fields, source, [table.c.run_id, table.c.name, table.c.frame_id]


def _events(connection: Connection) -> _Source:
    table = readable(connection, schema.events)
    fields = [
        *_run_fields(),
        _Field("step", "integer", table.c.step),
        _Field("time", "number", table.c.time),
        _Field("kind", "text", table.c.kind),
        _Field("text", "text", table.c.text),
    ]
    return fields, table.join(schema.runs, schema.runs.c.id == table.c.run_id), [table.c.id]


def _verdicts(connection: Connection) -> _Source:
    table = readable(connection, schema.verdicts)
    fields = [
        *_run_fields(),
        _Field("number", "integer", table.c.number),
        _Field("layer", "text", schema.layers.c.name),
        _Field("rule", "text", table.c.rule),
        _Field("severity", "text", table.c.severity),
        _Field("since", "integer", table.c.since),
        _Field("until", "integer", table.c.until),
        _Field("text", "text", table.c.text),
        _Field("evidence", "text", table.c.evidence),
        _Field("under", "integer", table.c.under),
    ]
    source = table.join(schema.runs, schema.runs.c.id == table.c.run_id)
    source = source.outerjoin(schema.layers, schema.layers.c.id == table.c.layer_id)
    return fields, source, [table.c.run_id, table.c.number]


_SOURCES: dict[What, Callable[[Connection], _Source]] = {
    "statistics": _statistics,
    "scalars": _scalars,
    "events": _events,
    "verdicts": _verdicts,
    "spectra": _spectra,
    "histograms": _histograms,
    "quantiles": _quantiles,
}


def _counts(content: bytes) -> list[int]:
    numbers: list[int] = unpack([content])[0].tolist()
    return numbers


def _floats(content: bytes) -> list[float]:
    numbers: list[float] = decode(content, "<f4").astype(np.float64).tolist()
    return numbers


def _csv(path: Path, fields: Sequence[_Field], rows: Iterator[_Row]) -> int:
    written = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields])
        for row in rows:
            writer.writerow([json.dumps(plain(value, strict)) if isinstance(value, list) else value for value in row])
            written += 1
    return written


def _json(path: Path, fields: Sequence[_Field], rows: Iterator[_Row]) -> int:
    written, names = 0, [field.name for field in fields]
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        for row in rows:
            line = json.dumps(
                dict(zip(names, (plain(value, strict) for value in row), strict=True)),
                ensure_ascii=False,
                allow_nan=False,
            )
            file.write(f"{',' if written else ''}\n{line}")
            written += 1
        file.write("\n]\n")
    return written


def _parquet(path: Path, fields: Sequence[_Field], rows: Iterator[_Row]) -> int:
    try:
        pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")  # pyarrow ships no types
    except ImportError:
        raise RootDashError(missing_extra("Parquet", "pyarrow", "export")) from None
    types: dict[_Kind, Any] = {
        "integer": pa.int64(),
        "number": pa.float64(),
        "text": pa.string(),
        "integers": pa.list_(pa.uint32()),
        "numbers": pa.list_(pa.float32()),
    }
    layout = pa.schema([(field.name, types[field.kind]) for field in fields])
    written = 0
    with parquet.ParquetWriter(path, layout, compression="zstd") as writer:
        while batch := list(islice(rows, _BATCH_ROWS)):
            columns = [
                pa.array(column, kind) for column, kind in zip(zip(*batch, strict=True), layout.types, strict=True)
            ]
            writer.write_table(pa.table(columns, schema=layout))
            written += len(batch)
    return written


_WRITERS: dict[str, Callable[[Path, Sequence[_Field], Iterator[_Row]], int]] = {
    "parquet": _parquet,
    "csv": _csv,
    "json": _json,
}
