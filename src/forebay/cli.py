"""The `forebay` command: the producer's commands, and those that run the parts. The composition root of the CLI.

Heavy parts (torch, Flower, Alembic) are imported by the command that needs them, so `forebay --help` stays quick.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forebay.contract.errors import InvalidInput
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings, mask_password
from forebay.producer.cli import attach
from forebay.producer.cli.output import USAGE, clear_errors, print_json, say

WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # UsageError, which Typer does not export

app = typer.Typer(
    name="forebay",
    help="Queue-based batch inference: submit jobs, run workers, watch them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
db = typer.Typer(help="The ledger's tables.", no_args_is_help=True)
app.add_typer(db, name="db", rich_help_panel="Running it")
attach(app)

RUN = "Running it"

Home = Annotated[Path | None, typer.Option("--home", help="Folder with the embedded stack's data.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(rich_help_panel=RUN)
def up(
    home: Home = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is ready.")] = False,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Leave Flower out.")] = False,
    queues: Annotated[str | None, typer.Option(help="Queues the worker serves, by comma.", show_default=False)] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Worker children on the CPU.")] = 1,
) -> None:
    """Start queue, ledger, worker and dashboard, until Ctrl-C.

    Example: `forebay up --detach`, and later `forebay down`.
    """
    from forebay.stack import Stack, start_detached

    settings = Settings.load(home=home)
    if detach:
        arguments = ["--concurrency", str(concurrency)]
        arguments += ["--no-dashboard"] if no_dashboard else []
        arguments += ["--queues", queues] if queues else []
        _say_ready(start_detached(settings.home, arguments))
        return
    configure_logs(settings)
    stack = Stack(settings.home, dashboard=not no_dashboard, queues=queues, concurrency=concurrency)
    raise typer.Exit(stack.run(_say_ready))


@app.command(rich_help_panel=RUN)
def down(home: Home = None) -> None:
    """Stop what `forebay up` started; waiting jobs stay in the ledger.

    Example: `forebay down`
    """
    from forebay.stack import stop_stack

    where = Settings.load(home=home).home
    typer.echo(f"stopped the stack in {where}" if stop_stack(where) else f"no stack runs in {where}")


@app.command(rich_help_panel=RUN)
def status(home: Home = None, json: Json = False) -> None:
    """Show what runs where: the stack's processes and the workers.

    Example: `forebay status --json`
    """
    from forebay.doctor import live_workers
    from forebay.stack import read_stack

    settings = Settings.load(home=home)
    stack = read_stack(settings.home)
    workers, ledger = live_workers(settings)
    if json:
        masked = {name: mask_password(stack[name]) for name in ("broker", "database")} if stack else {}
        public = stack and stack | masked
        print_json({"home": str(settings.home), "stack": public, "ledger": ledger, "workers": workers})
        return
    typer.echo(f"stack    {_processes(stack) if stack else f'none runs in {settings.home}'}")
    typer.echo(f"queue    {mask_password(settings.broker) or 'none'}")
    typer.echo(f"ledger   {ledger}")
    for worker in workers:
        typer.echo(f"worker   {worker.name} on {worker.device}, queues {', '.join(worker.queues)}")
    if not workers:
        typer.echo("worker   none")


@app.command(rich_help_panel=RUN)
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
    from forebay.doctor import examine, url_answers, worker_is_well

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


@app.command(rich_help_panel=RUN)
def worker(
    queues: Annotated[
        str | None, typer.Option(help="Queues to serve, by comma; default: all this machine can.", show_default=False)
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Children on the CPU; a GPU has one.")] = 1,
    home: Home = None,
) -> None:
    """Run a worker for each of this machine's devices, until SIGTERM.

    Example: `forebay worker --queues gpu`
    """
    from forebay.worker.supervisor import Supervisor

    settings = Settings.load(home=home)
    configure_logs(settings)
    names = [q.strip() for q in queues.split(",") if q.strip()] if queues is not None else None
    raise typer.Exit(Supervisor(settings, names, concurrency).run())


@app.command(rich_help_panel=RUN)
def dashboard(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Run Flower for Forebay's workers, on loopback unless it has authentication.

    Example: `FLOWER_BASIC_AUTH=me:secret forebay dashboard --host 0.0.0.0`
    """
    from forebay.dashboard.server import serve

    settings = Settings.load(home=home, dashboard_host=host, dashboard_port=port)
    configure_logs(settings)
    raise typer.Exit(serve(settings, settings.dashboard_host, settings.dashboard_port))


