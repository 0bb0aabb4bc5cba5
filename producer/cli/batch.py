"""`forebay batch`: a data set in, a data set out, with its progress while it runs."""

from __future__ import annotations

from typing import Annotated, Any

from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.batch import BatchRequest
from forebay.producer.cli.commands import job_command, request_options
from forebay.producer.cli.options import Columns, Format, Model, argument, columns_option, names, option, parse_json
from forebay.producer.cli.output import print_indented, print_json, print_note
from forebay.producer.cli.views.jobs import error_lines
from forebay.producer.cli.views.results import ARRIVES_S
from forebay.producer.client import Client
from forebay.producer.handles.kinds import BatchJob
from forebay.producer.options import SubmitOptions


def _print(job: BatchJob, info: JobInfo) -> None:
    if info.state is JobState.SUCCEEDED:
        manifest = job.result(ARRIVES_S)
        counts = manifest.counts
        print_note(f"{counts.completed:,} rows in {manifest.output}, {counts.failed:,} failed; batch {job.id}")
        if manifest.usage is not None:
            read, made = manifest.usage["prompt_tokens"], manifest.usage["completion_tokens"]
            print_note(f"{read:,} tokens were read and {made:,} generated")
        if counts.failed:
            print_note(f"all rows that failed are in {manifest.output}/_errors; why, with the first of each kind:")
    for line in error_lines(job.errors) if info.state.final else ():
        print_indented(line)


def _print_json(job: BatchJob, info: JobInfo) -> None:
    manifest = job.result(ARRIVES_S) if info.state is JobState.SUCCEEDED else None
    told: dict[str, Any] = {"id": job.id, "state": info.state, "output": manifest and manifest.output}
    told |= {"request_counts": job.progress.request_counts, "usage": manifest and manifest.usage}
    print_json(told | {"error": info.error, "errors": job.errors})


@job_command(
    JobKind.BATCH,
    "forebay batch minilm 'in/*.parquet' out/ --columns text --keep id",
    "forebay batch iris flowers.csv out/ --columns sepal_length,sepal_width,petal_length,petal_width --keep id",
    "forebay batch houses new.csv out/ --keep id --output-format csv",
    "forebay batch iris flowers.csv why/ --columns sepal_length,sepal_width,petal_length,petal_width --explain saliency",
    "forebay batch minilm requests.jsonl out/ --no-wait",
    show=_print,
    show_json=_print_json,
)
@request_options("limits", BatchRequest, only=("output_format", "shard_rows", "max_errors", "max_error_share"))
def batch(
    client: Client,
    model: Model,
    input: Annotated[str, argument("IN", "A path, glob (in quotes), folder or URL.")],
    output: Annotated[str, argument("OUT", "An empty folder, or a URL.")],
    limits: dict[str, Any],
    options: SubmitOptions,
    columns: Columns = None,
    keep: Annotated[str | None, option("NAMES", "Columns to copy, by comma.", default="each row's place")] = None,
    format: Format = None,
    explain: Annotated[
        str | None,
        option("METHOD", "Write explanations: a method, or JSON as docs/how-to/explain-predictions.md says."),
    ] = None,
) -> BatchJob:
    """Run a model over a data set and write another one.

    Called again with the same arguments, it takes up a batch that failed or was canceled and does what is missing. Ctrl-C
    leaves it running. Exit status 1 when it fails.
    """
    named = columns_option(columns)
    explained = parse_json(explain, "--explain") if explain and explain.startswith("{") else explain
    return client.batch(
        model, input, output, columns=named, keep=names(keep), format=format, explain=explained, **limits, **options
    )
