"""The `root-dash` command. Importing this module is quick, because each command imports what it needs when it runs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from root_dash import __version__
from root_dash.cli.app import Database, app, chosen_run, database_settings, local_time, printable, settings_with
from root_dash.exceptions import RootDashError, missing_extra

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line."""
    app(prog_name="root-dash")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """A microscope for people who train networks with matrix optimisers."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def serve(
    db: Database = None,
    host: Annotated[
        str | None, typer.Option(help="The host to listen on. Default: ROOT_DASH_HOST, else 127.0.0.1.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="0 is any free port. Default: ROOT_DASH_PORT, else 8050.")] = None,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = False,
    token: Annotated[str | None, typer.Option(help="Default: ROOT_DASH_TOKEN, else a new token each time.")] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Ask for no token. Possible on loopback only.")] = False,
    write_token: Annotated[
        str | None,
        typer.Option(help="The token for trainers elsewhere. Default: ROOT_DASH_WRITE_TOKEN, else a new token."),
    ] = None,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse recordings from elsewhere.")] = False,
) -> None:
    """Show a database in the browser, also while training runs write to it, here or from elsewhere."""
    if token is not None and no_token:
        raise RootDashError("give --token or --no-token, not both")
    chosen: dict[str, Any] = {"db": db, "host": host, "port": port, "token": token, "write_token": write_token}
    chosen["read_only"] = read_only or None  # without the option, ROOT_DASH_READ_ONLY decides
    given = {name: value for name, value in chosen.items() if value is not None}
    settings = settings_with(**given, **({"token": None} if no_token else {}))
    from root_dash.cli.serving import run_server
    from root_dash.store import Store, migrate

    done = migrate(settings.db) if os.path.isfile(settings.db) else None
    if done is not None:
        typer.echo(f"root-dash: the database was brought up to date; a copy of the old file is {done.backup}")
    if not settings.read_only and not os.path.exists(settings.db):
        Store.create(settings.db).close()  # in a PostgreSQL database, makes the missing tables
    with Store.open(settings.db) as store:
        run_server(settings, store, open_browser=open_)


@app.command()
def sync(
    spool: Annotated[
        Path | None,
        typer.Argument(metavar="[SPOOL]", help="The folder. Default: ROOT_DASH_SPOOL, else root-dash-spool."),
    ] = None,
    server: Annotated[str, typer.Option(envvar="ROOT_DASH_SERVER", help="The address, such as http://host:8050.")] = "",
    token: Annotated[str | None, typer.Option(help="The server's write token. Default: ROOT_DASH_WRITE_TOKEN.")] = None,
) -> None:
    """Send the frames that runs with `server=` left on this machine because they were killed or the server was away."""
    from root_dash.defaults import default_spool
    from root_dash.sending import sync

    folder = default_spool(spool)
    if not server:
        raise RootDashError("give the address of the server: --server http://host:8050")
    if not folder.is_dir():
        raise RootDashError(f"there is no folder {folder}")
    sent = 0
    for path, frames in sync(folder, server, token):
        typer.echo(f"sent {frames:,} frames of {path}")
        sent += 1
    if not sent:
        typer.echo(f"nothing waits in {folder}")


@app.command()
def runs(db: Database = None) -> None:
    """List the runs in a database, the newest first."""
    settings = database_settings(db)
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from root_dash.store import Store

    with Store.open(settings.db) as store:
        found = store.runs()
    table = Table("run", "name", "started", "frames", "lost", "last step", "state", box=None, pad_edge=False)
    for run in found:
        table.add_row(
            str(run.id),
            Text(printable(run.title)),
            local_time(run.started_at),
            str(run.frames),
            str(run.lost),
            "" if run.last_step is None else str(run.last_step),
            "open" if run.ended_at is None else "ended",
        )
    Console().print(table if found else f"no runs in {store.path}", highlight=False)


@app.command()
def migrate(db: Database = None) -> None:
    """Bring a database of an older version up to date, and keep a copy of the old database."""
    settings = database_settings(db)
    from root_dash.store import migrate as bring_up_to_date
    from root_dash.store import parse
    from root_dash.store.tables.versions import SCHEMA_VERSION

    done = bring_up_to_date(settings.db)
    typer.echo(
        f"{parse(settings.db)} is up to date, at schema {SCHEMA_VERSION}"
        if done is None
        else f"{done.location} was at schema {done.before} and is at {done.after} now"
        + (f"; a copy of the old database: {done.backup}" if done.backup else "")
    )


@app.command()
def doctor(
    db: Database = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="Check every page, however long it takes.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Make the summaries of all runs again.")] = False,
) -> None:
    """Examine a database, its file and its runs. Exit with 1 if something is wrong."""
    settings = database_settings(db)
    from root_dash.store import examine
    from root_dash.store import repair as summarize

    if repair:
        typer.echo(f"made the summaries of {summarize(settings.db)} runs again")
    findings = examine(settings.db, thorough=thorough)
    for finding in findings:
        typer.echo(printable(f"{finding.level:<8}{finding.what}: {finding.text}"))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def prune(
    db: Database = None,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Remove what is older than this number of days.")
    ] = None,
    keep_steps: Annotated[
        int | None, typer.Option(min=0, help="Number of the newest steps of each run to keep.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only this kind, such as masks. Default: whole frames.")
    ] = None,
    run: Annotated[list[int] | None, typer.Option(help="Only this run.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove. Without this option, only say what would be removed.")
    ] = False,
    vacuum: Annotated[bool, typer.Option("--vacuum", help="Give the free space of the file back to the disk.")] = False,
) -> None:
    """Remove old recordings. Nothing is ever removed without this command."""
    settings = database_settings(db)
    import time
    from typing import cast

    from root_dash.records import Kind
    from root_dash.store import prune as remove

    before = None if older_than is None else time.time() - 86_400 * older_than
    kinds = cast("list[Kind]", kind or [])
    done = remove(
        settings.db,
        before=before,
        keep_steps=keep_steps,
        kinds=kinds,
        runs=run or [],
        dry_run=not yes,
        vacuum=vacuum,
    )
    rows = ", ".join(f"{count:,} {name}" for name, count in done.rows.items())
    typer.echo(f"{'would remove' if done.dry_run else 'removed'} {done.frames:,} frames: {rows or 'nothing'}")


@app.command()
def export(
    db: Database = None,
    to: Annotated[Path, typer.Option("--to", "-o", help="The file to write: .parquet, .csv or .json.")] = Path(
        "root-dash.csv"
    ),
    what: Annotated[
        str, typer.Option(help="statistics, scalars, events, verdicts, spectra, histograms or quantiles.")
    ] = "statistics",
    run: Annotated[int | None, typer.Option(help="Only this run.")] = None,
) -> None:
    """Write what was recorded to a file for other tools."""
    settings = database_settings(db)
    from root_dash.store import export as write

    done = write(settings.db, to, what, run=run)  # type: ignore[arg-type]  # refuses an unknown name itself
    typer.echo(f"{done.rows:,} rows in {done.path}")


@app.command()
def diagnose(
    db: Database = None,
    run: Annotated[int | None, typer.Option(help="The number of the run. Default: the newest run.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    fail_on: Annotated[
        Literal["note", "warning", "critical"] | None,
        typer.Option(help="Exit with 1 if a verdict is at least this severe."),
    ] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Judge the run anew, whatever verdicts are stored.")] = False,
) -> None:
    """Say which layers of a recorded run need a look, since which step, and why."""
    settings = database_settings(db)
    import json

    from rich.console import Console

    from root_dash.cli import diagnose as diagnosis
    from root_dash.store import Store

    with Store.open(settings.db) as store:
        judged = diagnosis.diagnose(store, chosen_run(store, run), replay=replay)
    if json_:
        typer.echo(json.dumps(diagnosis.as_json(judged), indent=2, allow_nan=False))
    else:
        Console().print(diagnosis.render(judged), highlight=False)
    if fail_on is not None and judged.is_at_least(fail_on):
        raise typer.Exit(1)


@app.command()
def calibrate(
    db: Database = None,
    run: Annotated[
        int | None, typer.Argument(metavar="[RUN]", help="The number of the run. Default: the newest run.")
    ] = None,
) -> None:
    """Fit coefficient sets to a recorded run, and compare them with the published sets on its spectra."""
    settings = database_settings(db)
    from rich.console import Console

    from root_dash.cli.calibrate import render, report
    from root_dash.store import Store

    with Store.open(settings.db) as store:
        rows = report(store, chosen_run(store, run))
    Console().print(render(rows), highlight=False)


@app.command()
def demo(
    preset: Annotated[Literal["tiny", "small", "gpu"], typer.Option(help="The size of the model.")] = "tiny",
    steps: Annotated[int | None, typer.Option(min=1, help="Default: the number of the preset.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    optimizer: Annotated[
        Literal["root", "muon", "adamw"], typer.Option(help="The optimizer of the matrices.")
    ] = "root",
    db: Annotated[str | None, typer.Option(help="The database to record to.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: 8050, else any free port.")] = None,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Show the dashboard beside the training.")] = True,
    open_: Annotated[bool, typer.Option("--open/--no-open", help="Open the browser.")] = True,
    sick: Annotated[str | None, typer.Option(metavar="NAME", help="Train with a fault; `list` shows them.")] = None,
) -> None:
    """Train a small model under ROOT with its dashboard beside it."""
    if importlib.util.find_spec("torch") is None:
        raise RootDashError(missing_extra("root-dash demo", "torch", "torch"))
    from root_dash.demo import run
    from root_dash.demo.sick import FAULTS

    if sick == "list":
        for name, fault in FAULTS.items():
            typer.echo(f"{name:16} {fault.text}")
        return
    run.demo(
        preset=preset,
        steps=steps,
        device=device,
        optimizer=optimizer,
        db=db,
        port=port,
        serve=serve,
        open_browser=open_,
        sick=sick,
    )


if __name__ == "__main__":
    main()
