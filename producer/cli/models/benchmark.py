"""`forebay models benchmark`: how fast a version is, and how large its batches are best."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.versions.benchmark import BenchmarkRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.models.group import models_app
from forebay.producer.cli.options import Columns, Format, Model, columns_option, option
from forebay.producer.cli.views.benchmarks import print_benchmark
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.client import Client
from forebay.producer.handles.kinds import BenchmarkJob
from forebay.producer.options import SubmitOptions


def _show(job: BenchmarkJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        print_benchmark(job.result(ARRIVES_S))


@job_command(
    JobKind.BENCHMARK,
    "forebay models benchmark digits@champion",
    "forebay models benchmark minilm --queue gpu --data sentences.csv --max-latency-ms 50 --apply",
    show=_show,
    app=models_app,
)
@request_options("asked", BenchmarkRequest, without=("data",))
def benchmark(
    client: Client,
    ref: Model,
    asked: dict[str, Any],
    options: SubmitOptions,
    data: Annotated[
        list[str] | None, option("DATA", "Rows to run; may be repeated.", default="rows are made up")
    ] = None,
    columns: Columns = None,
    format: Format = None,
) -> BenchmarkJob:
    """Find the batch size of the most rows/s, by measuring 1, 2, 4, … rows on a worker of the version's queue.

    What was measured is kept with the version: `forebay models show` lists it. Exit status 1 when the job fails.
    """
    return client.models.benchmark(
        ref, dataset=data, columns=columns_option(columns), format=format, **asked, **options
    )
