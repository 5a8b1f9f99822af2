"""What kind of error `watch` raises: TypeError for a wrong type, ValueError for a wrong value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import root_dash
from tests.monitor.training import Model, sgd

WRONG_TYPES: dict[str, Any] = {
    "model": 1,
    "optimizer": 1,
    "db": 1,
    "name": 1,
    "config": 1,
    "cadence": 1,
    "include": 1,
    "exclude": 1,
    "outlier_quantile": "1",
    "max_overhead": "1",
    "ranks": 1,
    "server": 1,
    "token": 1,
    "spool": 1,
    "on_verdict": 1,
    "webhook": 1,
}
WRONG_VALUES: dict[str, Any] = {
    "include": "no such layer",
    "exclude": "*",
    "outlier_quantile": 0.0,
    "max_overhead": 0.0,
    "ranks": "second",
    "db": "mysql://host/runs",
    "webhook": "ftp://host/",
}


@pytest.mark.parametrize(
    ("argument", "value", "kind"),
    [(argument, value, TypeError) for argument, value in WRONG_TYPES.items()]
    + [(argument, value, ValueError) for argument, value in WRONG_VALUES.items()],
)
def test_a_wrong_argument_raises_one_kind_of_error(
    argument: str, value: Any, kind: type[Exception], tmp_path: Path
) -> None:
    """The kind depends on what is wrong alone, whatever the argument."""
    model = Model()
    given = {"model": model, "optimizer": sgd(model), "db": tmp_path / "runs.db", argument: value}
    with pytest.raises(kind) as error:
        root_dash.watch(**given)
    assert type(error.value) is kind
    assert list(tmp_path.iterdir()) == []
