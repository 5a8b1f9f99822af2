"""What `watch` refuses: by the argument, the value and the rule, and nothing is left behind."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

import root_dash
from root_dash.exceptions import StoreError
from root_dash.monitor.writing import sigterm
from tests.monitor.training import Model, root, sgd, train

REFUSED: dict[str, tuple[Any, str]] = {
    "model": ([1], r"model must be a torch.nn.Module, got \[1\]"),
    "optimizer": (nn.Linear, r"optimizer must be an optimizer of torch, .*, got <class .*Linear'> \(type\)"),
    "include": (5, "include must be a glob or a sequence of globs, each a str, got 5"),
    "exclude": (["head*", None], r"exclude must be a glob or .*, got \['head\*', None\]"),
    "cadence": ({"masks": 1}, r"cadence must be a root_dash.Cadence, got \{'masks': 1\}"),
    "name": (7, "name must be a str, got 7"),
    "config": ("lr", "config must be a mapping, got 'lr'"),
    "outlier_quantile": (True, "outlier_quantile must be a number, got True"),
    "max_overhead": ("1%", "max_overhead must be a number, got '1%'"),
    "ranks": ("second", "ranks must be 'first' or 'all', got 'second'"),
    "server": (8050, "server must be a str, got 8050"),
    "token": (b"secret", "token must be a str, got <class 'bytes'>"),
    "spool": (b"spool", "spool must be a path, got b'spool'"),
    "db": (b"postgresql://me:secret@host/runs", "db must be a path or the URL of .*, got <class 'bytes'>"),
}


class Reluctant(SGD):
    """Takes so many hooks, and no more."""

    takes = 3

    def register_step_post_hook(self, hook: Any) -> Any:
        """Raise once there are enough."""
        if len(self._optimizer_step_pre_hooks) + len(self._optimizer_step_post_hooks) >= self.takes:
            raise RuntimeError("no more hooks")
        return super().register_step_post_hook(hook)


def _unhooked(*optimizers: Optimizer) -> bool:
    return not any(one._optimizer_step_pre_hooks or one._optimizer_step_post_hooks for one in optimizers)


def _writers() -> int:
    return sum(thread.name in ("root-dash-writer", "root-dash-sender") for thread in threading.enumerate())


@pytest.mark.parametrize("argument", REFUSED)
@pytest.mark.parametrize("place", ["new", "existing", "server"])
def test_a_bad_argument_leaves_nothing_behind(argument: str, place: str, tmp_path: Path) -> None:
    """No database, no run in one that exists, no spool; nothing is attached and nothing runs."""
    value, message = REFUSED[argument]
    model = Model()
    optimizers = sgd(model)
    if place == "existing":
        root_dash.watch(model, optimizers, db=tmp_path / "runs.db").close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    remote = {"server": "http://localhost:1", "token": "token", "spool": tmp_path / "spool"}
    where = remote if place == "server" else {"db": tmp_path / "runs.db"}
    writers = _writers()
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        root_dash.watch(**{"model": model, "optimizer": optimizers, **where, argument: value})
    assert "secret" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert _unhooked(*optimizers)
    assert _writers() == writers


@pytest.mark.parametrize("place", ["new", "existing", "server"])
@pytest.mark.parametrize("takes", [0, 1, 3])
def test_an_optimizer_that_takes_no_hooks_leaves_nothing_behind(takes: int, place: str, tmp_path: Path) -> None:
    """What was attached before, to it and to others, is gone again: the run begins when all is attached."""
    model = Model()
    named = dict(model.named_parameters())
    willing = SGD([named.pop("embed.weight")], lr=0.1)
    reluctant = Reluctant(named.values(), lr=0.1)
    if place == "existing":
        root_dash.watch(model, willing, db=tmp_path / "runs.db").close()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    remote: dict[str, Any] = {"server": "http://localhost:1", "token": "token", "spool": tmp_path / "spool"}
    where = remote if place == "server" else {"db": tmp_path / "runs.db"}
    reluctant.takes = takes
    writers = _writers()
    with pytest.raises(RuntimeError, match="no more hooks"):
        root_dash.watch(model, [willing, reluctant], **where)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert _unhooked(willing, reluctant)
    assert _writers() == writers


def test_a_run_that_cannot_be_stored_leaves_the_optimizers_as_they_were(tmp_path: Path) -> None:
    """Where the database or the spool cannot be made; the same optimizers are watched by the next call."""
    model = Model()
    optimizers = root(model)
    (tmp_path / "file").touch()
    writers = _writers()
    refused: tuple[dict[str, Any], ...] = (
        {"db": tmp_path / "missing" / "runs.db"},
        {"server": "http://localhost:1", "token": "token", "spool": tmp_path / "file"},
        {"server": "nowhere", "token": "token", "spool": tmp_path / "spool"},
    )
    for where in refused:
        with pytest.raises((StoreError, ValueError)):
            root_dash.watch(model, optimizers, **where)
        assert _unhooked(*optimizers)
        assert _writers() == writers
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    with root_dash.watch(model, optimizers, db=tmp_path / "runs.db") as run:
        train(model, optimizers, 2, run.log)
    assert (run.stored, run.failures) == (2, 0)


def test_a_process_that_can_open_nothing_more_leaves_no_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the way to the end of the process cannot be set up, since it has too many files open."""

    def none_left(*_: Any) -> Any:
        raise OSError(24, "Too many open files")

    model = Model()
    optimizers = sgd(model)
    monkeypatch.setattr(sigterm, "_alarm", None)  # another recorder that is open may have made one
    monkeypatch.setattr(socket, "socketpair", none_left)
    remote: dict[str, Any] = {"server": "http://localhost:1", "token": "token", "spool": tmp_path / "spool"}
    for where in ({"db": tmp_path / "runs.db"}, remote):
        with pytest.raises(OSError, match="Too many open files"):
            root_dash.watch(model, optimizers, **where)
        assert _unhooked(*optimizers)
    assert list(tmp_path.iterdir()) == []
    assert torch.is_grad_enabled()
