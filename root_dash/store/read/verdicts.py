"""Verdicts out: the rows of the verdicts as records."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import Connection, select

from root_dash.exceptions import StoreError
from root_dash.records.verdict import SEVERITIES, Verdict, from_json
from root_dash.store.backends.backend import backend_of
from root_dash.store.read import queries
from root_dash.store.read.queries import Fields
from root_dash.store.tables import schema
from root_dash.store.tables.growth import readable


def verdicts(connection: Connection, run_id: int, after: int, limit: int | None) -> list[Verdict]:
    """Return the verdicts of a run with an id beyond `after`, by id; at most `limit` of them unless it is None."""
    table = readable(connection, schema.verdicts)
    query = select(table).where(table.c.run_id == run_id, table.c.number > after)
    places = _places(connection, run_id)
    return [_to_verdict(row, places) for row in connection.execute(query.order_by(table.c.number).limit(limit))]


def changed(connection: Connection, run_id: int, after: int, until: int) -> list[Verdict]:
    """Return the verdicts of a run whose present form came with a frame beyond `after`, up to `until`.

    They are in the order of the frames.
    """
    table = readable(connection, schema.verdicts)
    within = (table.c.run_id == run_id, table.c.frame_id > after, table.c.frame_id <= until)
    rows = connection.execute(select(table).where(*within).order_by(table.c.frame_id, table.c.number)).all()
    places = _places(connection, run_id) if rows else {}
    return [_to_verdict(row, places) for row in rows]


def is_judged(connection: Connection, run_id: int) -> bool:
    """Return whether the verdicts of all frames of a run are stored."""
    table, ids = readable(connection, schema.judged), backend_of(connection).frame_ids()
    newest = connection.scalar(
        select(schema.frames.c.id).where(schema.frames.c.run_id == run_id).order_by(ids.desc()).limit(1)
    )
    judged = connection.scalar(select(table.c.frame_id).where(table.c.run_id == run_id))
    # The newest frames may have been removed since.
    return newest is None or (judged is not None and judged >= newest)


def _places(connection: Connection, run_id: int) -> dict[int, int]:
    """Return the place of each layer of a run in the order of the model."""
    return {layer.id: place for place, layer in enumerate(queries.layers_of(connection, run_id))}


def _to_verdict(row: Fields, places: Mapping[int, int]) -> Verdict:
    try:
        if row.severity not in SEVERITIES:
            raise ValueError(f"its severity is {row.severity!r}")
        candidates = [places[layer] for layer in json.loads(row.candidates)]
        return from_json(
            {
                **row._mapping,
                "id": row.number,
                "layer": None if row.layer_id is None else places[row.layer_id],
                "evidence": json.loads(row.evidence),
                "candidates": candidates,
                "cursor": row.frame_id,
            }
        )
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"verdict {row.number} of run {row.run_id} in the database is damaged: {error}") from error
