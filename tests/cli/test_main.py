"""The command line as a user meets it: real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient
from typer.testing import CliRunner

from root_dash import __version__
from root_dash.cli.main import app
from root_dash.cli.serving import compose, page_address
from root_dash.records import Attempt, Run
from root_dash.settings import Settings
from root_dash.store import Store
from root_dash.store.tables.versions import SCHEMA_VERSION
from tests.store.frames import make_frame, make_layers, record
from tests.waiting import LIMIT_SECONDS

COMMAND = [sys.executable, "-W", "error::ResourceWarning", "-m", "root_dash.cli"]


def environment(**variables: str) -> dict[str, str]:
    """Return the tests' environment without the settings of the user who runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith("ROOT_DASH_")} | variables


def run(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder until it ends."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """Return the message of a refusal: one line, exit code 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("root-dash: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("root-dash: ").strip()


@contextmanager
def serving(*arguments: str, **variables: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """Start a server process, and give the process, its address without the token, and the token."""
    process = subprocess.Popen(
        [*COMMAND, "serve", *arguments, "--port", "0", "--no-open"],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line, elsewhere = process.stdout.readline(), process.stdout.readline()
        assert elsewhere.startswith("root-dash: record from elsewhere with watch(..., server="), elsewhere
        assert line.startswith("root-dash: http://127.0.0.1:"), process.stderr and process.stderr.read()
        address, _, token = line.removeprefix("root-dash: ").strip().partition("/?token=")
        yield process, address, token
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def get(url: str, token: str) -> urllib.request.Request:
    """Return a request that shows the token."""
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})  # noqa: S310 (our own address)


BAD_FILES: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: None, "there is no database at"),
    (lambda path: path.mkdir(), "is a directory"),
    (lambda path: path.write_text("hello, I am a text file"), "not a root-dash database"),
    (lambda path: path.touch(), "is empty"),
]


