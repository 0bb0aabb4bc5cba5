"""`forebay evaluate`: what a model version is worth on a data set."""

from __future__ import annotations

from typing import Annotated

import typer

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.producer.cli.commands import examples, job_command
from forebay.producer.cli.options import COLUMNS_HELP, Format, Model, columns_option
from forebay.producer.cli.output import json_data, print_json
from forebay.producer.cli.results import ARRIVES_S
from forebay.producer.cli.training_views import print_evaluation
from forebay.producer.client import Client
from forebay.producer.handles.kinds import EvaluationJob
from forebay.producer.options import SubmitOptions

EXAMPLES = examples(
    "forebay evaluate digits@champion held-out.parquet --target label",
    "forebay evaluate houses/3 'houses/2026-*.csv' --target price --columns rooms,area --json",
)


def _print(job: EvaluationJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_evaluation(job.result(ARRIVES_S))


def _print_json(job: EvaluationJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_json({"state": info.state, **json_data(job.result(ARRIVES_S))})
    else:
        print_json({"id": job.id, "state": info.state, "error": info.error})


@job_command(JobKind.EVALUATE, _print, _print_json)
def evaluate(
    client: Client,
    model: Model,
    dataset: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Paths, globs (in quotes), folders or URLs.", show_default=False),
    ],
    target: Annotated[str, typer.Option(metavar="COLUMN", help="The column with what is true.", show_default=False)],
    options: SubmitOptions,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help=COLUMNS_HELP, show_default="what it was trained on"),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output that is compared with the target.", show_default="the only one"),
    ] = None,
    format: Format = None,
) -> EvaluationJob:
    """Try a model version on rows of which the truth is known: metrics, confusion matrix, latency.

    The result is stored with the version: `forebay models show` lists it. Exit status 1 when the job fails.
    """
    named = columns_option(columns)
    return client.evaluate(model, dataset, target=target, columns=named, output=output, format=format, **options)
