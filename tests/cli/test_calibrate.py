"""`root-dash calibrate`: coefficient sets that are fitted to a recorded run, and their errors."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from root_dash.cli.calibrate import Row, render, report
from root_dash.coefficients.fit import polar_error, supremum
from root_dash.coefficients.tables import resolve
from root_dash.exceptions import NotRecorded, RootDashError
from root_dash.store import Store
from tests.store.frames import make_layers, record


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six layers with spectra at the steps 0, 20, 40, 60 and 80. One layer is a vector under AdamW."""
    return record(tmp_path_factory.mktemp("calibrate") / "runs.db", 81, make_layers(6))


@pytest.fixture(scope="module")
def rows(path: Path) -> list[Row]:
    with Store.open(path) as store:
        return report(store, 1)


def test_one_row_per_shape(rows: list[Row]) -> None:
    """Matrices of one shape share a row, also if one is the transpose of the other. A vector has no row."""
    assert [(row.shape, row.layers) for row in rows] == [((24, 32), 2), ((24, 24), 1), ((16, 24), 2)]
    assert [(row.fitted_to, row.judged_on) for row in rows] == [(4, 6), (2, 3), (4, 6)]


def test_errors_are_those_of_the_later_half(path: Path, rows: list[Row]) -> None:
    """Each error is the mean over the later spectra of what the set leaves, by the store and the formula."""
    for row in rows:
        with Store.open(path) as store:
            bases = [
                store.spectrum(layer.id, step).base.astype(np.float64)
                for layer in store.layers(1)
                if layer.is_matrix and sorted((layer.rows, layer.cols)) == sorted(row.shape)
                for step in (40, 60, 80)
            ]
        sets = {name: resolve(name, 5, row.shape) for name in ("robust", "muon", "paper", "polar_express")}
        sets |= {"adaptive": row.adaptive, "adanewton": row.adanewton}
        assert row.errors.keys() == sets.keys()
        for name, triples in sets.items():
            errors = []
            for base in bases:
                s = base / (
                    1.003 * np.sum(base**8) ** 0.125 if name in ("robust", "adaptive") else np.sqrt(np.sum(base**2))
                )
                for a, b, c in triples:
                    s = a * s + b * s**3 + c * s**5
                errors.append(np.sqrt(np.mean((s - 1) ** 2)))
            assert row.errors[name] == pytest.approx(np.mean(errors))


def test_the_fitted_sets_are_fitted_and_bounded(path: Path, rows: list[Row]) -> None:
    """On the spectra of the fit, the fitted sets err less than the sets they start from, and none can overshoot."""
    for row in rows:
        with Store.open(path) as store:
            earlier = [
                store.spectrum(layer.id, step).base
                for layer in store.layers(1)
                if layer.is_matrix and sorted((layer.rows, layer.cols)) == sorted(row.shape)
                for step in (0, 20)
            ]
        for fitted, start, normalization in (
            (row.adaptive, "robust", "schatten8"),
            (row.adanewton, "muon", "frobenius"),
        ):
            ratios = [
                polar_error(fitted, base, normalization) / polar_error(resolve(start, 5), base, normalization)  # type: ignore[arg-type]
                for base in earlier
            ]
            assert np.mean(np.square(ratios)) < 1.0
        assert supremum(row.adaptive, noise=0.012) <= 1.06
        assert supremum(row.adanewton, noise=0.012) <= 1.3
        assert len(set(row.adanewton)) == 1


def test_it_prints_errors_and_sets(rows: list[Row]) -> None:
    """The table has a row per shape. The printed sets can be pasted, and are within their bounds as printed."""
    console = Console(file=io.StringIO(), width=60)
    console.print(render(rows), highlight=False)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for row in rows:
        assert re.search(rf"^{row.shape[0]} x {row.shape[1]} .*{row.errors['adaptive']:.4f}", text, re.MULTILINE)
    printed = [json.loads(found) for found in re.findall(r"adaptive: ns_coefficients=\n(\[\[[^a-z]*\]\])", text)]
    assert len(printed) == len(rows)
    for triples, row in zip(printed, rows, strict=True):
        np.testing.assert_allclose(triples, row.adaptive, atol=1e-5)
        assert supremum(triples, noise=0.012) <= 1.06
    assert len(re.findall(r'normalization="frobenius", ns_coefficients=\n\[[^[\]]*\]$', text, re.MULTILINE)) == len(
        rows
    )


def test_runs_without_spectra_are_refused(tmp_path: Path) -> None:
    """An unknown run, and a run with the spectra of a single step, are refused in a sentence."""
    path = record(tmp_path / "runs.db", 2)
    with Store.open(path) as store:
        with pytest.raises(NotRecorded, match="there is no run 7"):
            report(store, 7)
        with pytest.raises(RootDashError, match="run 1 recorded the spectra of no matrix at two steps"):
            report(store, 1)


def test_it_needs_no_torch() -> None:
    """A dashboard host, which has no torch, can calibrate."""
    code = "import sys, root_dash.cli.calibrate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
