"""What Alembic runs: the revisions, over the connection and inside the transaction that `migrate` hands to Alembic."""

from __future__ import annotations

from alembic import context

from root_dash.store.tables.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
