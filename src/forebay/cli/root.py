"""The `forebay` command. Commands that run the parts are here; the producer's and those of maintenance are attached.

torch, Flower and Alembic are imported by the commands that need them, so that `forebay --help` stays quick.
"""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec import to_builtins
from typer.core import TyperGroup
from typer.main import get_group

from forebay.cli import maintenance
from forebay.cli.maintenance import PANEL
from forebay.contract.errors import MissingExtra
from forebay.contract.logs import configure_logs
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.producer.cli import MODULES, attach
from forebay.producer.cli.options import Home, Json
from forebay.producer.cli.output import USAGE, clear_errors, one_line, print_json, print_line, print_note

if TYPE_CHECKING:
    from forebay.stack.stack import StackState

WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # UsageError, which Typer does not export

MARKUP: Literal["markdown"] = "markdown"


class Commands(TyperGroup):
    """The commands. One of the producer's is attached when it is asked for, and all of them when they are listed."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            self._attach(*({cmd_name} & MODULES.keys()))
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        self._attach()
        return super().list_commands(ctx)

    def _attach(self, *names: str) -> None:
        producers = typer.Typer(rich_markup_mode=MARKUP)
        attach(producers, *names)
        self.commands = {**get_group(producers).commands, **self.commands}


app = typer.Typer(
    name="forebay",
    cls=Commands,
    help="Queue-based batch inference: submit jobs, run workers, watch them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=MARKUP,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"forebay {version('forebay')}")
        raise typer.Exit


@app.callback()
def _forebay(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...


@app.command(rich_help_panel=PANEL)
def up(
    home: Home = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when everything is ready.")] = False,
    no_dashboard: Annotated[bool, typer.Option("--no-dashboard", help="Leave Flower out.")] = False,
    no_api: Annotated[bool, typer.Option("--no-api", help="Leave HTTP out.")] = False,
    queues: Annotated[str | None, typer.Option(help="Queues the worker serves, by comma.", show_default=False)] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="Worker children on the CPU.")] = 1,
) -> None:
    """Start queue, ledger, worker, HTTP and dashboard, until Ctrl-C.

    Example: `forebay up --detach`, and later `forebay down`.
    """
    from forebay.stack.stack import Stack, read_stack, start_detached

    settings = Settings.load(home=home)
    running = read_stack(settings.home)
    if running is not None and running.ready:
        print_note("it runs already")
        _print_addresses(running)
        return
    if detach:
        arguments = ["--concurrency", str(concurrency)]
        arguments += ["--no-dashboard"] if no_dashboard else []
        arguments += ["--no-api"] if no_api else []
        arguments += ["--queues", queues] if queues else []
        _print_addresses(start_detached(settings.home, arguments))
        return
    configure_logs(settings)
    api = not no_api and find_spec("starlette") is not None
    stack = Stack(settings.home, dashboard=not no_dashboard, api=api, queues=queues, concurrency=concurrency)
    raise typer.Exit(stack.run(_print_addresses))


@app.command(rich_help_panel=PANEL)
def logs(
    name: Annotated[
        str | None, typer.Argument(metavar="[worker|api|dashboard|valkey|up]", help="One log only.", show_default="all")
    ] = None,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come, until Ctrl-C.")] = False,
    home: Home = None,
) -> None:
    """Print what the processes of `forebay up` have logged.

    Example: `forebay logs worker -f`
    """
    from forebay.cli.logs import print_logs

    print_logs(Settings.load(home=home).home, name, lines, follow=follow)


@app.command(rich_help_panel=PANEL)
def down(home: Home = None) -> None:
    """Stop what `forebay up` started; waiting jobs stay in the ledger.

    Example: `forebay down`
    """
    from forebay.stack.stack import stop_stack

    where = Settings.load(home=home).home
    typer.echo(f"stopped the stack in {where}" if stop_stack(where) else f"no stack runs in {where}")


@app.command(rich_help_panel=PANEL)
def status(home: Home = None, json: Json = False) -> None:
    """Show what runs where, the stack's processes and the workers, and what is wrong: each with the next step.

    Example: `forebay status --json`
    """
    from forebay.cli.doctor import live_workers
    from forebay.stack.stack import read_stack
    from forebay.storage.health import check_health

    settings = Settings.load(home=home)
    stack = read_stack(settings.home)
    workers, ledger = live_workers(settings)
    health = check_health(settings)
    if json:
        public = to_builtins(stack)
        if public:
            public |= {name: mask_password(public[name]) for name in ("broker", "database")}
        print_json(
            {"home": str(settings.home), "stack": public, "ledger": ledger, "workers": workers, "health": health}
        )
        return
    typer.echo(f"stack    {_processes(stack) if stack else f'none runs in {settings.home}'}")
    if stack and stack.api:
        typer.echo(f"api      {stack.api}")
    if stack and stack.dashboard:
        typer.echo(f"dashboard {stack.dashboard}")
    typer.echo(f"queue    {mask_password(settings.broker) or 'none'}")
    typer.echo(f"ledger   {ledger}")
    for worker in workers:
        typer.echo(f"worker   {worker.name} on {worker.device}, queues {', '.join(worker.queues)}")
    if not workers:
        typer.echo("worker   none")
    for problem in health.problems:
        print_line(f"problem  {problem.what} {problem.next_step}".rstrip())
    for failure in health.failures:
        about = f"{failure.type}: {one_line(failure.message)}"
        print_line(f"failed   {failure.count:,} in the last hour with {about}; `forebay jobs show {failure.latest}`")
    if not health.problems:
        typer.echo("health   no problem found")


@app.command(rich_help_panel=PANEL)
def worker(
    queues: Annotated[
        str | None, typer.Option(help="Queues to serve, by comma; default: all this machine can.", show_default=False)
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=256, help="Children on the CPU; a GPU, and training, have one.")
    ] = 1,
    home: Home = None,
) -> None:
    """Run a worker for each of this machine's devices, and others for queues that only train, until SIGTERM.

    Example: `forebay worker --queues gpu`
    """
    from forebay.worker.parent.supervisor import run_workers

    settings = Settings.load(home=home)
    configure_logs(settings)
    names = [q.strip() for q in queues.split(",") if q.strip()] if queues is not None else None
    raise typer.Exit(run_workers(settings, names, concurrency))


@app.command(rich_help_panel=PANEL)
def dashboard(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Run Flower for Forebay's workers, on loopback unless it has authentication.

    Example: `FLOWER_BASIC_AUTH=me:secret forebay dashboard --host 0.0.0.0`
    """
    from forebay.dashboard.flower.server import serve

    settings = Settings.load(home=home, dashboard_host=host, dashboard_port=port)
    configure_logs(settings)
    raise typer.Exit(serve(settings, settings.dashboard_host, settings.dashboard_port))


