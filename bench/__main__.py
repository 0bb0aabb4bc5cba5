"""`make bench`, or `python -m bench` in the checkout: which workloads are run, and what is printed of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.console import Console

from bench import batch_jobs, predict_jobs, results, targets
from bench.workloads import BATCH_JOBS, JOBS
from forebay.contract.errors import InvalidInput
from forebay.producer.cli.output import clear_errors

END_S = 30
STORED = Path(__file__).parent / "results"

# Workers and the hand-written Celery tasks import bench too, wherever they run.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


def bench(
    workloads: Annotated[
        str,
        typer.Option(
            help="By comma: W1, W1s, W2, W4, W3r, W3t, and the targets poison, scale, memory, million, payload, images, "
            "generation, generation-1."
        ),
    ] = "W1,W1s,W2,W4",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="How often each contender runs.")] = 3,
    jobs: Annotated[int | None, typer.Option(min=64, help="Jobs, or rows, in a run.", show_default=False)] = None,
    docs: Annotated[Path | None, typer.Option(help="Write a table and a chart here.", show_default=False)] = None,
    store: Annotated[bool, typer.Option("--store", help="Keep the figures in bench/results for later runs.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure Forebay against a bare torch loop and plain Celery, in turn, in one run.

    W3r and W3t are batch jobs, vectors and texts from Parquet. The targets need no contender: what poisonous jobs cost, what a
    second worker brings, how much memory waiting jobs take.

    Example: `make bench ARGS="--workloads W1,poison --rounds 5"`
    """
    names = [name.strip() for name in workloads.split(",") if name.strip()]
    unknown = [name for name in names if name not in {*JOBS, *targets.ABOUT}]
    if unknown or not names:
        known = ", ".join([*JOBS, *targets.ABOUT])
        raise InvalidInput(f"no workload is called {unknown[0] if unknown else workloads!r}; there are {known}")
    console = Console(stderr=True)
    singles = [name for name in names if name in JOBS and name not in BATCH_JOBS]
    measured = predict_jobs.measure(singles, rounds, jobs, console) if singles else []
    measured += [batch_jobs.measure(name, rounds, jobs, console) for name in names if name in BATCH_JOBS]
    measured.sort(key=lambda result: names.index(result.workload))
    checked = [targets.check(name, rounds, console) for name in names if name in targets.ABOUT]
    if docs is not None:
        for path in results.write(measured, checked, docs, rounds):
            typer.echo(f"wrote {path}", err=True)
    for line in results.compared(measured, checked, STORED):
        typer.echo(line, err=True)
    if store:
        STORED.mkdir(exist_ok=True)
        path = STORED / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S}.json"
        path.write_text(results.as_json(measured, checked) + "\n", encoding="utf-8")
        typer.echo(f"wrote {path}", err=True)
    if json:
        typer.echo(results.as_json(measured, checked))
        return
    for table in results.as_tables(measured, checked):
        Console().print(table)


def _end(*_: object) -> None:
    """At SIGTERM end all that was started: it may have come when something was, and nobody had noted it yet."""
    mine = psutil.Process()
    below = mine.children(recursive=True)
    _ask_to_end(mine.children())
    left = psutil.wait_procs(below, END_S)[1]
    _ask_to_end(left)
    psutil.wait_procs(left, END_S)
    sys.exit(143)


def _ask_to_end(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    with clear_errors():
        typer.run(bench)
