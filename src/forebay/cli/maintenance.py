"""`forebay demo`, `doctor`, `sweep` and `db`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.producer.cli.options import Home, Json
from forebay.producer.cli.output import print_json, print_line

PANEL = "Running it"
BLOBS_S = 60.0  # for how long one command looks through the blobs; the next one begins anew

db = typer.Typer(help="The ledger's tables.", no_args_is_help=True)


def attach(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(demo)
    app.command(rich_help_panel=PANEL)(doctor)
    app.command(rich_help_panel=PANEL)(sweep)
    app.add_typer(db, name="db", rich_help_panel=PANEL)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up afterwards.")] = False,
    language: Annotated[bool, typer.Option("--language", help="Have a small language model answer instead.")] = False,
) -> None:
    """Run the main job on real data, from nothing to a table of results.

    Example: `forebay demo --keep`
    """
    from forebay.demo import run

    raise typer.Exit(run(keep=keep, language=language))


def doctor(
    home: Home = None,
    json: Json = False,
    worker: Annotated[bool, typer.Option("--worker", help="Only check this host's worker.")] = False,
    url: Annotated[str | None, typer.Option(help="Only check that this URL answers 200.", show_default=False)] = None,
) -> None:
    """Check what this machine has and lacks, and how to get it; exit 1 if something necessary is missing.

    Example: `forebay doctor --worker` as a container's health check.
    """
    from forebay.cli.doctor import check_all, check_url, check_worker

    if url is not None:
        findings = [check_url(url)]
    else:
        settings = Settings.load(home=home)
        findings = check_worker(settings) if worker else check_all(settings)
    if json:
        print_json([asdict(f) for f in findings])
    else:
        for f in findings:
            mark = "ok" if f.ok else "-" if f.optional else "missing"
            print_line(f"{mark:<9}{f.what:<23}{f.seen}")
            if not f.ok:
                print_line(f"{'':<32}{f.remedy}")
    if any(not f.ok and not f.optional for f in findings):
        raise typer.Exit(1)


def sweep(home: Home = None, json: Json = False) -> None:
    """Run one pass of the sweeper now, over the jobs and over the blobs; every worker does so regularly.

    Example: `forebay sweep --json`
    """
    from forebay.contract.wire.celery_app import connect_redis, make_app
    from forebay.contract.wire.dispatch import Dispatcher
    from forebay.storage.blobs.store import BlobStore
    from forebay.storage.blobs.sweep import BlobSweep
    from forebay.storage.jobs.store import JobStore
    from forebay.storage.ledger.connection import Ledger
    from forebay.worker.announcer import Announcer
    from forebay.worker.parent.sweeper import Sweeper

    settings = Settings.load(home=home)
    broker = connect_redis(settings)
    with closing(Ledger(settings.database)) as ledger:
        done = Sweeper(JobStore(ledger), Dispatcher(make_app(settings)), Announcer(broker), broker, settings).sweep()
        freed = BlobSweep(ledger, BlobStore(settings.blobs), settings.blob_grace_s).sweep(BLOBS_S)
    counts = asdict(done) | {"blobs_removed": freed.blobs, "blob_bytes_removed": freed.blob_bytes}
    if json:
        print_json(counts)
    else:
        typer.echo(", ".join(f"{count} {what}" for what, count in counts.items()).replace("_", " "))


@db.command("upgrade")
def db_upgrade(home: Home = None) -> None:
    """Upgrade the ledger's tables to what this Forebay needs; creates a missing SQLite file.

    Example: `FOREBAY_DATABASE=postgresql://me@host/forebay forebay db upgrade`
    """
    from forebay.storage.ledger.connection import Ledger
    from forebay.storage.ledger.migrate import upgrade

    settings = Settings.load(home=home)
    with closing(Ledger(settings.database, create=True)) as ledger:
        typer.echo(f"{mask_password(settings.database)} is at revision {upgrade(ledger)}")


@db.command("current")
def db_current(home: Home = None, json: Json = False) -> None:
    """Show the revision of the ledger's tables.

    Example: `forebay db current`
    """
    from forebay.storage.ledger.connection import Ledger
    from forebay.storage.ledger.migrate import current

    settings = Settings.load(home=home)
    with closing(Ledger(settings.database)) as ledger:
        revision = current(ledger)
    if json:
        print_json({"database": mask_password(settings.database), "revision": revision})
    else:
        typer.echo(f"{mask_password(settings.database)} is at revision {revision or 'none; run `forebay db upgrade`'}")
