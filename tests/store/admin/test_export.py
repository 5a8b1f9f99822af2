"""Exported files say what the verbs say."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import update

from root_dash.exceptions import NotRecorded, RootDashError
from root_dash.records import Event, Run, statistic_names
from root_dash.store import Store, export
from root_dash.store.admin.export import FileFormat, What
from root_dash.store.tables import schema
from tests.store.frames import make_frame, make_layers, record

FORMATS: list[FileFormat] = ["parquet", "csv", "json"]


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of an exported file, numbers as numbers, nothing as None."""
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows
    if path.suffix == ".json":
        loaded: list[dict[str, Any]] = json.loads(path.read_text())
        return [{name: _number(value) for name, value in row.items()} for row in loaded]
    with path.open(newline="") as file:
        return [{name: _number(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _number(value: Any) -> Any:
    if value == "":
        return None
    try:
        return json.loads(value) if isinstance(value, str) and value.startswith("[") else float(value)
    except (TypeError, ValueError):
        return value


@pytest.mark.parametrize("form", FORMATS)
def test_every_statistic_is_exported(form: FileFormat, tmp_path: Path, place: Path | str) -> None:
    """A row for each layer and step, with every statistic as the history has it, and whose it is."""
    path = record(place, 30, make_layers(5))
    record(path, 3, uid="other")
    done = export(path, tmp_path / f"out.{form}", run=1)
    rows = _read(done.path)
    assert len(rows) == done.rows == 150
    with Store.open(path) as store:
        for layer in store.layers(1):
            own = [row for row in rows if row["layer"] == layer.name]
            for name in statistic_names("statistics"):
                history = store.history(layer.id, name)
                assert [row["step"] for row in own] == history.steps.tolist()
                values = [math.nan if row[name] is None else row[name] for row in own]
                assert np.array_equal(values, history.values, equal_nan=True)
    assert {(row["run"], row["run_name"], row["attempt"]) for row in rows} == {(1, "a run", 1)}
    assert rows[3]["time"] == 1.7e9
    assert export(path, tmp_path / f"all.{form}").rows == 150 + 12


@pytest.mark.parametrize("form", FORMATS)
def test_arrays_are_exported_as_lists(form: FileFormat, tmp_path: Path) -> None:
    """Histograms, quantiles and spectra come out as the verbs have them."""
    path = record(tmp_path / "x.db", 21, make_layers(2))
    found: dict[What, list[dict[str, Any]]] = {}
    for what in ("histograms", "quantiles", "spectra"):
        found[what] = _read(export(path, tmp_path / f"{what}.{form}", what).path)
    with Store.open(path) as store:
        for row in found["histograms"]:
            layer = next(layer.id for layer in store.layers(1) if layer.name == row["layer"])
            for tensor in ("gradient", "momentum"):
                expected = store.histogram(layer, int(row["step"]), tensor)
                assert row[f"{tensor}_counts"] == expected.counts.tolist()
                assert row[f"{tensor}_nan"] == expected.nan
        for row in found["quantiles"]:
            layer = next(layer.id for layer in store.layers(1) if layer.name == row["layer"])
            expected_values = store.quantiles(layer, int(row["step"])).values
            assert np.array_equal(np.array(row["gradient_values"], np.float32), expected_values)
        for row in found["spectra"]:
            layer = next(layer.id for layer in store.layers(1) if layer.name == row["layer"])
            spectrum = store.spectrum(layer, int(row["step"]))
            assert np.array_equal(np.array(row["momentum"], np.float32), spectrum.momentum)
            assert row["sigma_max"] == store.statistics(layer, int(row["step"]))["sigma_max"]
    assert {what: len(rows) for what, rows in found.items()} == {"histograms": 6, "quantiles": 6, "spectra": 4}


@pytest.mark.parametrize("form", FORMATS)
def test_odd_numbers_and_texts_are_exported(form: FileFormat, tmp_path: Path, place: Path | str) -> None:
    """NaN is nothing, infinities stay, and quotes, commas, lines and formulas in texts come back."""
    layers, text = make_layers(1), '=1+1, "quoted"\nüber σ'
    frame = make_frame(0, 7, layers, np.random.default_rng(0), ["statistics"])
    frame = replace(
        frame,
        scalars={"nan": math.nan, "inf": math.inf, "low": -math.inf, "loss": 0.1},
        events=(Event("coefficients", text, 7, 5.0),),
    )
    path = place
    with Store.create(path) as store:
        recording = store.begin(Run("u", text, 1.0), layers)
        recording.append(frame)
        recording.close()
    scalars = {row["name"]: row["value"] for row in _read(export(path, tmp_path / f"s.{form}", "scalars").path)}
    assert {str(name): value for name, value in scalars.items() if value is not None} == {
        "inf": math.inf,
        "low": -math.inf,
        "loss": 0.1,
    }
    [event] = _read(export(path, tmp_path / f"e.{form}", "events").path)
    assert (event["run_name"], event["kind"], event["text"], event["step"]) == (text, "coefficients", text, 7)


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path, place: Path | str) -> None:
    """What fails half-way leaves the file that was there, and no part of a new one."""
    path = record(place, 20)
    out = tmp_path / "out.json"
    out.write_text("before")
    others = tmp_path / "out.json.part"
    others.write_text("somebody's")
    with Store.create(path) as store:
        recording = store.begin(Run("u", "r", 1.0), make_layers(1))
        connection = recording._connection
        assert connection is not None
        with connection.begin():
            table = schema.histograms
            connection.execute(update(table).where(table.c.step == 10).values(gradient_counts=b"\0"))
        recording.close()
    with pytest.raises(RootDashError, match="damaged"):
        export(path, out, "histograms")
    assert out.read_text() == "before"
    assert export(path, out, "scalars").rows
    assert out.read_text() != "before"
    assert others.read_text() == "somebody's"
    assert list(tmp_path.glob("*.part*")) == [others]


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    """An unknown table, format, run or folder is refused."""
    path = record(tmp_path / "x.db", 1)
    with pytest.raises(ValueError, match="what must be one of statistics, .* got 'masks'"):
        export(path, tmp_path / "x.csv", "masks")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the format must be one of parquet, csv, json, got 'xlsx'"):
        export(path, tmp_path / "x.xlsx")
    with pytest.raises(NotRecorded, match="there is no run 7"):
        export(path, tmp_path / "x.csv", run=7)
    with pytest.raises(ValueError, match="64 bits"):
        export(path, tmp_path / "x.csv", run=2**70)
    (tmp_path / "x.csv").symlink_to(path)
    with pytest.raises(ValueError, match="to must be another file than the database"):
        export(path, tmp_path / "x.csv")
    with pytest.raises(RootDashError, match=r"no/x\.csv cannot be written: no such file"):
        export(path, tmp_path / "no" / "x.csv")
