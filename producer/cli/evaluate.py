"""`forebay evaluate`: what a model version is worth on a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.producer.cli.options import (
    COLUMNS_HELP,
    Format,
    Home,
    Json,
    Model,
    NoWait,
    Timeout,
    columns_option,
    examples,
    open_client,
    timeout_s,
    with_submit_options,
)
from forebay.producer.cli.output import clear_errors, plain, print_json
from forebay.producer.cli.results import ARRIVES_S, wait_and_show
from forebay.producer.cli.training_views import print_evaluation
from forebay.producer.handles.kinds import EvaluationJob
from forebay.producer.options import SubmitOptions

EXAMPLES = examples(
    "forebay evaluate digits@champion held-out.parquet --target label",
    "forebay evaluate houses/3 'houses/2026-*.csv' --target price --columns rooms,area --json",
)


@clear_errors()
@with_submit_options(JobKind.EVALUATE)
def evaluate(
    model: Model,
    dataset: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Paths, globs (in quotes), folders or URLs.", show_default=False),
    ],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="The column with what is true.", show_default=False)],
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=COLUMNS_HELP, show_default="what it was trained on"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output that is held against the target.", show_default="the only one"),
    ] = None,
    format: Format = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    home: Home = None,
    as_json: Json = False,
    *,
    options: SubmitOptions,
) -> None:
    """Try a model version on rows of which the truth is known: metrics, confusion matrix, latency.

    The result is stored with the version: `forebay models show` lists it. Exit status 1 when the job fails.
    """
    wait_s = timeout_s(timeout)
    with open_client(home) as client:
        job = client.evaluate(
            model, dataset, target=target, columns=columns_option(columns), output=output, format=format, **options
        )
        show = _print_json if as_json else _print
        wait_and_show(client, job, wait_s, show, no_wait=no_wait, as_json=as_json)


def _print(job: EvaluationJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_evaluation(job.result(ARRIVES_S))


def _print_json(job: EvaluationJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_json({"state": info.state, **plain(job.result(ARRIVES_S))})
    else:
        print_json({"id": job.id, "state": info.state, "error": info.error})
