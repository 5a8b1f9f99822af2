"""A spool: a store of one attempt whose frames are on their way to a server, and are removed after their arrival."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from root_dash.store.store import Store
from root_dash.store.tables import schema


class Spool(Store):
    """A file of one attempt. Later frames use the room of removed frames: the file does not shrink."""

    def size(self) -> int:
        """Return the size in bytes of the used part of the file."""
        with self._reading() as connection:
            total, free, page = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (total - free) * page

    def waiting(self, uid: str, seq: int) -> int:
        """Return how many frames of an attempt have a number beyond `seq`."""
        frames, attempts = schema.frames.c, schema.attempts.c
        query = select(func.count()).where(
            frames.attempt_id == select(attempts.id).where(attempts.uid == uid).scalar_subquery(), frames.seq > seq
        )
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def remove(self, cursor: int) -> None:
        """Remove the frames before a cursor, and the pyramid of all frames, which a spool does not need.

        If the file was deleted or replaced meanwhile, nothing is removed.

        Raises:
            StoreError: the store was opened for reading, or cannot be written.
        """
        writer = self._require_writer()
        if self._backend.identity() != self._file:
            return
        with self._backend.translated(), writer.begin() as connection:
            self._backend.lock(connection)
            for table in (*schema.RECORDINGS.values(), schema.scalars, schema.events):
                connection.execute(delete(table).where(table.c.frame_id < cursor))
            connection.execute(delete(schema.frames).where(schema.frames.c.id < cursor))
            for table in (schema.pyramid, schema.pyramid_cells):
                connection.execute(delete(table))
