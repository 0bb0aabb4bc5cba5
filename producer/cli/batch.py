"""`forebay batch`: a data set in, a data set out, with its progress while it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.batch import BatchRequest
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
    names,
    open_client,
    timeout_s,
    with_submit_options,
)
from forebay.producer.cli.output import clear_errors, print_json, say
from forebay.producer.cli.request_options import request_options
from forebay.producer.cli.results import ARRIVES_S, wait_and_show
from forebay.producer.handles.kinds import BatchJob
from forebay.producer.options import SubmitOptions

EXAMPLES = examples(
    "forebay batch minilm 'in/*.parquet' out/ --columns text --keep id",
    "forebay batch iris flowers.csv out/ --columns sepal_length,sepal_width,petal_length,petal_width --keep id",
    "forebay batch minilm requests.jsonl out/ --no-wait",
)


@clear_errors()
@request_options("limits", BatchRequest, only=("shard_rows", "max_errors", "max_error_share"))
@with_submit_options(JobKind.BATCH)
def batch(
    model: Model,
    input: Annotated[
        str, typer.Argument(metavar="IN", help="A path, glob (in quotes), folder or URL.", show_default=False)
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="An empty folder, or a URL.", show_default=False)],
    limits: dict[str, Any],
    columns: Annotated[str | None, typer.Option(metavar="NAMES", help=COLUMNS_HELP, show_default=False)] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Columns to copy, by comma.", show_default="each row's place")
    ] = None,
    format: Format = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    home: Home = None,
    as_json: Json = False,
    *,
    options: SubmitOptions,
) -> None:
    """Run a model over a data set and write another one.

    Called again with the same arguments, it takes up a batch that failed or was canceled and does what is missing. Ctrl-C
    leaves it running. Exit status 1 when it fails.
    """
    wait_s = timeout_s(timeout)
    with open_client(home) as client:
        job = client.batch(
            model, input, output, columns=columns_option(columns), keep=names(keep), format=format, **limits, **options
        )  # fmt: skip
        show = _print_json if as_json else _print
        wait_and_show(client, job, wait_s, show, no_wait=no_wait, as_json=as_json)


def _print(job: BatchJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        manifest = job.result(ARRIVES_S)
        counts = manifest.counts
        say(f"{counts.completed:,} rows in {manifest.output}, {counts.failed:,} failed; batch {job.id}")


def _print_json(job: BatchJob, info: JobInfo) -> None:
    counts = job.progress.request_counts
    print_json({"id": job.id, "state": info.state, "request_counts": counts, "error": info.error})
