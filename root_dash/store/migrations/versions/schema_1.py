"""Schema 1, of root-dash 0.1: the tables that it made are where every file begins."""

from __future__ import annotations

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Nothing: a file of schema 1 has its tables."""


def downgrade() -> None:
    """There is no older schema."""
    raise NotImplementedError("there is no schema before 1")
