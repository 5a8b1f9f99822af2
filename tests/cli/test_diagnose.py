"""What `root-dash diagnose` says of recorded runs, sick and healthy."""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from root_dash import Cadence, watch
from root_dash.cli.diagnose import diagnose
from root_dash.exceptions import NotRecorded
from root_dash.store import Store
from tests.monitor.training import Model, root, step

STEPS, SICK_FROM = 90, 60
COMMAND = [sys.executable, "-m", "root_dash.cli", "diagnose"]


def recorded(path: Path, spoil: Callable[[nn.Module, int], None] = lambda model, index: None) -> Path:
    """Record a training of the small model with every step's statistics; `spoil` may change a gradient."""
    model = Model()
    optimizers = root(model)
    at = {"step": 0}
    optimizers[0].register_step_pre_hook(lambda *_: spoil(model, at["step"]))
    with watch(model, optimizers, db=path, name="a run", cadence=Cadence(statistics=1), max_overhead=math.inf) as run:
        for index in range(STEPS):
            at["step"] = index + 1
            run.log(loss=step(model, optimizers, index), lr=1e-2)
    return path


def dead_from(model: nn.Module, index: int) -> None:
    """Set one layer's gradient to zero from a step on."""
    gradient = model.get_parameter("down.weight").grad
    if index >= SICK_FROM and gradient is not None:
        gradient.zero_()


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=os.environ, timeout=300)


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which one layer is dead from a step on."""
    torch.manual_seed(0)
    return recorded(tmp_path_factory.mktemp("sick") / "sick.db", dead_from)


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training without the fault."""
    return recorded(tmp_path_factory.mktemp("healthy") / "healthy.db")


def test_a_dead_layer_is_named_with_its_step(sick: Path) -> None:
    """The worst verdict names the layer, and the step from which its gradient is zero."""
    with Store.open(sick) as store:
        found = diagnose(store, 1)
    assert found.layer_name(found.verdicts[0]) == "down.weight"
    assert found.verdicts[0].since == SICK_FROM
    assert found.is_at_least("note")


def test_a_run_that_does_not_exist_is_refused(sick: Path) -> None:
    """There is no diagnosis of a run that was never recorded."""
    with Store.open(sick) as store, pytest.raises(NotRecorded, match="there is no run 9"):
        diagnose(store, 9)


@pytest.mark.heavy
def test_the_command_prints_a_table_and_json(sick: Path) -> None:
    """People get the layer and the step in a table; scripts get one object, and exit code 1 if they ask for it."""
    table = run(sick)
    assert (table.returncode, table.stderr) == (0, "")
    assert "down.weight" in table.stdout
    printed = run(sick, "--json", "--fail-on", "note")
    assert printed.returncode == 1
    values = json.loads(printed.stdout)
    assert (values["run"], values["name"], values["steps"]) == (1, "a run", STEPS)
    worst = values["verdicts"][0]
    assert (worst["layer"], worst["since"]) == ("down.weight", SICK_FROM)
    assert set(worst) >= {"rule", "severity", "until", "text", "evidence"}


@pytest.mark.heavy
def test_a_healthy_run_says_so_in_one_line(healthy: Path) -> None:
    """Nothing needs a look, and no severity makes the command fail."""
    printed = run(healthy, "--fail-on", "note")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.strip() == f"run 1, a run: {STEPS} frames of 8 layers; no layer needs a look"


@pytest.mark.heavy
def test_a_wrong_severity_is_refused_by_name(healthy: Path) -> None:
    """The message names the option and what it takes."""
    refused = run(healthy, "--fail-on", "bad")
    assert refused.returncode == 2
    assert "--fail-on" in refused.stderr
    assert "warning" in refused.stderr


def test_names_do_not_steer_a_terminal(tmp_path: Path) -> None:
    """Control characters in the name of a run or layer are printed as text."""
    from rich.console import Console

    from root_dash.cli.diagnose import render
    from tests.store.frames import record

    path = record(tmp_path / "x.db", 30, name="evil\x1b[2Jname")
    console = Console(width=200)
    with Store.open(path) as store, console.capture() as captured:
        console.print(render(diagnose(store, 1)))
    assert "\x1b[2J" not in captured.get()
    assert "evil\\x1b[2Jname" in captured.get()


def test_stored_verdicts_are_shown_and_a_replay_judges_anew(sick: Path, tmp_path: Path) -> None:
    """Both say the same of a run that nobody changed; only what is stored follows a change of the table."""
    path = Path(shutil.copy(sick, tmp_path / "x.db"))
    with Store.open(path) as store:
        assert diagnose(store, 1).verdicts == diagnose(store, 1, replay=True).verdicts
    connection = sqlite3.connect(path)
    connection.execute("UPDATE verdicts SET text = 'changed'")
    connection.commit()
    with Store.open(path) as store:
        assert {verdict.text for verdict in diagnose(store, 1).verdicts} == {"changed"}
        assert "changed" not in {verdict.text for verdict in diagnose(store, 1, replay=True).verdicts}
    connection.execute("DROP TABLE verdicts")
    connection.execute("DROP TABLE judged")
    connection.commit()
    connection.close()
    with Store.open(path) as store:
        assert [verdict.layer for verdict in diagnose(store, 1).verdicts] != []
