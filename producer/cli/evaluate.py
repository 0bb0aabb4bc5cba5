"""`forebay evaluate`: what a model version is worth on a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from forebay.contract.errors import JobFailed, ResultTimeout
from forebay.contract.job import JobState
from forebay.producer.cli.options import (
    Deadline,
    Format,
    Home,
    Json,
    Key,
    Metadata,
    NoWait,
    Priority,
    Queue,
    Timeout,
    columns_option,
    deadline,
    examples,
    open_client,
    pairs,
    timeout_s,
)
from forebay.producer.cli.output import clear_errors, plain, print_json, write
from forebay.producer.cli.results import ARRIVES_S, note_unserved, wait_for
from forebay.producer.cli.runs import print_evaluation
from forebay.producer.handles.evaluation import EvaluationJob

EXAMPLES = examples(
    "forebay evaluate digits@champion held-out.parquet --target label",
    "forebay evaluate houses/3 'houses/2026-*.csv' --target price --columns rooms,area --json",
)


@clear_errors()
def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name/3 or name@alias.", show_default=False)],
    dataset: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Paths, globs (in quotes), folders or URLs.", show_default=False),
    ],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="The column with what is true.", show_default=False)],
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What goes into the model, by comma; INPUT=COLUMN for several inputs.",
            show_default="what it was trained on",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output that is held against the target.", show_default="the only one"),
    ] = None,
    format: Format = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    priority: Priority = 7,
    queue: Queue = None,
    deadline_: Deadline = None,
    max_attempts: Annotated[int, typer.Option(metavar="N", help="How often it may be started.")] = 3,
    idempotency_key: Key = None,
    metadata: Metadata = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Try a model version on rows of which the truth is known: metrics, confusion matrix, latency.

    The result is stored with the version: `forebay models show` lists it. Exit status 1 when the job fails.
    """
    wait_s = timeout_s(timeout)
    with open_client(home) as client:
        job = client.evaluate(
            model, dataset, target=target, columns=columns_option(columns), output=output, format=format, priority=priority,
            queue=queue, deadline=deadline(deadline_), max_attempts=max_attempts, idempotency_key=idempotency_key,
            metadata=pairs(metadata, "--metadata"),
        )  # fmt: skip
        if no_wait:
            note_unserved(client, job.info().queue)
            print_json({"id": job.id}) if as_json else write(job.id)
            return
        wait_for(client, [job], wait_s)
        _show(job, as_json)


def _show(job: EvaluationJob, as_json: bool) -> None:
    info = job.info()
    if info.state is JobState.SUCCEEDED:
        evaluation = job.result(ARRIVES_S)
        if as_json:
            print_json({"state": info.state, **plain(evaluation)})
        else:
            print_evaluation(evaluation)
        return
    if as_json:
        print_json({"id": job.id, "state": info.state, "error": info.error})
    if not info.state.final:
        raise ResultTimeout(f"job {job.id} is {info.state} and goes on: forebay jobs wait {job.id}")
    raise job.exception(ARRIVES_S) or JobFailed(f"job {job.id} {info.state}")
