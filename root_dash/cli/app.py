"""The command line's application, and what its commands share: settings, texts, and errors in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from root_dash.exceptions import RootDashError

if TYPE_CHECKING:
    from root_dash.settings import Settings
    from root_dash.store import Store


class Commands(TyperGroup):
    """The commands. An error that a user can mend is printed in one line, and the exit code is 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (RootDashError, ValueError) as error:
            typer.echo(f"root-dash: {printable(' '.join(str(error).split()))}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    cls=Commands,
    help="A microscope for people who train networks with matrix optimisers.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Database = Annotated[
    str | None,
    typer.Argument(
        metavar="[DB]", help="A path or the URL of a PostgreSQL database. Default: ROOT_DASH_DB, else root-dash.db."
    ),
]


def database_settings(db: str | None) -> Settings:
    """Return the settings with the database `db`. If None, the environment or the default names the database."""
    return settings_with(**({} if db is None else {"db": db}))


def chosen_run(store: Store, run: int | None) -> int:
    """Return `run`, or the number of the newest run.

    Raises:
        RootDashError: `run` is None, and the database has no run.
    """
    if run is not None:
        return run
    found = store.runs()
    if not found:
        raise RootDashError(f"no runs in {store.path}")
    return found[0].id


def settings_with(**given: Any) -> Settings:
    """Return the settings with these values.

    Raises:
        RootDashError: a value is wrong, here or in the environment. The message names the setting.
    """
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from root_dash.settings import Settings

    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise RootDashError(f"{place}: {message}" if place else message) from None
    except SettingsError as error:
        cause = error.__cause__
        if not isinstance(cause, PermissionError):
            raise RootDashError(str(error)) from None
        raise RootDashError(f"{cause.filename} must be readable for the user that runs root-dash") from None


def local_time(seconds: float) -> str:
    """Return a time as local time, or in seconds since the epoch if the calendar does not have the time."""
    from datetime import datetime

    try:
        return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g}"


def printable(text: str) -> str:
    """Return a text without characters that a terminal obeys. The names in a database may come from anyone."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
