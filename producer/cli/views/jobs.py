"""How jobs are shown: as tables and fields for people, and in full as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from forebay.contract.errors import ForebayError
from forebay.contract.history import JobEvent
from forebay.contract.job import JobInfo, JobState
from forebay.contract.queues import format_bytes
from forebay.contract.requests.batch import BatchProgress
from forebay.producer.cli.output import (
    age,
    duration,
    json_data,
    moment,
    one_line,
    pairs_text,
    print_fields,
    print_line,
    print_table,
)
from forebay.producer.cli.views.training import print_training, training_as_json
from forebay.producer.cli.views.tuning import print_tuning, tuning_as_json
from forebay.producer.handles.job import Job
from forebay.producer.handles.kinds import BatchJob
from forebay.storage.batches.views import SHARDS_ASKED, BatchErrors

LINES_IN_FIELD = 2  # a longer error, such as a dead child's last lines, is printed below the fields


def print_jobs(jobs: Sequence[JobInfo]) -> None:
    """A row each; with the error of those that failed, where some did."""
    now = datetime.now(UTC)
    rows = [
        (
            job.id, _state(job), job.kind, job.ref, job.queue, f"{job.attempt}/{job.max_attempts}",
            age(job.created_at, now), age(job.started_at, job.finished_at or now), error_line(job),
        )
        for job in jobs
    ]  # fmt: skip
    titles = ("ID", "STATE", "KIND", "MODEL", "QUEUE", "TRY", "AGE", "TOOK", "ERROR")
    shown = len(titles) if any(map(error_line, jobs)) else len(titles) - 1
    print_table(titles[:shown], [row[:shown] for row in rows], right=("TRY", "AGE", "TOOK"))


def print_states(rows: Sequence[tuple[str, JobState, str]]) -> None:
    if any(note for _, _, note in rows):
        print_table(("ID", "STATE", "NOTE"), rows)
    else:
        print_table(("ID", "STATE"), [row[:2] for row in rows])


def print_events(events: Sequence[JobEvent]) -> None:
    rows = [
        (e.at.isoformat(timespec="milliseconds"), e.event, e.attempt, e.worker, " ".join(e.message.split()))
        for e in events
    ]
    print_table(("TIME", "EVENT", "ATTEMPT", "WORKER", "NOTE"), rows, right=("ATTEMPT",))


def job_as_json(job: Job) -> dict[str, Any]:
    """A job's row, and what only its kind has: a batch's progress and errors, a training job's run, an evaluation."""
    info = job.info()
    return {**json_data(info), **_batch_as_json(job), **training_as_json(job, info), **tuning_as_json(job)}


def _batch_as_json(job: Job) -> dict[str, Any]:
    if not isinstance(job, BatchJob):
        return {}
    try:
        request = job.request.summary()
    except ForebayError:  # its blob is gone
        request = None
    return {"batch": json_data(job.progress) | {"request": request, "errors": json_data(job.errors)}}


def print_job(job: Job) -> None:
    """The same for people."""
    info = job.info()
    (error, more_error), (note, more_note) = _split_long(reason(info)), _split_long(info.progress.message)
    message = f" ({note})" if note else ""
    progress = {"progress": f"{info.progress.done} of {info.progress.total}{message}"}
    print_fields(
        {
            "id": info.id,
            "kind": info.kind,
            "state": info.state,
            "error": error or None,
            "model": info.ref,
            "queue": info.queue,
            "priority": info.priority,
            "attempt": f"{info.attempt} of {info.max_attempts}",
            **({} if isinstance(job, BatchJob) else progress),
            "worker": info.worker,
            "submitted": f"{moment(info.created_at)} ({age(info.created_at)} ago)",
            "submitted over HTTP": info.submitted_by,
            "started": moment(info.started_at),
            "finished": moment(info.finished_at),
            "cancel requested": moment(info.cancel_requested_at),
            "not before": moment(info.not_before),
            "took": age(info.started_at, info.finished_at) if info.finished_at else None,
            "deadline": moment(info.deadline_at),
            "parent": info.parent_id,
            "metadata": pairs_text(info.metadata),
            **(_batch_fields(job, info.state.final) if isinstance(job, BatchJob) else {}),
        }
    )
    for line in more_error or more_note:
        print_line(f"  {one_line(line)}")
    for line in error_lines(job.errors) if isinstance(job, BatchJob) else ():
        print_line(line)
    print_training(job, info)
    print_tuning(job)


def error_line(info: JobInfo) -> str:
    """Why a job failed, in one line; "" of all others."""
    return info.error.line if info.error and info.state is JobState.FAILED else ""


def reason(info: JobInfo) -> str:
    return f"{info.error.type}: {info.error.message}" if info.error and info.state is JobState.FAILED else ""


def _state(job: JobInfo) -> str:
    stopping = job.state is JobState.RUNNING and job.cancel_requested_at is not None
    return "cancel requested" if stopping else job.state


def _split_long(text: str) -> tuple[str, list[str]]:
    """A text for its field, and of a long one all lines but the first, to be printed below the fields."""
    first, *rest = text.splitlines() or [""]
    return (first, rest) if len(rest) > LINES_IN_FIELD else (text, [])


def _batch_fields(job: BatchJob, over: bool) -> dict[str, Any]:
    return _request_fields(job) | _progress_fields(job.progress, over)


def _request_fields(job: BatchJob) -> dict[str, Any]:
    try:
        request = job.request
    except ForebayError as error:  # its blob is gone
        return {"input": f"cannot be read: {error}"}
    first, others = request.files[0].path if request.files else None, len(request.files) - 1
    limits = [] if request.max_errors is None else [f"{request.max_errors:,} rows"]
    limits += [] if request.max_error_share is None else [f"{request.max_error_share:.3g} of the rows"]
    return {
        "input": f"{first} and {others:,} more files" if others > 0 else first,
        "input size": f"{format_bytes(request.bytes)}, {request.format}",
        "columns": "; ".join(f"{name}={','.join(columns)}" for name, columns in request.columns.items()) or None,
        "kept": ", ".join(request.keep) or None,
        "output": request.output,
        "fails above": " or ".join(limits) or None,
    }


def _progress_fields(progress: BatchProgress, over: bool) -> dict[str, Any]:
    shards = ", ".join(f"{count} {state}" for state, count in progress.shards.items() if count)
    planning = "" if progress.planned or over else " (planning)"
    left = None if over else duration(progress.eta_s)
    return {
        "rows": f"{progress.completed:,} completed, {progress.failed:,} failed, of {progress.total:,}{planning}",
        "shards": shards or None,
        "done": f"{progress.share:.0%}",
        "speed": f"{progress.rows_per_s:,.0f} rows/s" if progress.rows_per_s else None,
        "left": f"{left}{planning}" if left else planning.strip(" ()") or None,
    }


def error_lines(errors: BatchErrors) -> list[str]:
    """Why rows failed and where: by kind, with samples."""
    lines = []
    for what, kinds in (("row", errors.rows), ("shard", errors.shards)):
        for kind in kinds:
            lines.append(f"  {kind.count:,} {what}{'' if kind.count == 1 else 's'}: {one_line(kind.type)}")
            lines += [f"    {one_line(f'{sample.where}: {sample.message}')}" for sample in kind.samples]
    return lines if errors.complete else [*lines, f"  counted over the first {SHARDS_ASKED:,} shards with errors"]