@app.command(rich_help_panel=PANEL)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default=False)] = None,
    certfile: Annotated[Path | None, typer.Option(help="Certificate, for TLS.", show_default=False)] = None,
    keyfile: Annotated[Path | None, typer.Option(help="Its key.", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Serve HTTP, on loopback.

    Example: `forebay serve --port 8000`
    """
    try:
        from forebay.api.server import serve as serve_http
    except ImportError as error:
        raise MissingExtra("the HTTP server needs Starlette and uvicorn", "api") from error

    settings = Settings.load(home=home, api_host=host, api_port=port)
    configure_logs(settings)
    raise typer.Exit(serve_http(settings, settings.api_host, settings.api_port, certfile, keyfile))


def _processes(stack: StackState) -> str:
    parts = ", ".join(f"{name} (pid {pid})" for name, pid in stack.processes.items())
    return f"pid {stack.pid}: {parts}"


def _print_addresses(stack: StackState) -> None:
    addresses = {
        "home": stack.home,
        "ledger": mask_password(stack.database),
        "queue": mask_password(stack.broker),
        "api": stack.api or "left out",
        "dashboard": stack.dashboard or "left out",
    }
    for name, value in addresses.items():
        typer.echo(f"{name:<10}{value}")


maintenance.attach(app)


def main() -> None:
    """The entry point. Every error, that of a wrong argument too, is one line and an exit status, never a traceback."""
    with clear_errors():
        try:
            status = app(prog_name="forebay", standalone_mode=False)
        except WRONG_USAGE as error:
            raise SystemExit(_report_usage(error)) from None
        except typer.Abort:
            raise SystemExit(1) from None
    raise SystemExit(status)


def _report_usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its message is the whole help
        error.show()
        return USAGE
    command = error.ctx.command_path if error.ctx else "forebay"
    print_note(f"error: {error.format_message().rstrip('.')}; see `{command} --help`")
    return USAGE
