"""Schema 2: recordings clustered by frame, and the pyramid over them.

By layer each of a frame's rows was a page of its own to write. A run's frames are found by step rather than an
attempt's.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_STATISTICS = (
    "grad_norm", "momentum_norm", "update_norm", "weight_norm", "update_to_weight", "grad_abs_max", "grad_mean",
    "grad_std", "grad_skewness", "grad_kurtosis", "grad_nan", "grad_inf", "grad_zero", "alignment", "threshold",
    "outlier_fraction", "outlier_energy", "base_alignment", "orthogonality_error",
)  # fmt: skip
_SPECTRA = ("sigma_max", "sigma_min", "stable_rank", "effective_rank", "condition", "polar_error")
_MASKS = ("outlier_row_share", "outlier_col_share", "mask_overlap")


def _doubles(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Double) for name in names]


def _integers(*names: str, nullable: bool = True) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.BigInteger, nullable=nullable) for name in names]


def _blobs(*names: str, nullable: bool = True) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.LargeBinary, nullable=nullable) for name in names]


def upgrade() -> None:
    """Make the recordings' tables anew, by frame, and the pyramid's tables, empty."""
    _by_frame("layer_statistics", _doubles(*_STATISTICS), with_rowid=False)
    _by_frame(
        "histograms",
        _integers("gradient_nan", "gradient_inf", "momentum_nan", "momentum_inf")
        + _blobs("gradient_counts", "momentum_counts"),
        with_rowid=False,
    )
    _by_frame(
        "quantiles",
        _integers("gradient_count", "momentum_count") + _blobs("gradient_values", "momentum_values"),
        with_rowid=False,
    )
    _by_frame("spectra", _doubles(*_SPECTRA) + _blobs("momentum", "base", "update", nullable=False))
    _by_frame(
        "masks",
        _doubles(*_MASKS)
        + _integers("rows", "cols", "pooled_rows", "pooled_cols", nullable=False)
        + _blobs("pooled", "row_totals", "col_totals", "largest", "largest_values", "packed", nullable=False),
    )
    op.drop_index("ix_frames_attempt_id_step", "frames")
    op.create_index("ix_frames_run_id_step", "frames", ["run_id", "step"])
    _pyramid()


def downgrade() -> None:
    """An older root-dash reads the copy that was made before."""
    raise NotImplementedError("a database is not taken back to schema 1: use the copy that was made of it")


def _by_frame(name: str, columns: list[sa.Column[Any]], with_rowid: bool = True) -> None:
    keys = [_key("frame_id", "frames", name), _key("layer_id", "layers", name)]
    op.create_table(
        f"new_{name}",
        *keys,
        sa.Column("step", sa.BigInteger, nullable=False),
        *columns,
        sa.PrimaryKeyConstraint("frame_id", "layer_id", name=f"pk_{name}"),
        sqlite_with_rowid=with_rowid,
    )
    names = ["frame_id", "layer_id", "step", *(column.name for column in columns)]
    old, new = (sa.table(table, *map(sa.column, names)) for table in (name, f"new_{name}"))
    rows = sa.select(*old.c).order_by(old.c.frame_id, old.c.layer_id)
    op.execute(sa.insert(new).from_select(names, rows))
    op.drop_table(name)
    op.rename_table(f"new_{name}", name)


def _key(column: str, of: str, table: str) -> sa.Column[Any]:
    reference = sa.ForeignKey(f"{of}.id", name=f"fk_{table}_{column}_{of}")
    return sa.Column(column, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), reference, nullable=False)


def _pyramid() -> None:
    numbers = [sa.Column(name, sa.Integer, nullable=False) for name in ("frames", "layers")]
    places: list[sa.Column[Any]] = [
        sa.Column("statistic", sa.Text, nullable=False),
        sa.Column("block", sa.Integer, nullable=False),
    ]
    steps = _integers("first_step", "last_step", "steps", nullable=False)
    tables: list[tuple[str, list[sa.Column[Any]], list[sa.Column[Any]]]] = [
        ("pyramid", [], [*steps, *numbers, *_blobs("content", nullable=False)]),
        ("pyramid_cells", places, _blobs("content", nullable=False)),
    ]
    for table, keys, columns in tables:
        op.create_table(
            table,
            _key("run_id", "runs", table),
            sa.Column("kind", sa.Integer, nullable=False),
            *keys,
            sa.Column("level", sa.Integer, nullable=False),
            sa.Column("bucket", sa.BigInteger, nullable=False),
            *columns,
            sa.PrimaryKeyConstraint("run_id", "kind", *(k.name for k in keys), "level", "bucket", name=f"pk_{table}"),
        )
    op.create_table(
        "pyramid_open",
        _key("run_id", "runs", "pyramid_open"),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("bucket", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "kind", "bucket", name="pk_pyramid_open"),
        sqlite_with_rowid=False,
    )
