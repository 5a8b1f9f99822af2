"""The tables: a table for each kind with a row for each layer and recorded step, and the pyramid over them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    REAL,
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from root_dash.records import TENSORS, Kind, statistic_names

APPLICATION_ID = 0x526F6F74
""""Root" in ASCII: the mark of root-dash in the header of a file."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite numbers rows only if the type of the column is exactly INTEGER; in PostgreSQL 64 bits must be asked for.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _key() -> Column[Any]:
    return Column("id", _Id, primary_key=True)


def _reference(table: str, id_type: BigInteger | Integer = _Id, **options: Any) -> Column[Any]:
    return Column(f"{table.removesuffix('s')}_id", id_type, ForeignKey(f"{table}.id"), nullable=False, **options)


runs = Table(
    "runs",
    metadata,
    _key(),
    Column("uid", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("config", Text, nullable=False),
    Column("cadence", Text, nullable=False),
    Column("optimizer", Text, nullable=False),
    Column("histogram_edges", LargeBinary, nullable=False),
    Column("rank", Integer, nullable=False, server_default="0"),
)

attempts = Table(
    "attempts",
    metadata,
    _key(),
    _reference("runs", index=True),
    Column("uid", Text, nullable=False, unique=True),
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("lost", BigInteger, nullable=False, server_default="0"),  # frames lost after the last stored frame
    Column("pid", BigInteger, nullable=False),
    Column("host", Text, nullable=False),
)

layers = Table(
    "layers",
    metadata,
    _key(),
    _reference("runs"),
    Column("position", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("algorithm", Text, nullable=False),
    UniqueConstraint("run_id", "name"),
)

frames = Table(
    "frames",
    metadata,
    _key(),
    _reference("runs", index=True),  # in SQLite an index ends in the row's id: the newest frame of a run is one look-up
    _reference("attempts"),
    Column("seq", BigInteger, nullable=False),
    Column("step", BigInteger, nullable=False),
    Column("time", Double, nullable=False),
    Column("kinds", Integer, nullable=False),
    Column("lost", BigInteger, nullable=False),
    Column("cost", Double),
    UniqueConstraint("attempt_id", "seq"),
    Index(None, "run_id", "step"),
    Index("ix_frames_run_id_id", "run_id", text("(id + 0)")).ddl_if(
        dialect="postgresql"
    ),  # see `PostgresBackend.frame_ids`
    sqlite_autoincrement=True,  # a cursor is never given twice, not even after a deletion
)


def _recording(name: str, kind: Kind, *columns: Column[Any] | Index, **options: Any) -> Table:
    # PostgreSQL keeps in 32 bits what is computed in 32 bits; in SQLite every number has 64.
    numbers: Double[float] = Double()
    if kind == "statistics":
        numbers = numbers.with_variant(REAL(), "postgresql")
    # Statistics come before BLOBs: SQLite reads a row from its start, so that a history never touches the pages of an
    # array. A column that is added later comes last; its history is read from the pyramid all the same.
    return Table(
        name,
        metadata,
        _reference("frames"),
        Column("step", BigInteger, nullable=False),
        # Half as wide as other ids, and beside the numbers: before a column of 64 bits PostgreSQL would pad it to 64.
        _reference("layers", id_type=Integer()),
        *(Column(statistic, numbers) for statistic in statistic_names(kind)),
        *columns,
        PrimaryKeyConstraint("frame_id", "layer_id"),
        **options,
    )


# Clustered by frame: the rows of a frame are appended to a few pages. Clustered by layer, each row would need a page of
# its own (measured: 7 times fewer rows per second). The history of a layer is read from the pyramid.
# PostgreSQL keeps the rows in the order of storing, and a key is an index beside them. An index of the frames alone,
# which holds each frame once, takes a quarter of the room of the key (measured: 7.0 and 31.6 bytes for each row).
layer_statistics = _recording(
    "layer_statistics",
    "statistics",
    Index(None, "frame_id", postgresql_with={"fillfactor": 100}).ddl_if(dialect="postgresql"),
    sqlite_with_rowid=False,
)

histograms = _recording(
    "histograms",
    "histograms",
    *(Column(f"{tensor}_{count}", BigInteger) for tensor in TENSORS for count in ("nan", "inf")),
    *(Column(f"{tensor}_counts", LargeBinary) for tensor in TENSORS),
    sqlite_with_rowid=False,
)

quantiles = _recording(
    "quantiles",
    "quantiles",
    *(Column(f"{tensor}_count", BigInteger) for tensor in TENSORS),
    *(Column(f"{tensor}_values", LargeBinary) for tensor in TENSORS),
    sqlite_with_rowid=False,
)

spectra = _recording(
    "spectra",
    "spectra",
    *(Column(name, LargeBinary, nullable=False) for name in ("momentum", "base", "update")),
    Column("estimated", Integer, nullable=False, server_default="0"),  # a boolean
)

masks = _recording(
    "masks",
    "masks",
    *(Column(name, BigInteger, nullable=False) for name in ("rows", "cols", "pooled_rows", "pooled_cols")),
    *(
        Column(name, LargeBinary, nullable=False)
        for name in ("pooled", "row_totals", "col_totals", "largest", "largest_values", "packed")
    ),
    # Running counts over the run's masks, derived when a mask is stored: see `outlier_counts.py`.
    Column("recorded", BigInteger, nullable=False, server_default="0"),
    *(Column(name, LargeBinary) for name in ("row_counts", "col_counts")),
)

# Clustered by name, so that a loss curve is one contiguous range, too; a frame belongs to one run.
scalars = Table(
    "scalars",
    metadata,
    _reference("runs"),
    # Sorted by code points, as in SQLite.
    Column("name", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False),
    _reference("frames", index=True),
    Column("step", BigInteger, nullable=False),
    Column("value", Double),
    PrimaryKeyConstraint("run_id", "name", "frame_id"),
    sqlite_with_rowid=False,
)

events = Table(
    "events",
    metadata,
    _key(),
    _reference("runs", index=True),
    Column("step", BigInteger),
    Column("time", Double, nullable=False),
    Column("kind", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("frame_id", BigInteger),  # the frame that the event came with, which may be removed before the event
    Index(None, "run_id", "id").ddl_if(dialect="postgresql"),
)

# What the diagnosis says. A row is rewritten in the transaction of the frame that changes the verdict.
verdicts = Table(
    "verdicts",
    metadata,
    _reference("runs"),
    Column("number", Integer, nullable=False),  # `Verdict.id`
    Column("layer_id", Integer),  # NULL: the verdict is about the whole run
    Column("rule", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger),
    Column("text", Text, nullable=False),
    Column("evidence", Text, nullable=False),
    Column("under", Integer),
    Column("candidates", Text, nullable=False),  # ids of layers
    # The frames that began and last changed the verdict: whoever follows the run asks for what changed since a cursor.
    Column("begun_frame_id", BigInteger, nullable=False),
    Column("frame_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("run_id", "number"),
    Index(None, "run_id", "frame_id"),
)

# How far a run is judged: up to which frame its verdicts are stored. Beside the state, whose row is too large to be
# written with every frame.
judged = Table(
    "judged",
    metadata,
    Column("run_id", _Id, ForeignKey("runs.id"), primary_key=True, autoincrement=False),
    Column("frame_id", BigInteger, nullable=False),
)

# The state of the diagnosis after a frame, from which another process goes on.
judge_states = Table(
    "judge_states",
    metadata,
    Column("run_id", _Id, ForeignKey("runs.id"), primary_key=True, autoincrement=False),
    Column("frame_id", BigInteger, nullable=False),
    Column("layers", Integer, nullable=False),
    Column("size", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

# The pyramid is derived from the recordings, so that a view costs the same at any length of a run. It is never the only
# place of a number. A bucket is a range of steps, numbered from step 0. Level 0 keeps every value. The higher levels
# keep extremes and means; from level 2 on a bucket is eight times as wide as a bucket of the level below.


def _bucket(name: str, keys: list[Column[Any]], *columns: Column[Any]) -> Table:
    return Table(
        name,
        metadata,
        _reference("runs"),
        Column("kind", Integer, nullable=False),  # the place of the kind in `KINDS`
        *keys,
        Column("level", Integer, nullable=False),
        Column("bucket", BigInteger, nullable=False),
        *columns,
        PrimaryKeyConstraint("run_id", "kind", *(key.name for key in keys), "level", "bucket"),
    )


# The steps, frames and layers that a bucket holds. A row of kind -1 is the total of its run: see `run_totals.py`.
pyramid = _bucket(
    "pyramid",
    [],
    Column("first_step", BigInteger, nullable=False),
    Column("last_step", BigInteger, nullable=False),
    Column("steps", BigInteger, nullable=False),  # distinct steps
    Column("frames", Integer, nullable=False),
    Column("layers", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
)

# The values of one statistic of the run's layers, by ascending id in blocks. A statistic is a value here, not a column.
pyramid_cells = _bucket(
    "pyramid_cells",
    [Column("statistic", Text, nullable=False), Column("block", Integer, nullable=False)],
    Column("content", LargeBinary, nullable=False),
)

# The buckets of level 0 that are not folded, or got rows since: their rows are read as they were recorded.
pyramid_open = Table(
    "pyramid_open",
    metadata,
    _reference("runs"),
    Column("kind", Integer, nullable=False),
    Column("bucket", BigInteger, nullable=False),
    PrimaryKeyConstraint("run_id", "kind", "bucket"),
    sqlite_with_rowid=False,
)

# Alembic's own table; a new database starts at the newest revision.
alembic_version = Table(
    "alembic_version", metadata, Column("version_num", String(32), nullable=False, primary_key=True)
)

RECORDINGS: dict[Kind, Table] = {
    "statistics": layer_statistics,
    "histograms": histograms,
    "quantiles": quantiles,
    "spectra": spectra,
    "masks": masks,
}
"""The table of each kind of a layer's recordings."""