@pytest.mark.parametrize(("make", "text"), BAD_FILES)
def test_a_file_that_cannot_be_served_is_one_line(make: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    """A missing file, a directory and a foreign file end in one line and exit code 2."""
    make(tmp_path / "x.db")
    assert text in refused(run(tmp_path, "serve", "x.db", "--read-only"))


@pytest.mark.parametrize(
    ("arguments", "variables", "text"),
    [
        (["serve", "--read-only"], {}, "there is no database at root-dash.db"),
        (["serve"], {"ROOT_DASH_DB": "missing/x.db"}, "the folder missing does not exist"),
        (["serve", "--token", "x", "--write-token", "x"], {}, "token and write_token must differ"),
        (
            ["serve", "/proc/x.db"],
            {},
            "/proc/x.db cannot be made, no such file or directory: give a path in a folder that",
        ),
        (["sync"], {}, "give the address of the server: --server http://host:8050"),
        (["sync", "--server", "http://far:8050"], {}, "there is no folder root-dash-spool"),
        (["sync", ".", "--server", "http://far:8050"], {}, "server needs the write token"),
        (["sync", ".", "--server", "far", "--token", "x"], {}, "server must be an address as http://host:8050"),
        (["runs"], {"ROOT_DASH_DB": "other.db"}, "there is no database at other.db"),
        (["runs", "nul\ndir/x.db"], {}, "there is no database at nul dir/x.db"),
        (
            ["serve", "--host", "192.0.2.1", "--no-token"],
            {},
            "host 192.0.2.1 can be reached by others: it needs a token",
        ),
        (["serve", "--token", "x", "--no-token"], {}, "give --token or --no-token, not both"),
        (["serve", "--token", ""], {}, "token: token must not be empty"),
        (["serve"], {"ROOT_DASH_TOKEN": ""}, "token: token must not be empty"),
        (["serve", "--port", "99999"], {}, "port: Input should be less than or equal to 65535"),
        (["serve"], {"ROOT_DASH_PORT": "x"}, "port: Input should be a valid integer"),
    ],
)
def test_bad_settings_are_one_line(
    arguments: list[str], variables: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong setting, by option or by environment, ends in one line that names the setting, and exit code 2."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments, env=variables)
    done = subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
    assert refused(done).startswith(text)


def test_an_address_that_cannot_be_listened_on_is_one_line(tmp_path: Path) -> None:
    """A taken port, and a host of another machine, end in one line and exit code 2."""
    path = str(record(tmp_path / "x.db", 1))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refused(run(tmp_path, "serve", path, "--port", port)).startswith(f"port {port} is taken")
    assert "cannot listen on 192.0.2.1" in refused(run(tmp_path, "serve", path, "--host", "192.0.2.1"))


def test_the_command_is_quick_to_start() -> None:
    """The command's module imports neither torch nor the dashboard nor the server, so that `--help` answers at once."""
    code = (
        "import sys, root_dash.cli.main; print(sorted({'torch', 'dash', 'fastapi', 'sqlalchemy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert result.stdout.strip() == "[]"


def test_runs_are_listed(tmp_path: Path) -> None:
    """`root-dash runs` prints a line for every run, with its name unchanged."""
    path = record(tmp_path / "x.db", 3, name="[red]odd[/red] ünï")
    record(path, 2, uid="run-2", end=False)
    result = CliRunner().invoke(app, ["runs", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    assert len(lines) == 3
    assert lines[1].split()[0] == "2"
    assert lines[1].split()[-1] == "open"
    assert "[red]odd[/red] ünï" in lines[2]
    assert lines[2].split()[-3:] == ["0", "2", "ended"]


def test_listed_runs_of_several_processes_are_told_apart(tmp_path: Path) -> None:
    """The runs of several processes have one name, so the list adds the rank of every process but the first."""
    with Store.create(tmp_path / "x.db") as store:
        for rank in range(2):
            store.begin(Run(f"run-{rank}", "a run", float(rank), rank=rank), make_layers())
    result = CliRunner().invoke(app, ["runs", str(tmp_path / "x.db")], env={"COLUMNS": "200"})
    assert "a run · rank 1" in result.stdout
    assert "rank 0" not in result.stdout


def test_sets_are_fitted_to_a_recorded_run(tmp_path: Path) -> None:
    """`root-dash calibrate` prints every shape and set of the named run, or of the newest, or says why it cannot."""
    path = record(tmp_path / "x.db", 41)
    record(path, 2, uid="run-2", start=50)
    result = CliRunner().invoke(app, ["calibrate", str(path), "1"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for text in ("16 x 24", "24 x 24", "adaptive", "adanewton", "polar_express", "ns_coefficients="):
        assert text in result.stdout
    newest = CliRunner().invoke(app, ["calibrate", str(path)], env={"COLUMNS": "200"})
    assert (newest.exit_code, "run 2 recorded the spectra of no matrix at two steps" in newest.output) == (2, True)
    unknown = CliRunner().invoke(app, ["calibrate", str(path), "9"])
    assert (unknown.exit_code, "there is no run 9" in unknown.output) == (2, True)


def test_a_database_is_kept_in_order(tmp_path: Path) -> None:
    """A database is examined, exported, pruned only with `--yes`, and up to date. A mistake ends in one line."""
    path = record(tmp_path / "x.db", 20)
    run = CliRunner().invoke
    assert run(app, ["migrate", str(path)]).stdout == f"{path} is up to date, at schema {SCHEMA_VERSION}\n"
    examined = run(app, ["doctor", str(path)])
    assert examined.exit_code == 0
    assert "error" not in {line.split()[0] for line in examined.stdout.splitlines()}
    written = tmp_path / "out.csv"
    assert "rows in" in run(app, ["export", str(path), "--to", str(written)]).stdout
    assert "grad_norm" in written.read_text().splitlines()[0]
    assert run(app, ["export", str(path), "--what", "secrets"]).exit_code == 2
    assert "would remove 15 frames" in run(app, ["prune", str(path), "--keep-steps", "5"]).stdout
    with Store.open(path) as store:
        assert store.runs()[0].frames == 20
    assert "removed 15 frames" in run(app, ["prune", str(path), "--keep-steps", "5", "--yes"]).stdout
    with Store.open(path) as store:
        assert store.runs()[0].frames == 5
    (tmp_path / "junk.db").write_text("junk " * 2000)
    assert run(app, ["doctor", str(tmp_path / "junk.db")]).exit_code == 1


def test_the_version_is_printed() -> None:
    """`root-dash --version` prints the version alone."""
    assert CliRunner().invoke(app, ["--version"]).stdout.strip() == __version__


def test_a_demo_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """If torch is missing, the demo says how to install it."""
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else find(name))
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 2
    wanted = "root-dash demo needs torch: run pip install '.[torch]' in a clone of root-dash"
    assert result.stderr == f"root-dash: {wanted}\n"


def test_a_secret_of_another_user_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret's file that the server may not read is refused with its path and the permission that it needs."""
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:  # tmp_path is closed to other users
        os.chmod(folder, 0o755)  # noqa: S103
        secret = Path(folder) / "root_dash_db"
        secret.write_text("postgresql://root_dash:hidden@database/root_dash")
        secret.chmod(0)
        patch.setitem(Settings.model_config, "secrets_dir", folder)
        patch.delenv("ROOT_DASH_DB", raising=False)
        me = os.geteuid()
        try:
            os.seteuid(65534 if me == 0 else me)  # root may read every file
            result = CliRunner().invoke(app, ["runs"])
        finally:
            os.seteuid(me)
    assert result.exit_code == 2
    assert result.stderr == f"root-dash: {secret} must be readable for the user that runs root-dash\n"


def test_addresses_can_be_opened() -> None:
    """The address has the token quoted, an IPv6 host in brackets, and localhost if all interfaces are bound."""
    assert page_address(Settings(token=SecretStr("a&b c"))) == "http://127.0.0.1:8050/?token=a%26b%20c"
    assert page_address(Settings(token=None, host="::1", port=1)) == "http://[::1]:1/"
    assert page_address(Settings(token=SecretStr("x"), host="::")).startswith("http://localhost:8050/")


def test_the_dashboard_answers_what_the_api_does_not(tmp_path: Path) -> None:
    """Behind one guard are the API, its JSON 404 and, on every other path, the dashboard."""
    with Store.open(record(tmp_path / "x.db", 3)) as store:
        settings = Settings(token=SecretStr("s3cret"))
        client = TestClient(compose(settings, store), base_url="http://127.0.0.1:8050")
        assert client.get("/").status_code == 401
        assert client.get("/_dash-layout").status_code == 401
        assert client.get("/api/v1/runs").status_code == 401
        page = client.get("/?token=s3cret")
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]
        assert client.get("/api/v1/runs").json()[0]["frames"] == 3
        missing = client.get("/api/nope")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
        assert client.post("/api/v1/runs").status_code == 405


@pytest.mark.heavy
def test_a_team_server_starts_empty_and_takes_recordings(tmp_path: Path) -> None:
    """A missing database is made. A spool is sent to it with the write token that was printed or given."""
    uid = "a" * 32
    (tmp_path / "root-dash-spool").mkdir()
    with Store.create(tmp_path / "root-dash-spool" / f"{uid}.db") as store:
        recording = store.begin(Run("u", "far", 1.0), make_layers(2), Attempt(uid, 1.0))
        recording.append(make_frame(0, 0, make_layers(2), np.random.default_rng(0)))
    with serving(str(tmp_path / "team.db"), **{"ROOT_DASH_WRITE_TOKEN": "w"}) as (_, address, token):
        arguments = ("sync", "--server", address, "--token")
        assert "401: the write token is required" in refused(run(tmp_path, *arguments, "x"))
        assert "403: this token is for looking" in refused(run(tmp_path, *arguments, token))
        result = run(tmp_path, *arguments, "w")
        assert (result.returncode, result.stdout) == (0, f"sent 1 frames of root-dash-spool/{uid}.db\n")
        with urllib.request.urlopen(get(f"{address}/api/v1/runs", token), timeout=LIMIT_SECONDS) as answer:  # noqa: S310
            assert [found["frames"] for found in json.load(answer)] == [1]


@pytest.mark.heavy
def test_a_server_serves_streams_and_leaves(tmp_path: Path) -> None:
    """A real server prints its address and streams a frame that is stored meanwhile. Ctrl-C ends it at once."""
    layers, rng = make_layers(2), np.random.default_rng(0)
    with Store.create(tmp_path / "x.db") as store:
        recording = store.begin(Run("u", "live", 1.0), layers)
        recording.append(make_frame(0, 0, layers, rng))
        with serving(str(tmp_path / "x.db")) as (process, address, token):
            assert len(token) >= 43
            with urllib.request.urlopen(f"{address}/healthz", timeout=LIMIT_SECONDS) as answer:  # noqa: S310
                assert json.load(answer) == {"status": "ok"}
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{address}/api/v1/runs", timeout=LIMIT_SECONDS)  # noqa: S310
            url = f"{address}/api/v1/runs/1/stream?after=1"
            with urllib.request.urlopen(get(url, token), timeout=LIMIT_SECONDS) as events:  # noqa: S310
                recording.append(make_frame(1, 7, layers, rng))
                data = json.loads(events.readline().removeprefix(b"data: "))
                assert (data["id"], data["step"]) == (2, 7)
                assert events.readline() == b"id: 2\n"
                # The stream is still open: the server ends it, and must not keep itself from shutting down for it.
                process.send_signal(signal.SIGINT)
                assert events.read() == b"\n"
                assert process.wait(LIMIT_SECONDS) == 0
            out, err = process.communicate()
            assert (out, err) == ("", "")


@pytest.mark.heavy
def test_a_server_cuts_off_what_never_ends(tmp_path: Path) -> None:
    """The command's server limits heads and the bodies of the dashboard's callbacks, and logs it once."""
    with serving(str(record(tmp_path / "x.db", 2))) as (process, address, token):
        port = int(address.rpartition(":")[2])
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
                with pytest.raises(ConnectionError):
                    peer.sendall(b"GET / HTTP/1.1\r\na: " + b"b" * 2**25)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as peer:
            head = "POST /_dash-update-component HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            peer.sendall(f"{head}Authorization: Bearer {token}\r\nContent-Length: {2**20 + 1}\r\n\r\n".encode())
            assert peer.recv(100).startswith(b"HTTP/1.1 413 ")
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1].count("cut off") == 1


@pytest.mark.heavy
def test_a_server_takes_its_token_from_the_environment(tmp_path: Path) -> None:
    """ROOT_DASH_DB and ROOT_DASH_TOKEN are respected, and SIGTERM ends the server without a message."""
    path = str(record(tmp_path / "x.db", 2))
    variables = {"ROOT_DASH_DB": path, "ROOT_DASH_TOKEN": "from-the-environment"}
    with serving(**variables) as (process, address, token):
        assert token == variables["ROOT_DASH_TOKEN"]
        with urllib.request.urlopen(get(f"{address}/api/v1/runs/1", token), timeout=LIMIT_SECONDS) as answer:  # noqa: S310
            assert json.load(answer)["frames"] == 2
        process.terminate()
        process.wait(LIMIT_SECONDS)
        assert process.communicate() == ("", "")


def test_names_are_shown_as_text(tmp_path: Path) -> None:
    """Characters in a run's name that a terminal would obey, or that would fake a line, are written out."""
    path = record(tmp_path / "x.db", 2, name="\x1b]0;mine\x07\nok      integrity")
    for verb in ("runs", "doctor"):
        output = CliRunner().invoke(app, [verb, str(path)], env={"COLUMNS": "200"}).output
        assert r"\x1b]0;mine\x07\nok" in output
        assert not set(output) & {"\x1b", "\x07"}


def test_a_run_of_a_time_that_no_calendar_has_is_listed(tmp_path: Path) -> None:
    """A run with an impossible time does not hide the other runs."""
    path = record(tmp_path / "x.db", 2)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET started_at = 1e300")
    result = CliRunner().invoke(app, ["runs", str(path)], env={"COLUMNS": "200"})
    assert (result.exit_code, "1e+300" in result.output) == (0, True)
