"""Schema 3, the base: a database begins with the tables of this schema, and here is nothing to do."""

from __future__ import annotations

revision = "0003"
down_revision = None


def upgrade() -> None:
    """Do nothing: a database of schema 3 has its tables."""


def downgrade() -> None:
    """Raise NotImplementedError: there is no older schema."""
    raise NotImplementedError("there is no schema before 3")
