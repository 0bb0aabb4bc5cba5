"""`make bench`, or `python -m bench` in the checkout: which workloads are run, and what is printed of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from bench import claims, run
from bench.workloads import JOBS
from forebay.contract.errors import InvalidInput
from forebay.producer.cli.output import clear_errors

# Workers and the hand-written Celery tasks import bench too, wherever they run.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def bench(
    workloads: Annotated[
        str, typer.Option(help="By comma: W1, W1s, W2, W4, W3r, W3t, and the claims poison, scale, memory.")
    ] = "W1,W1s,W2,W4",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each contender runs.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=64, help="Jobs, or rows, in a run.", show_default=False)] = None,
    docs: Annotated[Path | None, typer.Option(help="Write a table and a chart here.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure Forebay against a bare torch loop and plain Celery, in turn, in one run.

    W3r and W3t are batch jobs, vectors and texts from Parquet. The claims need no contender: what poisonous jobs cost, what a
    second worker brings, how much memory waiting jobs take.

    Example: `make bench ARGS="--workloads W1,poison --rounds 5"`
    """
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
        from bench.chart import write

        for path in write(figures, claimed, docs, rounds):
            typer.echo(f"wrote {path}", err=True)
    if json:
        typer.echo(run.as_json(figures, claimed))
        return
    for table in [*run.as_tables(figures), *([claims.as_table(claimed)] if claimed else [])]:
        Console().print(table)


if __name__ == "__main__":
    with clear_errors():
        typer.run(bench)
