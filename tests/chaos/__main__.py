"""`make chaos`, or `python -m chaos` in tests/: a line about what goes on while it runs, then a table or one line of JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chaos.run import Options, Report, run
from forebay.producer.cli.output import clear_errors, print_fields, print_json_line, print_note


def show(options: Options, *, verbose: bool, json: bool) -> bool:
    """One run, told as it goes and reported in the end; whether every promise was kept."""
    report = _run(options, verbose)
    if json:
        print_json_line(report.as_dict())
    else:
        print_fields(_shown(report))
    if not report.sound:
        for problem in report.as_dict()["problems"]:
            print_note(problem)
    return report.sound


def _run(options: Options, verbose: bool) -> Report:
    """One run, with a bar on a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("chaos", total=options.jobs)

        def tell(what: str, ended: int) -> None:
            bar.update(task, description=what, completed=ended)

        return run(options, _speaker(verbose), tell)


def _speaker(verbose: bool) -> Callable[[str, bool], None]:
    def speak(line: str, always: bool = False) -> None:
        if verbose or always:
            print_note(line)

    return speak


def _shown(report: Report) -> dict[str, object]:
    """The report for people: counts in words, nested ones on one line."""
    fields = report.as_dict()
    fields["executions"] = ", ".join(f"{jobs} jobs {runs} times" for runs, jobs in fields["executions"].items())
    fields["faults"] = ", ".join(f"{count} {kind}" for kind, count in fields["faults"].items())
    del fields["problems"]
    return {name.replace("_", " "): value for name, value in fields.items()}


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

    Example: `make chaos ARGS="--jobs 500 --seconds 15 --seed 7 --database postgres"`
    """
    with clear_errors():
        sound = show(Options(jobs, workers, seed, seconds, database, home, keep), verbose=verbose, json=json)
    raise typer.Exit(0 if sound else 1)


if __name__ == "__main__":
    typer.run(chaos)
