"""Measure the store at size: the rate of frames beside four readers, the time of views, and bytes per layer and step.

    python benchmarks/store.py                       # about a minute: 1,000 and 10,000 steps
    python benchmarks/store.py --steps 100000        # ten times as long, 3.6 GB
    python benchmarks/store.py --db FOLDER           # where the databases are made; on the disk that counts
    python benchmarks/store.py --engine postgresql   # on a server of its own, as in the tests, with fsync; or both

Every frame holds all statistics of every layer. Insert rates are also measured with a histogram of each layer, drawn
from 256 x 256 entries. Readers are processes that ask for all views of the dashboard ten times a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np
from timing import results

from root_dash.records import Frame, Histogram, Layer, Run, histogram_edges, statistic_names
from root_dash.store import Recording, Store

READERS = 4
PAUSE = 0.1
"""Seconds between a reader's rounds, as in the dashboard."""

TARGETS = {
    "bytes per layer and step": 450,
    "history, statistics": 30,
    "history, histograms": 60,
    "grid": 100,
}
"""The promises of the store. Times are in milliseconds, at 10,000 steps, on an idle machine."""

ROWS_PER_SECOND = {"sqlite": 15_000, "postgresql": 12_000}


@dataclass(frozen=True, slots=True)
class Databases:
    """A maker of an engine's databases."""

    engine: str
    version: str
    make: Callable[[str], Path | str]
    """Make a database with this name, and return its path or URL."""
    size: Callable[[Path | str], int]
    """Return the size of a database in bytes."""
    remove: Callable[[Path | str], None]


@contextmanager
def databases(engine: str, folder: Path) -> Iterator[Databases]:
    """Yield the maker of an engine's databases. For PostgreSQL a server with defaults runs until the block ends."""
    if engine == "sqlite":

        def size(place: Path | str) -> int:
            return Path(place).stat().st_size

        def remove(place: Path | str) -> None:
            Path(place).unlink()

        yield Databases(engine, sqlite3.sqlite_version, lambda name: folder / f"{name}.db", size, remove)
        return
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.postgresql import started

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="root-dash-postgresql-") as own:
        server = started(Path(own), print, {"max_connections": "60"})
        if server is None:
            raise SystemExit(1)
        try:
            # The size of an empty database, mostly the server's own catalogues, does not count.
            made = server.create()
            Store.create(made).close()
            [(empty,)] = server.execute("SELECT pg_database_size(current_database())", _name(made))
            server.drop(made)
            yield Databases(
                engine,
                server.execute("SHOW server_version")[0][0],
                lambda name: server.create(),
                lambda place: server.execute("SELECT pg_database_size(current_database())", _name(place))[0][0] - empty,
                lambda place: server.drop(str(place)),
            )
        finally:
            server.stop()


def _name(place: Path | str) -> str:
    return str(place).rpartition("/")[2]


def frames(layers: int, histograms: bool, start: int = 0) -> Iterator[Frame]:
    """Yield frames of plausible numbers without an end, made from some numbers that are drawn beforehand."""
    rng = np.random.default_rng(0)
    names = statistic_names("statistics")
    drawn = np.exp(rng.normal(0, 0.2, (64, layers, len(names)))).astype(np.float32)
    for name in ("grad_nan", "grad_inf", "grad_zero"):
        drawn[:, :, names.index(name)] = 0
    counts = [
        np.histogram(rng.standard_t(4, 65_536) * 1e-3 * 2 ** rng.normal(), histogram_edges())[0].astype(np.uint32)
        for _ in range(32 if histograms else 0)
    ]
    positions, step = np.arange(layers), start
    while True:
        held = {at: {"gradient": Histogram(counts[(7 * step + at) % 32])} for at in range(layers if histograms else 0)}
        # Every step has its own numbers: repeated numbers would be packed to nothing.
        values = drawn[step % 64] * np.float32(1 + step % 4099 / 8192)
        yield Frame(step - start, step, 1.7e9 + step, positions, values, held, scalars={"loss": 3 / (1 + step)})
        step += 1


def begin(store: Store, layers: int, name: str) -> Recording:
    """Return a new run of so many layers, open for appending."""
    run = Run(name, name, time.time(), cadence={"statistics": 1, "histograms": 1, "scalars": 1})
    return store.begin(run, [Layer(f"blocks.{at}.weight", (256, 256), "root", at) for at in range(layers)])


def views(store: Store, layer: int) -> dict[str, Callable[[], object]]:
    """Return the views of the dashboard by name."""
    run = store.run_of(layer)
    return {
        "grid": lambda: store.grid(run, "grad_norm", 512),
        "history of 2,000 points": lambda: store.history(layer, "grad_norm", 2000),
        "statistics at a step": lambda: store.statistics(layer, 10),
        "newest frames": lambda: store.frames(run, max(0, (store.run(run).frames or 0) - 10)),
    }


def read(path: Path | str, stop: Event, answers: multiprocessing.Queue[list[float]]) -> None:
    """Ask for the views until the event `stop`; then put the seconds of each answer into `answers`."""
    took = []
    with Store.open(path) as store:
        layer = store.layers(store.runs()[0].id)[0].id
        while not stop.is_set():
            for view in views(store, layer).values():
                start = time.perf_counter()
                view()
                took.append(time.perf_counter() - start)
            stop.wait(PAUSE)
    answers.put(took)


