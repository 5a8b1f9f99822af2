"""Schema 3: the rank of a run, which spectra are estimates, and running counts of the outliers' rows and columns."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from root_dash.store.write.outlier_counts import recount

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns; the counts are made of the masks that there are."""
    op.add_column("runs", sa.Column("rank", sa.Integer, nullable=False, server_default="0"))
    op.add_column("spectra", sa.Column("estimated", sa.Integer, nullable=False, server_default="0"))
    op.add_column("masks", sa.Column("recorded", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("events", sa.Column("frame_id", sa.BigInteger))
    for name in ("row_counts", "col_counts"):
        op.add_column("masks", sa.Column(name, sa.LargeBinary))
    recount(op.get_bind())


def downgrade() -> None:
    """An older root-dash reads the copy that was made before."""
    raise NotImplementedError("a database is not taken back to schema 2: use the copy that was made of it")
