"""The commands that try Forebay out: `forebay demo` and `bench`. Each starts what it needs, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from forebay.contract.errors import InvalidInput
from forebay.upkeep import RUN, Json


def attach(app: typer.Typer) -> None:
    """Add these commands to the root command."""
    app.command(rich_help_panel=RUN)(demo)
    app.command(rich_help_panel=RUN)(bench)


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
        str, typer.Option(help="By comma: W1, W1s, W2, W4, and the claims poison, scale, memory.")
    ] = "W1,W1s,W2,W4",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each contender runs.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=64, help="Jobs in a run.", show_default=False)] = None,
    docs: Annotated[Path | None, typer.Option(help="Write a table and a chart here.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """Measure Forebay against a bare torch loop and plain Celery, in turn, in one run.

    The claims need no contender: what poisonous jobs cost, what a second worker brings, how much memory waiting jobs take.

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
