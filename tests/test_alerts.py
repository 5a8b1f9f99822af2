"""Verdicts that are told while a run trains, here and through a server: to a function, on stderr and to a webhook."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import root_dash
from root_dash import alerts
from root_dash.alerts import AlertingSink, Alerts
from root_dash.delivery.webhook import NotTold, Webhook
from root_dash.health import Health, replay
from root_dash.monitor.recorder import Recorder
from root_dash.monitor.writing.sink import NullSink
from root_dash.records.verdict import Verdict, to_json
from root_dash.sending import remote_sink
from root_dash.store import Store
from tests.delivery.servers import WRITE, serving
from tests.delivery.spools import HASTY
from tests.monitor.training import EVERY_STEP, Model, sgd, train
from tests.store.write.test_judging import FRAMES, LAYERS, RUN
from tests.waiting import until

STEPS, SICK_FROM = 40, 20


class Hook:
    """A webhook that keeps what it gets, or refuses it."""

    def __init__(self, status: int) -> None:
        self.got: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/secret"


@contextmanager
def hook(status: int = 200) -> Iterator[Hook]:
    """Run a webhook."""
    made = Hook(status)
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        thread.join()
        made.server.server_close()


def spoil(model: nn.Module) -> Callable[..., None]:
    """Return what makes the gradient of one layer NaN in one step, if it is called before each step."""
    at = {"step": 0}

    def before(*_: object) -> None:
        at["step"] += 1
        gradient = model.get_parameter("up.weight").grad
        if at["step"] == SICK_FROM and gradient is not None:
            gradient.fill_(float("nan"))

    return before


def sick(**given: Any) -> Recorder:
    """Train with a NaN at a step, watched, and return the closed recorder."""
    model = Model()
    optimizers = sgd(model)
    optimizers[0].register_step_pre_hook(spoil(model))
    with root_dash.watch(
        model, optimizers, name="a run", cadence=EVERY_STEP, max_overhead=float("inf"), **given
    ) as run:
        train(model, optimizers, STEPS, run.log)
    return run


def test_a_verdict_is_told_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the function in a thread of its own, on stderr if it is critical, to the webhook once, and by the recorder."""
    told: list[tuple[str, Verdict]] = []
    with hook() as posted:
        run = sick(
            db=tmp_path / "x.db",
            on_verdict=lambda verdict: told.append((threading.current_thread().name, verdict)),
            webhook=posted.url,
        )
    with root_dash.open(tmp_path / "x.db") as store:
        stored = store.verdicts(1)
    assert list(map(to_json, run.verdicts)) == list(map(to_json, stored))  # a loss that is NaN equals none
    first = next(verdict for verdict in stored if verdict.severity == "critical")
    assert first.since == SICK_FROM
    assert {name for name, _ in told} == {"root-dash-alerts"}
    assert {verdict.id: to_json(verdict) for _, verdict in told} == {verdict.id: to_json(verdict) for verdict in stored}
    assert len(posted.got) == len(stored)
    assert all(set(message) == {"text", "content"} for message in posted.got)
    assert posted.got[first.id - 1]["text"].startswith("a run: critical: up.weight")
    assert run.failures == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if ": critical: " in line]
    assert len(lines) == sum(verdict.severity == "critical" for verdict in stored)


def test_a_run_through_a_server_is_told_without_it(tmp_path: Path) -> None:
    """The trainer's own fold tells what the server stores later; nobody answers while it trains."""
    told: dict[int, Verdict] = {}
    made = Alerts(RUN, lambda verdict: told.__setitem__(verdict.id, verdict))
    expected = {verdict.id: verdict for verdict in replay(LAYERS, FRAMES)}
    with serving(tmp_path / "team.db", held=True, judge=Health) as (server, gate, _):
        sink = AlertingSink(remote_sink(RUN, LAYERS, server, WRITE, tmp_path / "spool", HASTY), made, LAYERS)
        for frame in FRAMES:
            sink.append(frame)
        until(lambda: told == expected, "the verdicts")
        gate.set()
        sink.end(2.0, 0)
        sink.close()
        until(lambda: not list((tmp_path / "spool").glob("*.db")), "the delivery")
    with Store.open(tmp_path / "team.db") as store:
        assert store.verdicts(1) == list(expected.values()) == list(made.verdicts)
        assert store.is_judged(1)


def test_what_a_function_raises_is_counted_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is a webhook that refuses, whose address is not shown; the training and its recording go on."""

    def fail(verdict: Verdict) -> None:
        raise RuntimeError("not mine")

    with hook(500) as posted:
        run = sick(db=tmp_path / "x.db", on_verdict=fail, webhook=posted.url)
    shown = capsys.readouterr().err
    assert shown.count("on_verdict failed: RuntimeError: not mine") == 1
    assert shown.count("the webhook at 127.0.0.1 answers 500") == 1
    assert "secret" not in shown
    with root_dash.open(tmp_path / "x.db") as store:
        assert run.failures >= len(store.verdicts(1)) + len(posted.got)
        assert store.run(1).frames == STEPS + 1  # the last has the event of the flight recorder's end


def test_a_function_that_never_returns_holds_nobody_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts beyond those that wait are not told, and counted; the end waits for a while only."""
    monkeypatch.setattr(alerts, "WAITING", 1)
    monkeypatch.setattr(alerts, "CLOSE_SECONDS", 0.05)
    release = threading.Event()
    made = Alerts(RUN, lambda verdict: release.wait())
    sink = AlertingSink(NullSink(), made, LAYERS)
    for frame in FRAMES:
        sink.append(frame)
    sink.close()
    assert len(made.verdicts) == len(replay(LAYERS, FRAMES))
    assert made.failures >= 3
    assert "were not told in time" in capsys.readouterr().err
    release.set()


def test_a_fold_that_fails_costs_no_frame(capsys: pytest.CaptureFixture[str]) -> None:
    """Frames go on into the sink."""

    class Kept(NullSink):
        frames = 0

        def append(self, frame: object) -> object:
            self.frames += 1
            return self.frames

    kept = Kept()
    sink = AlertingSink(kept, Alerts(RUN), LAYERS[:2])  # the frames name more
    for frame in FRAMES[:5]:
        sink.append(frame)
    sink.close()
    assert kept.frames == 5
    assert capsys.readouterr().err.count("the diagnosis failed") == 1


@pytest.mark.parametrize("url", ["ftp://host/secret", "secret", "http://", "http:///secret"])
def test_an_address_that_is_none_is_refused_without_being_shown(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold a secret."""
    with pytest.raises(ValueError, match="webhook must be an address") as error:
        Webhook(url)
    assert "secret" not in str(error.value)
    monkeypatch.setenv("ROOT_DASH_WEBHOOK", url)
    model = Model()
    with pytest.raises(ValueError, match="webhook must be an address"):
        root_dash.watch(model, sgd(model))


def test_a_webhook_that_is_away_does_not_show_its_address() -> None:
    """The error names the host alone; long texts are cut."""
    with hook() as posted:
        Webhook(posted.url).post("x" * 5000)
        assert len(posted.got[0]["content"]) < 2000
    with pytest.raises(NotTold, match="the webhook at 127.0.0.1 cannot be reached") as error:
        Webhook(posted.url).post("text")
    assert "secret" not in str(error.value)
