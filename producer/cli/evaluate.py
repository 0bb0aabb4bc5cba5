"""`forebay evaluate`: what a model version is worth on a data set."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.options import COLUMNS_HELP, Format, Model, argument, columns_option, option
from forebay.producer.cli.output import json_data, print_json
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.cli.views.training import print_evaluation
from forebay.producer.client import Client
from forebay.producer.handles.kinds import EvaluationJob
from forebay.producer.options import SubmitOptions


def _print(job: EvaluationJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_evaluation(job.result(ARRIVES_S))


def _print_json(job: EvaluationJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_json({"state": info.state, **json_data(job.result(ARRIVES_S))})
    else:
        print_json({"id": job.id, "state": info.state, "error": info.error})


@job_command(
    JobKind.EVALUATE,
    "forebay evaluate digits@champion held-out.parquet --target label",
    "forebay evaluate houses/3 'houses/2026-*.csv' --target price --columns rooms,area --json",
    show=_print,
    show_json=_print_json,
)
@request_options("compared", EvaluateRequest, only=("target", "output"))
def evaluate(
    client: Client,
    model: Model,
    dataset: Annotated[list[str], argument("DATA...", "Paths, globs (in quotes), folders or URLs.")],
    compared: dict[str, Any],
    options: SubmitOptions,
    columns: Annotated[str | None, option("NAMES", COLUMNS_HELP, default="what it was trained on")] = None,
    format: Format = None,
) -> EvaluationJob:
    """Try a model version on rows of which the truth is known: metrics, confusion matrix, latency.

    The result is stored with the version: `forebay models show` lists it. Exit status 1 when the job fails.
    """
    named = columns_option(columns)
    return client.evaluate(model, dataset, columns=named, format=format, **compared, **options)
