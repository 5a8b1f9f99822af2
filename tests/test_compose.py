"""What `docker compose up` finds in a fresh clone, and what it leaves out, read from the files without an engine."""

from __future__ import annotations

import re
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from root_dash.settings import Settings

TREE = Path(__file__).parents[1]
COMPOSE: dict[str, Any] = yaml.safe_load((TREE / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
PRIVATE = [".env", ".git/config", "data/root-dash.db", "data/runs.csv", "secrets/root_dash_db"]


def _instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (TREE / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def _tracked(*paths: str) -> list[str]:
    command = ["git", "ls-files", "-z", *paths]
    names = subprocess.run(command, cwd=TREE, check=True, capture_output=True, text=True).stdout
    return names.rstrip("\0").split("\0")


def _reaches_the_builder(path: str) -> bool:
    """Whether .dockerignore lets a path through: its last rule decides that matches the path or a folder above it."""
    taken = True
    above = [path, *(str(folder) for folder in PurePosixPath(path).parents)]
    for rule in (TREE / ".dockerignore").read_text().splitlines():
        if rule and not rule.startswith("#"):
            if any(fnmatchcase(part, rule.removeprefix("!")) for part in above):
                taken = rule.startswith("!")
    return taken


def test_the_services_of_ours_are_the_dashboard_and_the_server() -> None:
    """On a file and on PostgreSQL; the first is what a plain `docker compose up` starts."""
    assert OURS.keys() == {"dashboard", "server"}
    assert [name for name, service in SERVICES.items() if "profiles" not in service] == ["dashboard"]


def test_no_service_mounts_a_folder_that_a_fresh_clone_lacks() -> None:
    """The engine would make the folder, as root's: data is kept in volumes that the file declares."""
    mounted = [volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])]
    assert mounted
    assert [name for name in mounted if name not in COMPOSE["volumes"]] == []


def test_the_volume_of_the_data_is_the_users_that_the_server_runs_as() -> None:
    """The image has the folder that the volume is mounted on, and the user who records there owns it."""
    instructions = _instructions()
    (user,) = [rest for name, rest in instructions if name == "USER"]
    (command,) = [rest for name, rest in instructions if name == "CMD"]
    database = re.search(r'"([^"]+\.db)"', command)
    assert database is not None
    folder = str(PurePosixPath(database[1]).parent)
    assert [volume.partition(":")[2] for volume in OURS["dashboard"]["volumes"]] == [folder]
    made = [rest for name, rest in instructions if name == "RUN" and rest.endswith(f" {folder}")]
    assert any(f"--owner={user} " in rest for rest in made)
    assert user != "root"


def test_every_service_of_ours_is_given_both_tokens() -> None:
    """The dashboard's is asked for; the trainers', where it is set, stays the same from one start to the next."""
    for service in OURS.values():
        given = service["environment"]
        assert given["ROOT_DASH_TOKEN"].startswith("${ROOT_DASH_TOKEN:?")
        assert "ROOT_DASH_WRITE_TOKEN" in given
        assert given["ROOT_DASH_WRITE_TOKEN"] is None  # passed on; an empty one would be refused
        assert {name.removeprefix("ROOT_DASH_").lower() for name in given} <= Settings.model_fields.keys()


def test_every_service_starts_again_and_those_of_ours_are_asked_whether_they_answer() -> None:
    """After a reboot as well, the database of the profile too; and Python has the time that it needs to start."""
    assert all(service["restart"] == "unless-stopped" for service in SERVICES.values())
    for service in OURS.values():
        assert service["healthcheck"]["test"][0] == "CMD"
        assert "/healthz" in service["healthcheck"]["test"][-1]
        assert int(service["healthcheck"]["start_period"].removesuffix("s")) >= 40


def test_the_postgres_profile_is_whole() -> None:
    """The server waits for a database that can say it is ready, and every secret that is used is declared."""
    assert OURS["server"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert "healthcheck" in SERVICES["database"]
    assert SERVICES["database"]["profiles"] == OURS["server"]["profiles"]
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", [])}
    assert used == COMPOSE["secrets"].keys()
    assert {"secrets/" + name for name in used} == {
        str(PurePosixPath(secret["file"])) for secret in COMPOSE["secrets"].values()
    }


def test_ports_are_published_on_loopback_alone() -> None:
    """Nothing is offered to the network unless somebody says so."""
    assert all(port.startswith("127.0.0.1:") for service in SERVICES.values() for port in service["ports"])


@pytest.mark.parametrize("path", [*PRIVATE, ".venv/bin/python", "runs.db", "root_dash/x.db-wal", "tests/conftest.py"])
def test_nothing_private_or_needless_reaches_the_builder(path: str) -> None:
    """No secret, recording, history or environment is in the build's context."""
    assert not _reaches_the_builder(path)


def test_whatever_the_image_is_built_from_reaches_the_builder() -> None:
    """The package with all its files, what describes it, and the versions to install."""
    files = _tracked("root_dash", "server", "frontend", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    assert "server/app.py" in files
    assert [name for name in files if not _reaches_the_builder(name)] == []


def test_what_the_builder_sees_stays_out_of_the_image() -> None:
    """The last stage takes the installed package alone, so that sources and what building leaves are not in it."""
    instructions = _instructions()
    last = max(place for place, (name, _) in enumerate(instructions) if name == "FROM")
    copied = [rest for name, rest in instructions[last:] if name in ("COPY", "ADD")]
    assert copied
    assert all(rest.startswith("--from=") for rest in copied)


@pytest.mark.parametrize("path", [path for path in PRIVATE if not path.startswith(".git/")])
def test_git_takes_no_secret_and_no_data(path: str) -> None:
    """`git add .` leaves out what compose makes people write: passwords, tokens and recordings."""
    assert subprocess.run(["git", "check-ignore", "--quiet", path], cwd=TREE, check=False).returncode == 0
