"""Runs and layers in: stored if they are new, found if they are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Insert, insert, select, update

from root_dash.records import Attempt, Layer, Run, histogram_edges
from root_dash.records.plain import plain
from root_dash.store.tables import schema
from root_dash.store.tables.blobs import encode, text
from root_dash.store.write import attempts


def store_run(connection: Connection, run: Run, attempt: Attempt) -> tuple[Run, int | None]:
    """Store a run; return the stored run, and the key of the attempt if the attempt goes on.

    Raises:
        AlreadyRecorded: the attempt is stored as an attempt at another run.
    """
    columns = schema.runs.c
    uid = text(run.uid)
    known = connection.execute(select(columns.id).where(columns.uid == uid)).scalar()
    if known is not None:
        # A resumed run keeps its first description.
        going_on = attempts.find_key(connection, attempt, int(known))
        if going_on is None:
            connection.execute(update(schema.runs).where(columns.id == known).values(ended_at=None))  # it trains again
        return replace(run, id=int(known), ended_at=None), going_on
    key = _insert(
        connection,
        insert(schema.runs).values(
            uid=uid,
            name=text(run.name),
            started_at=run.started_at,
            ended_at=run.ended_at,
            config=_json(run.config),
            cadence=_json(run.cadence),
            optimizer=_json(run.optimizer),
            histogram_edges=encode(histogram_edges(), "<f8"),
            rank=run.rank,
        ),
    )
    return replace(run, id=key), attempts.find_key(connection, attempt, key)


def store_layers(connection: Connection, run_id: int, layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Store the layers of a run and return them with their ids.

    Raises:
        ValueError: the run has a layer of the same name and another shape, or two layers share a name.
    """
    columns = schema.layers.c
    known = {
        row.name: row
        for row in connection.execute(select(columns.id, columns.name, columns.shape).where(columns.run_id == run_id))
    }
    if len({text(layer.name) for layer in layers}) < len(layers):
        raise ValueError("layers must have a name each, got one twice")
    stored = []
    for layer in layers:
        name, shape = text(layer.name), json.dumps([int(size) for size in layer.shape])
        if name not in known:
            key = _insert(
                connection,
                insert(schema.layers).values(
                    run_id=run_id,
                    position=layer.position,
                    name=name,
                    shape=shape,
                    algorithm=text(layer.algorithm),
                ),
            )
        elif known[name].shape == shape:
            key = known[name].id
        else:
            raise ValueError(f"layer {name!r} of the run has shape {known[name].shape}, got {shape}")
        stored.append(replace(layer, name=name, id=int(key)))
    return tuple(stored)


def _insert(connection: Connection, row: Insert) -> int:
    key = connection.execute(row).inserted_primary_key
    assert key is not None
    return int(key[0])


def _json(value: Any) -> str:
    return json.dumps(plain(value))