def insert_rate(where: Databases, layers: int, seconds: float, histograms: bool) -> dict[str, float]:
    """Append frames for so many seconds, a transaction each, beside the readers; return the measures."""
    path = where.make(f"insert-{int(histograms)}")
    context = multiprocessing.get_context("spawn")
    stop, answers = context.Event(), context.Queue()
    took = []
    with Store.create(path) as store:
        recording = begin(store, layers, "insert")
        source = frames(layers, histograms)
        recording.append(next(source))
        readers = [context.Process(target=read, args=(path, stop, answers)) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        time.sleep(2)  # the readers import NumPy and SQLAlchemy first
        started, used = time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            frame = next(source)
            start = time.perf_counter()
            recording.append(frame)
            took.append(time.perf_counter() - start)
        wall, used = sum(took), time.process_time() - used
        log = path.with_name(path.name + "-wal").stat().st_size if isinstance(path, Path) else None
        stop.set()
        waited = sorted(wait for _ in readers for wait in answers.get(timeout=60))
        for reader in readers:
            reader.join()
        recording.end(time.time())
        recording.close()
    return {
        "rows per second": layers * len(took) / wall,
        "append, median ms": 1e3 * statistics.median(took),
        "append, p99 ms": 1e3 * float(np.quantile(took, 0.99)),
        "processor ms per frame": 1e3 * used / len(took),
        "reads": len(waited),
        "read, p95 ms": 1e3 * float(np.quantile(waited, 0.95)),
        "bytes per layer and step": where.size(path) / layers / (len(took) + 1),
    } | ({} if log is None else {"write-ahead log, MB": log / 1e6})


def read_latencies(where: Databases, layers: int, steps: int, rounds: int = 7) -> dict[str, float]:
    """Return the median milliseconds of each view of a run of so many steps."""
    path = where.make(f"read-{steps}")
    with Store.create(path) as store:
        recording = begin(store, layers, "read")
        for _, frame in zip(range(steps), frames(layers, False), strict=False):
            recording.append(frame)
        recording.close()  # without an end, as a run that still trains, whose newest rows are not folded yet
        narrow = begin(store, 1, "narrow")
        for _, frame in zip(range(min(steps, 10_000)), frames(1, True), strict=False):
            narrow.append(frame)
        narrow.close()
    found = {"MB": where.size(path) / 1e6}
    with Store.open(path) as store:
        layer = store.layers(1)[layers // 2].id
        asked = views(store, layer) | {
            "history, statistics": lambda: store.history(layer, "grad_norm"),
            "history, histograms": lambda: store.histograms(store.layers(2)[0].id, max_points=10**6),
        }
        for name, view in asked.items():
            view()  # the first call finds cold caches and compiles its statement
            took = []
            for _ in range(rounds):
                start = time.perf_counter()
                view()
                took.append(time.perf_counter() - start)
            found[name] = 1e3 * statistics.median(took)
    where.remove(path)
    return found


def table(title: str, columns: dict[str, dict[str, float]], targets: dict[str, int]) -> None:
    """Print a row for each measure and a column for each case."""
    width = max(len(name) for found in columns.values() for name in found)
    print(f"\n{title:<{width}}" + "".join(f"{name:>22}" for name in columns) + f"{'target':>10}")
    for name in next(iter(columns.values())):
        values = "".join(f"{found[name]:>22,.1f}" for found in columns.values())
        print(f"{name:<{width}}{values}{targets.get(name, ''):>10}")


def measure(where: Databases, layers: int, seconds: float, steps: list[int]) -> dict[str, Any]:
    """Print both measurements of an engine, and return what the JSON keeps."""
    targets = TARGETS | {"rows per second": ROWS_PER_SECOND[where.engine]}
    load = os.getloadavg()[0]
    inserted = {
        title: insert_rate(where, layers, seconds, histograms)
        for title, histograms in (("statistics", False), ("and a histogram", True))
    }
    table(f"{where.engine} {where.version}, {READERS} readers, {layers} layers", inserted, targets)
    latencies = {f"{number:,} steps": read_latencies(where, layers, number) for number in steps}
    if latencies:
        table("milliseconds", latencies, targets)
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "load": load},
        "version": where.version,
        "layers": layers,
        "insert": inserted,
        "read": latencies,
    }


def main() -> None:
    """Measure, print the tables, and write the JSON, which keeps the results of other engines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=["sqlite", "postgresql", "both"], default="sqlite")
    parser.add_argument("--layers", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=6, help="of inserting, each time")
    parser.add_argument("--steps", type=int, nargs="*", default=[1_000, 10_000], help="of the runs that are read")
    parser.add_argument("--db", type=Path, help="the folder of the databases, else a temporary one")
    parser.add_argument("--json", type=Path, default=results(__file__))
    chosen = parser.parse_args()
    if chosen.db is not None:
        chosen.db.mkdir(parents=True, exist_ok=True)
    for engine in ("sqlite", "postgresql") if chosen.engine == "both" else (chosen.engine,):
        with tempfile.TemporaryDirectory(dir=chosen.db) as name, databases(engine, Path(name)) as where:
            result = measure(where, chosen.layers, chosen.seconds, chosen.steps)
        known = json.loads(chosen.json.read_text()) if chosen.json.exists() else {}
        chosen.json.write_text(json.dumps(known | {engine: result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