@app.command(rich_help_panel=RUN)
def sweep(home: Home = None, json: Json = False) -> None:
    """Run one pass of the sweeper by hand; every worker does so by itself.

    Example: `forebay sweep --json`
    """
    from forebay.contract.celery_app import connect_redis, make_app
    from forebay.contract.dispatch import Dispatcher
    from forebay.storage.jobs import JobStore
    from forebay.storage.ledger import Ledger
    from forebay.worker.announcer import Announcer
    from forebay.worker.sweeper import Sweeper

    settings = Settings.load(home=home)
    ledger, broker = Ledger(settings.database), connect_redis(settings)
    try:
        done = Sweeper(JobStore(ledger), Dispatcher(make_app(settings)), Announcer(broker), broker, settings).once()
    finally:
        ledger.close()
    if json:
        print_json(asdict(done))
    else:
        typer.echo(", ".join(f"{count} {what}" for what, count in asdict(done).items()))


@app.command(rich_help_panel=RUN)
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up afterwards.")] = False,
) -> None:
    """Run the main job on real data, from nothing to a table of results.

    Example: `forebay demo --keep`
    """
    from forebay.demo import run

    raise typer.Exit(run(keep=keep))


@app.command(rich_help_panel=RUN)
def bench(
    workloads: Annotated[str, typer.Option(help="Workloads, by comma: W1, W1s, W2, W4, W3r, W3t.")] = "W1,W1s,W2,W4",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each contender runs.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=64, help="Jobs, or rows, in a run.", show_default=False)] = None,
    docs: Annotated[Path | None, typer.Option(help="Write a table and a chart here.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Measure Forebay against a bare torch loop and plain Celery, in turn, in one run.

    Example: `forebay bench --workloads W1 --rounds 5`
    """
    from forebay.bench import run
    from forebay.bench.workloads import JOBS

    names = [name.strip() for name in workloads.split(",") if name.strip()]
    unknown = [name for name in names if name not in JOBS]
    if unknown or not names:
        raise InvalidInput(
            f"no workload is called {unknown[0] if unknown else workloads!r}; there are {', '.join(JOBS)}"
        )
    figures = run.run(names, rounds, jobs)
    if docs is not None:
        from forebay.bench.chart import write

        for path in write(figures, docs, rounds):
            typer.echo(f"wrote {path}", err=True)
    if json:
        typer.echo(run.as_json(figures))
    else:
        for table in run.as_tables(figures):
            Console().print(table)


@db.command("upgrade")
def db_upgrade(home: Home = None) -> None:
    """Bring the ledger's tables to what this Forebay needs; makes a missing SQLite file.

    Example: `FOREBAY_DATABASE=postgresql://me@host/forebay forebay db upgrade`
    """
    from forebay.storage.ledger import Ledger
    from forebay.storage.migrate import upgrade

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
    from forebay.storage.ledger import Ledger
    from forebay.storage.migrate import current

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


def _processes(stack: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} (pid {pid})" for name, pid in stack["processes"].items())
    return f"pid {stack['pid']}: {parts}"


def _say_ready(stack: dict[str, Any]) -> None:
    shown = {
        "home": stack["home"],
        "ledger": mask_password(stack["database"]),
        "queue": mask_password(stack["broker"]),
        "dashboard": stack["dashboard"] or "left out",
    }
    for name, value in shown.items():
        typer.echo(f"{name:<10}{value}")


def main() -> None:
    """The entry point: every error, a wrong argument too, is one line and an exit status, never a traceback."""
    with clear_errors():
        try:
            status = app(prog_name="forebay", standalone_mode=False)
        except WRONG_USAGE as error:
            raise SystemExit(_say_usage(error)) from None
        except typer.Abort:
            raise SystemExit(1) from None
    raise SystemExit(status)


def _say_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its text is the whole help
        error.show()
        return USAGE
    command = error.ctx.command_path if error.ctx else "forebay"
    say(f"error: {error.format_message().rstrip('.')}; see `{command} --help`")
    return USAGE
