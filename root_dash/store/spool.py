"""A spool: a store of one attempt whose frames are on their way elsewhere, and go from here once they are there."""

from __future__ import annotations

from sqlalchemy import delete, func, select

from root_dash.exceptions import StoreError
from root_dash.store.backends.engine import identity, lock, translated
from root_dash.store.store import Store
from root_dash.store.tables import schema


class Spool(Store):
    """A file of its own for one attempt. What is forgotten leaves its room to what comes: the file does not shrink."""

    def size(self) -> int:
        """Bytes of the file that hold something."""
        with self._reading() as connection:
            total, free, page = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (total - free) * page

    def waiting(self, uid: str, seq: int) -> int:
        """How many frames of the attempt have a number beyond `seq`."""
        frames, attempts = schema.frames.c, schema.attempts.c
        query = select(func.count()).where(
            frames.attempt_id == select(attempts.id).where(attempts.uid == uid).scalar_subquery(), frames.seq > seq
        )
        with self._reading() as connection:
            return int(connection.execute(query).scalar_one())

    def forget(self, cursor: int) -> None:
        """Remove the frames before that cursor, and the views of all: nobody looks at them here.

        A file that was deleted or replaced meanwhile is left alone.

        Raises:
            StoreError: the store was opened for reading, or cannot be written.
        """
        if self._writer is None or self._closed:
            raise StoreError(f"{self.path} is not open for writing")
        if identity(self.path) != self._file:
            return
        with translated(self.path), self._writer.begin() as connection:
            lock(connection)
            for table in (*schema.RECORDINGS.values(), schema.scalars, schema.events):
                connection.execute(delete(table).where(table.c.frame_id < cursor))
            connection.execute(delete(schema.frames).where(schema.frames.c.id < cursor))
            for table in (schema.pyramid, schema.pyramid_cells):
                connection.execute(delete(table))
