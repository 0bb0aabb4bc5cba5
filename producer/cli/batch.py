"""`forebay batch`: a data set in, a data set out, with its progress while it runs; and `forebay jobs audit`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from forebay.contract.errors import InvalidInput, JobFailed, ResultTimeout
from forebay.contract.job import JobState
from forebay.contract.requests.batch import BatchProgress
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
    names,
    open_client,
    pairs,
    timeout_s,
)
from forebay.producer.cli.output import clear_errors, duration, one_line, print_fields, print_json, say, write
from forebay.producer.cli.results import ARRIVES_S, wait_for
from forebay.producer.handles.batch import BatchJob
from forebay.storage.batches.views import SHARDS_ASKED, BatchErrors

EXAMPLES = examples(
    "forebay batch minilm 'in/*.parquet' out/ --columns text --keep id",
    "forebay batch iris flowers.csv out/ --columns sepal_length,sepal_width,petal_length,petal_width --keep id",
    "forebay batch minilm requests.jsonl out/ --no-wait",
)

AUDIT_EXAMPLES = examples("forebay jobs audit 0190f3c2a1b47c3e9d5f60718293a4b5")


@clear_errors()
def batch(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="name, name/3 or name@alias.", show_default=False)],
    input: Annotated[
        str, typer.Argument(metavar="IN", help="A path, glob (in quotes), folder or URL.", show_default=False)
    ],
    output: Annotated[str, typer.Argument(metavar="OUT", help="An empty folder, or a URL.", show_default=False)],
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What goes into the model, by comma; INPUT=COLUMN for several inputs.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Columns to copy, by comma.", show_default="each row's place")
    ] = None,
    format: Format = None,
    shard_rows: Annotated[
        int | None, typer.Option(metavar="N", help="Rows in a shard.", show_default="about 5 s of work")
    ] = None,
    error_threshold: Annotated[
        str | None,
        typer.Option(metavar="N", help="Fail when more rows fail: 10, or 0.01 for a share.", show_default="all"),
    ] = None,
    no_wait: NoWait = False,
    timeout: Timeout = None,
    priority: Priority = 7,
    queue: Queue = None,
    deadline_: Deadline = None,
    max_attempts: Annotated[int, typer.Option(metavar="N", help="How often a shard may be started.")] = 5,
    idempotency_key: Key = None,
    metadata: Metadata = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run a model over a data set and write another one.

    Called again with the same arguments, it takes up a batch that failed or was canceled and does what is missing. Ctrl-C
    leaves it running. Exit status 1 when it fails.
    """
    wait_s = timeout_s(timeout)
    with open_client(home) as client:
        job = client.batch(
            model, input, output, columns=columns_option(columns), keep=names(keep), format=format, shard_rows=shard_rows,
            error_threshold=_threshold(error_threshold), priority=priority, queue=queue, deadline=deadline(deadline_),
            max_attempts=max_attempts, idempotency_key=idempotency_key, metadata=pairs(metadata, "--metadata"),
        )  # fmt: skip
        if no_wait:
            print_json({"id": job.id}) if as_json else write(job.id)
            return
        wait_for(client, [job], wait_s)
        _show(job, as_json)


def progress_fields(progress: BatchProgress) -> dict[str, Any]:
    """A batch's progress for people."""
    shards = ", ".join(f"{count} {state}" for state, count in progress.shards.items() if count)
    total = f"{progress.total:,}" + ("" if progress.planned else " so far")
    return {
        "rows": f"{progress.completed:,} completed, {progress.failed:,} failed, of {total}",
        "shards": shards or None,
        "done": f"{progress.share:.0%}",
        "speed": f"{progress.rows_per_s:,.0f} rows/s" if progress.rows_per_s else None,
        "left": duration(progress.eta_s),
    }


def error_lines(errors: BatchErrors) -> list[str]:
    """Why rows and shards of a batch failed, kind by kind, each with its samples."""
    lines = []
    for what, kinds in (("row", errors.rows), ("shard", errors.shards)):
        for kind in kinds:
            lines.append(f"  {kind.count:,} {what}{'' if kind.count == 1 else 's'}: {one_line(kind.type)}")
            lines += [f"    {one_line(f'{sample.where}: {sample.message}')}" for sample in kind.samples]
    return lines if errors.complete else [*lines, f"  counted over the first {SHARDS_ASKED:,} shards with errors"]


@clear_errors()
def audit(
    id: Annotated[str, typer.Argument(metavar="ID", help="A batch job's id.", show_default=False)],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Check that a batch's counts in the ledger, in its manifest and in its files agree. Exit status 1 when they do not."""
    from forebay.producer.requests.audit import audit as look

    with open_client(home) as client:
        findings = look(client.session, id)
    if as_json:
        print_json(findings)
    else:
        print_fields({name: value for name, value in findings.items() if name != "faults"})
        for fault in findings["faults"]:
            say(fault)
    if findings["faults"]:
        raise typer.Exit(1)


def _show(job: BatchJob, as_json: bool) -> None:
    info = job.info()
    if as_json:
        print_json(
            {"id": job.id, "state": info.state, "request_counts": job.progress.request_counts, "error": info.error}
        )
    if not info.state.final:
        raise ResultTimeout(f"batch {job.id} is {info.state} and goes on: forebay jobs wait {job.id}")
    if info.state is JobState.SUCCEEDED:
        manifest = job.result(ARRIVES_S)
        counts = manifest.counts
        if not as_json:
            say(f"{counts.completed:,} rows in {manifest.output}, {counts.failed:,} failed; batch {job.id}")
        return
    raise job.exception(ARRIVES_S) or JobFailed(f"batch {job.id} {info.state}")


def _threshold(text: str | None) -> int | float | None:
    if text is None:
        return None
    try:
        return int(text) if text.strip().isdigit() else float(text)
    except ValueError as error:
        raise InvalidInput(f"--error-threshold {text!a}: write a number of rows (10) or a share (0.01)") from error
