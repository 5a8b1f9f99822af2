"""Databases and a spool that an earlier root-dash wrote, and what its verbs answered then.

The code of commit a3329d4 wrote the files under `fixtures/`: two trained runs, and a run that was resumed with
overlapping steps and did not end. Both databases hold the same runs.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from root_dash.exceptions import NotRecorded
from root_dash.records import TENSORS, statistic_names
from root_dash.store import Store
from tests.postgresql import Server

FIXTURES = Path(__file__).parent / "fixtures"

Answers = dict[str, NDArray[Any]]


def unpacked(name: str, path: Path) -> Path:
    """Write a SQLite fixture to a path, in WAL mode as a recorder leaves it."""
    path.write_bytes(gzip.decompress((FIXTURES / f"{name}.gz").read_bytes()))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    return path


def restore(server: Server, url: str) -> str:
    """Restore the dump of the PostgreSQL database into an empty database."""
    dump = gzip.decompress((FIXTURES / "schema-3.sql.gz").read_bytes()).decode()
    statements = "\n".join(line for line in dump.splitlines() if not line.startswith("\\"))  # commands of psql
    server.execute(statements, url.rpartition("/")[2])
    return url


def answered() -> Answers:
    """Return what the code of then answered."""
    with np.load(FIXTURES / "schema-3.npz") as file:
        return dict(file)


def answers(store: Store) -> Answers:
    """Return what the verbs answer, under the same keys."""
    found: Answers = {}

    def ask(key: str, verb: Any) -> None:
        try:
            found[key] = verb()
        except NotRecorded as error:
            found[key] = np.array(type(error).__name__)

    for run in store.runs():
        found[f"{run.id}.run"] = np.array(json.dumps(dataclasses.asdict(run), sort_keys=True, default=str))
        for layer in store.layers(run.id):
            key, id_ = f"{run.id}.{layer.id}", layer.id
            found[f"{key}.layer"] = np.array(json.dumps(dataclasses.asdict(layer), sort_keys=True))
            for kind in ("statistics", "spectra", "masks"):
                for name in statistic_names(kind):
                    history = store.history(id_, name)
                    found[f"{key}.history.{name}"] = np.stack([history.steps.astype(float), history.values])
            for tensor in TENSORS:
                ask(f"{key}.histograms.{tensor}", lambda id_=id_, t=tensor: store.histograms(id_, t).counts)
                ask(f"{key}.quantiles.{tensor}", lambda id_=id_, t=tensor: store.quantiles(id_, None, t).values)
            try:
                spectrum = store.spectrum(id_)
                for part in ("momentum", "base", "update"):
                    found[f"{key}.spectrum.{part}"] = getattr(spectrum, part)
            except NotRecorded as error:
                found[f"{key}.spectrum"] = np.array(type(error).__name__)
            ask(f"{key}.mask", lambda id_=id_: store.mask(id_).row_totals)
        for name in store.scalar_names(run.id):
            found[f"{run.id}.scalar.{name}"] = store.scalar(run.id, name).values
    return found


def answers_then(store: Store) -> Answers:
    """Return the answers to what there was when the database was written; statistics of later are not recorded."""
    found, known = answers(store), answered()
    for key in found.keys() - known.keys():
        assert ".history." in key
        assert np.isnan(found[key][-1]).all(), key
    return {key: value for key, value in found.items() if key in known}


def same_answers(one: Answers, other: Answers, *, clock: bool = True) -> bool:
    """Return whether two sets of answers are equal in every bit; NaN equals NaN.

    A statistic of which one set has no answer, because the code of then did not know it, has no value in the other set.
    Without `clock`, the uids and times of the runs may differ: the runs on the server were trained a little later.
    """
    if not clock:
        one, other = _without_clock(one), _without_clock(other)
    new = {key: (one | other)[key] for key in one.keys() ^ other.keys()}
    return all(".history." in key and np.isnan(value[1]).all() for key, value in new.items()) and all(
        np.array_equal(one[key], other[key], equal_nan=one[key].dtype.kind == "f") for key in one.keys() & other.keys()
    )


def _without_clock(found: Answers) -> Answers:
    def timeless(text: str) -> str:
        run = json.loads(text)
        own = ("uid", "started_at", "ended_at", "last_time")
        return json.dumps({name: value for name, value in run.items() if name not in own})

    return {key: np.array(timeless(str(value))) if key.endswith(".run") else value for key, value in found.items()}
