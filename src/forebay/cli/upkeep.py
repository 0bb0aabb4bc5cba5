"""The commands that look after what runs: `forebay demo`, `doctor`, `sweep` and `db`.

Here stand also the options that all commands of the composition root share.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forebay.contract.settings import Settings, mask_password
from forebay.producer.cli.output import print_json

RUN = "Running it"

Home = Annotated[Path | None, typer.Option("--home", help="Folder with the embedded stack's data.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

db = typer.Typer(help="The ledger's tables.", no_args_is_help=True)


def attach(app: typer.Typer) -> None:
    """Add these commands to the root command."""
    app.command(rich_help_panel=RUN)(demo)
    app.command(rich_help_panel=RUN)(doctor)
    app.command(rich_help_panel=RUN)(sweep)
    app.add_typer(db, name="db", rich_help_panel=RUN)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up afterwards.")] = False,
) -> None:
    """Run the main job on real data, from nothing to a table of results.

    Example: `forebay demo --keep`
    """
    from forebay.demo import run

    raise typer.Exit(run(keep=keep))


def doctor(
    home: Home = None,
    json: Json = False,
    worker: Annotated[bool, typer.Option("--worker", help="Only ask whether this host's worker is well.")] = False,
    url: Annotated[
        str | None, typer.Option(help="Only ask whether this address answers 200.", show_default=False)
    ] = None,
) -> None:
    """Say what is missing on this machine and how to get it; exit 1 if something needed is.

    Example: `forebay doctor --worker` as a container's health check.
    """
    from forebay.cli.doctor import examine, url_answers, worker_is_well

    if url is not None:
        findings = [url_answers(url)]
    else:
        settings = Settings.load(home=home)
        findings = worker_is_well(settings) if worker else examine(settings)
    if json:
        print_json([asdict(f) for f in findings])
    else:
        table = Table(box=None, show_header=False, pad_edge=False)
        for f in findings:
            mark = "[green]ok[/]" if f.ok else "[yellow]-[/]" if f.optional else "[red]missing[/]"
            table.add_row(mark, f.what, escape(f.seen), "" if f.ok else escape(f.remedy))
        Console().print(table)
    if any(not f.ok and not f.optional for f in findings):
        raise typer.Exit(1)


def sweep(home: Home = None, json: Json = False) -> None:
    """Run one pass of the sweeper by hand; every worker does so by itself.

    Example: `forebay sweep --json`
    """
    from forebay.contract.wire.celery_app import connect_redis, make_app
    from forebay.contract.wire.dispatch import Dispatcher
    from forebay.storage.jobs.store import JobStore
    from forebay.storage.ledger.connection import Ledger
    from forebay.worker.announcer import Announcer
    from forebay.worker.parent.sweeper import Sweeper

    settings = Settings.load(home=home)
    ledger, broker = Ledger(settings.database), connect_redis(settings)
    try:
        done = Sweeper(JobStore(ledger), Dispatcher(make_app(settings)), Announcer(broker), broker, settings).sweep()
    finally:
        ledger.close()
    if json:
        print_json(asdict(done))
    else:
        typer.echo(", ".join(f"{count} {what}" for what, count in asdict(done).items()))


@db.command("upgrade")
def db_upgrade(home: Home = None) -> None:
    """Bring the ledger's tables to what this Forebay needs; makes a missing SQLite file.

    Example: `FOREBAY_DATABASE=postgresql://me@host/forebay forebay db upgrade`
    """
    from forebay.storage.ledger.connection import Ledger
    from forebay.storage.ledger.migrate import upgrade

    settings = Settings.load(home=home)
    ledger = Ledger(settings.database, create=True)
    try:
        typer.echo(f"{mask_password(settings.database)} is at revision {upgrade(ledger)}")
    finally:
        ledger.close()


@db.command("current")
def db_current(home: Home = None, json: Json = False) -> None:
    """Show which form the ledger's tables have.

    Example: `forebay db current`
    """
    from forebay.storage.ledger.connection import Ledger
    from forebay.storage.ledger.migrate import current

    settings = Settings.load(home=home)
    ledger = Ledger(settings.database)
    try:
        revision = current(ledger)
    finally:
        ledger.close()
    if json:
        print_json({"database": mask_password(settings.database), "revision": revision})
    else:
        typer.echo(f"{mask_password(settings.database)} is at revision {revision or 'none; run `forebay db upgrade`'}")
