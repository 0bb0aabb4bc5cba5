"""`forebay models drift` and `reference`: what a version serves, held against what it was made for."""

from __future__ import annotations

from typing import Annotated

from forebay.contract.drift.comparison import LEAST_ROWS, ColumnDrift, Drift
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.producer.cli.commands import command, job_command
from forebay.producer.cli.models.group import models_app
from forebay.producer.cli.options import COLUMNS_HELP, Connect, Format, Model, argument, columns_option, option
from forebay.producer.cli.output import moment, print_json, print_line, print_note, print_table
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.options import SubmitOptions
from forebay.storage.models.drift import DAY, KEPT_HOURS


@command(models_app, "forebay models drift digits@champion", "forebay models drift digits/3 --hours 168 --json")
def drift(
    connect: Connect,
    as_json: bool,
    ref: Model,
    hours: Annotated[int, option("N", f"Of the last N hours, up to {KEPT_HOURS}.", default=str(DAY))] = DAY,
) -> None:
    """Show how far what a version has served is from its reference, by column: PSI, missing values, values out of range."""
    found = connect().models.drift(ref, hours)
    print_json(found) if as_json else _show(found)


def _show(drift: Drift) -> None:
    print_line(f"{drift.model}: {drift.rows:,} rows of the last {drift.hours} h against {drift.source}")
    if drift.rows < LEAST_ROWS:
        print_note(f"too few rows to tell: {LEAST_ROWS} are needed")
    titles = ("COLUMN", "OF", "PSI", "MISSING", "BEFORE", "OUT OF RANGE", "NEW", "VERDICT")
    print_table(titles, [_row(column) for column in drift.columns], right=titles[2:7])
    for what in drift.unwatched:
        print_note(f"not watched: {what}")


def _row(c: ColumnDrift) -> tuple[str | None, ...]:
    def share(value: float | None) -> str | None:
        return None if value is None else f"{value:.1%}"

    psi = None if c.psi is None else f"{c.psi:.3f}"
    verdict = "drifted" if c.drifted else None if c.psi is None else "as before"
    return c.name, c.side, psi, share(c.missing), share(c.missing_before), share(c.out_of_range), share(c.new), verdict


@command(models_app, "forebay models retraining", "forebay models retraining houses --json")
def retraining(
    connect: Connect,
    as_json: bool,
    name: Annotated[str | None, argument("NAME", "Only this model's.")] = None,
    remove: Annotated[str | None, option("ID", "Remove this one.")] = None,
) -> None:
    """List the trainings that drift sets off, made by `forebay train --when-drift`, with what they set off; or remove one."""
    client = connect()
    if remove is not None:
        client.retraining.remove(remove)
        print_json({"removed": remove}) if as_json else print_line(f"{remove} is removed")
        return
    found = client.retraining.list(name)
    if as_json:
        print_json(found)
        return
    if not found:
        print_note("no training waits for drift: forebay train --when-drift")
    for one in found:
        print_line(f"{one.id}: trains {one.model} when a column of {one.watched} drifts by {one.threshold:g}")
        for trigger in one.triggers:
            print_line(f"  {moment(trigger.at)}  {trigger.job}  {trigger.reason}")
        if one.problem:
            print_note(f"  not set off: {one.problem}")


def _print(job: Job, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        made = job.result(ARRIVES_S)
        print_line(f"{made['model']} is held against {made['rows']:,} rows in {made['columns']} columns from now on")
        for what in made["unwatched"]:
            print_note(f"not watched: {what}")


@job_command(
    JobKind.REFERENCE,
    "forebay models reference digits/3 digits.parquet --columns pixels",
    "forebay models reference houses@champion 'houses/2026-*.csv'",
    show=_print,
    app=models_app,
)
def reference(
    client: Client,
    model: Model,
    dataset: Annotated[list[str], argument("DATA...", "Paths, globs (in quotes), folders or URLs.")],
    options: SubmitOptions,
    columns: Annotated[str | None, option("NAMES", COLUMNS_HELP, default="what it was trained on")] = None,
    format: Format = None,
) -> Job:
    """Hold what a version serves from now on against rows of a data set. A trained version has a reference already."""
    return client.models.reference(model, dataset, columns=columns_option(columns), format=format, **options)
