"""`forebay models convert`: a version in another form."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.versions.convert import ConvertRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.models.group import models_app
from forebay.producer.cli.options import Columns, Format, Model, columns_option, option
from forebay.producer.cli.output import print_fields
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.cli.views.training import version_fields
from forebay.producer.client import Client
from forebay.producer.handles.kinds import VersionJob
from forebay.producer.options import SubmitOptions


def show_derived(job: VersionJob, info: JobInfo) -> None:
    """The version that a job has made of another one, and what was measured."""
    if info.state is JobState.SUCCEEDED:
        made = job.result(ARRIVES_S)
        print_fields({"model": made.ref, "runtime": made.runtime, **version_fields(made)})


@job_command(
    JobKind.CONVERT,
    "forebay models convert digits@champion --to onnx --alias fast",
    "forebay models convert houses/3 --to torch-export --tolerance 1e-5 --data houses.parquet --rows 5000",
    show=show_derived,
    app=models_app,
)
@request_options("asked", ConvertRequest, without=("data", "replaces"))
def convert(
    client: Client,
    ref: Model,
    asked: dict[str, Any],
    options: SubmitOptions,
    data: Annotated[
        list[str] | None, option("DATA", "Rows for both to run; may be repeated.", default="rows are made up")
    ] = None,
    columns: Columns = None,
    format: Format = None,
) -> VersionJob:
    """Make the next version of a model from one of its versions, as ONNX or as an exported PyTorch program.

    Both run the same rows, and it is registered when no output differs by more than the tolerance. Exit status 1 when the job
    fails.
    """
    return client.models.convert(ref, dataset=data, columns=columns_option(columns), format=format, **asked, **options)
