"""The script of Alembic: the revisions, over the connection and inside the transaction of `migrate`."""

from __future__ import annotations

from alembic import context

from root_dash.store.tables.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
