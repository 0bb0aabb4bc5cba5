"""`make chaos`, or `python -m chaos` in tests/: a line about what goes on while it runs, then a table or one line of JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chaos.plan import KINDS
from chaos.report import Options, Report
from chaos.run import run
from chaos.stack import check_database
from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.producer.cli.output import clear_errors, print_fields, print_json_line, print_note, print_table


def show(all_options: Sequence[Options], *, verbose: bool, json: bool) -> bool:
    """Runs, one after the other, told as they go and reported in the end; whether every promise was kept."""
    reports = []
    for options in all_options:
        report = _run(options, verbose)
        reports.append(report)
        if json:
            print_json_line(report.as_dict())
        elif len(all_options) == 1:
            print_fields(report.fields())
        for problem in [] if report.sound else report.as_dict()["problems"]:
            print_note(problem)
    if len(reports) > 1 and not json:
        rows = [report.row() for report in reports]
        print_table([name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows])
    return all(report.sound for report in reports)


def _run(options: Options, verbose: bool) -> Report:
    """One run, with a bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("chaos", total=options.jobs)  # others are few

        def tell(what: str, ended: int) -> None:
            bar.update(task, description=what, completed=ended)

        return run(options, _speaker(verbose), tell)


def _speaker(verbose: bool) -> Callable[[str, bool], None]:
    def speak(line: str, always: bool = False) -> None:
        if verbose or always:
            print_note(line)

    return speak


def _numbers(seeds: str) -> list[int]:
    """`7`, `1-10` or `1,4,7-9`."""
    found = re.fullmatch(r"-?\d+|(\d+(-\d+)?)(,\d+(-\d+)?)*", seeds)
    if found is None:
        raise InvalidInput(f"--seeds {seeds}: write a number, or ranges such as 1-10 or 1,4,7-9")
    if seeds.startswith("-"):
        return [int(seeds)]
    bounds = [[int(bound) for bound in each.split("-")] for each in seeds.split(",")]
    return [number for each in bounds for number in range(each[0], each[-1] + 1)]


def _kinds(kinds: str) -> list[JobKind]:
    names = kinds.split(",")
    if unknown := [name for name in names if name not in KINDS]:
        raise InvalidInput(f"--kinds {kinds}: there is no {unknown[0]!r}; there are {', '.join(KINDS)}")
    return [JobKind(name) for name in names]


def chaos(
    jobs: Annotated[int, typer.Option(min=20, max=1_000_000, help="Predictions to submit.")] = 2000,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Workers, each a `forebay worker` of its own.")] = 2,
    seeds: Annotated[
        str,
        typer.Option(
            "--seed", "--seeds", help="What faults and jobs are drawn from: 7, or one run for each of 1-10 or 1,4,7-9."
        ),
    ] = "1",
    seconds: Annotated[float, typer.Option(min=5, max=86_400, help="How long faults and jobs keep coming.")] = 90.0,
    database: Annotated[
        str, typer.Option(help="sqlite, postgres, both one after the other, or the address of an empty database.")
    ] = "sqlite",
    kinds: Annotated[str, typer.Option(help="Kinds of jobs to submit.")] = ",".join(KINDS),
    home: Annotated[
        Path | None, typer.Option(help="An empty folder to work in, which is kept.", show_default=False)
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the temporary folder.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Print the schedule of faults.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each run.")] = False,
) -> None:
    """Kill, freeze and empty everything while jobs run, then count what was lost, written twice or wrong.

    It starts a queue, a ledger and workers of its own, and ends them. Exit status 1 if any promise was broken.

    Example: `make chaos ARGS="--jobs 500 --seconds 15 --seed 7 --database postgres"`
    """
    with clear_errors():
        databases = ["sqlite", "postgres"] if database == "both" else [check_database(database)]
        runs = [
            Options(jobs, workers, seed, seconds, each, _kinds(kinds), home, keep)
            for each in databases
            for seed in _numbers(seeds)
        ]
        if home is not None and len(runs) > 1:
            raise InvalidInput(f"--home {home}: it holds one run, and {len(runs)} are asked for")
        sound = show(runs, verbose=verbose, json=json)
    raise typer.Exit(0 if sound else 1)


if __name__ == "__main__":
    typer.run(chaos)
