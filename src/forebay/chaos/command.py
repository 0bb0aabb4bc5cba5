"""`forebay chaos` at the shell: a line about what goes on while it runs, then a table or one line of JSON."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from forebay.chaos.run import Options, Report, run
from forebay.producer.cli.output import print_fields, print_json_line, say


def chaos(options: Options, *, verbose: bool, json: bool) -> bool:
    """One run, told as it goes and reported in the end; whether every promise was kept."""
    report = _run(options, verbose)
    if json:
        print_json_line(report.as_dict())
    else:
        print_fields(_shown(report))
    if not report.sound:
        for problem in report.as_dict()["problems"]:
            say(problem)
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
            say(line)

    return speak


def _shown(report: Report) -> dict[str, object]:
    """The report for people: counts in words, nested ones on one line."""
    fields = report.as_dict()
    fields["executions"] = ", ".join(f"{jobs} jobs {runs} times" for runs, jobs in fields["executions"].items())
    fields["faults"] = ", ".join(f"{count} {kind}" for kind, count in fields["faults"].items())
    del fields["problems"]
    return {name.replace("_", " "): value for name, value in fields.items()}
