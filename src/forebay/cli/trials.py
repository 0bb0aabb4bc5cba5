"""The commands that try Forebay out: `forebay demo`, `bench` and `chaos`. Each starts what it needs, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forebay.cli.upkeep import RUN, Json
from forebay.contract.errors import InvalidInput
from forebay.producer.cli.output import clear_errors


def attach(app: typer.Typer) -> None:
    """Add these commands to the root command."""
    app.command(rich_help_panel=RUN)(demo)
    app.command(rich_help_panel=RUN)(bench)
    app.command(hidden=True)(chaos)


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up afterwards.")] = False,
) -> None:
    """Run the main job on real data, from nothing to a table of results.

    Example: `forebay demo --keep`
    """
    from forebay.demo import run

    raise typer.Exit(run(keep=keep))


def bench(
    workloads: Annotated[
        str, typer.Option(help="By comma: W1, W1s, W2, W4, W3r, W3t, and the claims poison, scale, memory.")
    ] = "W1,W1s,W2,W4",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each contender runs.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=64, help="Jobs, or rows, in a run.", show_default=False)] = None,
    docs: Annotated[Path | None, typer.Option(help="Write a table and a chart here.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Measure Forebay against a bare torch loop and plain Celery, in turn, in one run.

    W3r and W3t are batch jobs, vectors and texts from Parquet. The claims need no contender: what poisonous jobs cost, what a
    second worker brings, how much memory waiting jobs take.

    Example: `forebay bench --workloads W1,poison --rounds 5`
    """
    from forebay.bench import claims, run
    from forebay.bench.workloads import JOBS

    names = [name.strip() for name in workloads.split(",") if name.strip()]
    unknown = [name for name in names if name not in {*JOBS, *claims.ABOUT}]
    if unknown or not names:
        known = ", ".join([*JOBS, *claims.ABOUT])
        raise InvalidInput(f"no workload is called {unknown[0] if unknown else workloads!r}; there are {known}")
    console = Console(stderr=True)
    raced = [name for name in names if name in JOBS]
    figures = run.run(raced, rounds, jobs) if raced else []
    claimed = [claims.check(name, rounds, console) for name in names if name in claims.ABOUT]
    if docs is not None:
        from forebay.bench.chart import write

        for path in write(figures, claimed, docs, rounds):
            typer.echo(f"wrote {path}", err=True)
    if json:
        typer.echo(run.as_json(figures, claimed))
        return
    for table in [*run.as_tables(figures), *([claims.as_table(claimed)] if claimed else [])]:
        Console().print(table)


def chaos(
    jobs: Annotated[int, typer.Option(min=20, max=1_000_000, help="Jobs to submit.")] = 5000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers, each a `forebay worker` of its own.")] = 2,
    seed: Annotated[
        int, typer.Option(help="What faults and jobs are drawn from: the same seed, the same schedule.")
    ] = 1,
    seconds: Annotated[float, typer.Option(min=5, max=86_400, help="How long faults and jobs keep coming.")] = 60.0,
    database: Annotated[str, typer.Option(help="sqlite, postgres, or the address of an empty database.")] = "sqlite",
    home: Annotated[
        Path | None, typer.Option(help="An empty folder to work in, which is kept.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the schedule of faults.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """Kill, freeze and empty everything while jobs run, then count what was lost, written twice or wrong.

    It starts a queue, a ledger and workers of its own, and ends them. Exit status 1 if any promise was broken.

    Example: `forebay chaos --jobs 500 --seconds 15 --seed 7 --database postgres`
    """
    from forebay.chaos.command import chaos as show
    from forebay.chaos.run import Options

    with clear_errors():
        sound = show(Options(jobs, workers, seed, seconds, database, home, keep), verbose=verbose, json=json)
    raise typer.Exit(0 if sound else 1)
