"""`forebay jobs`: looking at jobs, waiting for them, canceling and retrying them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from forebay.contract.errors import ForebayError, IllegalTransition, InvalidInput, ResultTimeout
from forebay.contract.history import JobEvent
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.batch import BatchProgress
from forebay.producer.cli.batch import error_lines, progress_fields
from forebay.producer.cli.options import Home, Json, Metadata, Timeout, examples, open_client, pairs, timeout_s
from forebay.producer.cli.output import (
    age,
    clear_errors,
    exit_status,
    moment,
    one_line,
    pairs_text,
    plain,
    print_fields,
    print_json,
    print_table,
    say,
    say_error,
    write,
)  # fmt: skip
from forebay.producer.cli.predict import Output
from forebay.producer.cli.results import check_output, raise_unless_succeeded, show_one, wait_for
from forebay.producer.cli.retry import MANY, retry_failed
from forebay.producer.cli.runs import details, show_details
from forebay.producer.client import Client
from forebay.producer.handles.batch import BatchJob
from forebay.producer.handles.job import Job
from forebay.storage.batches.views import BatchErrors

LINES_IN_FIELD = 2  # a longer error, such as a dead child's last lines, is printed below the fields

jobs_app = typer.Typer(help="Look at jobs, wait for them, cancel and retry them.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(metavar="ID", help="A job's id, all 32 digits.", show_default=False)]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help="One id or more, all 32 digits.", show_default=False)]


@jobs_app.command(
    "list",
    epilog=examples(
        "forebay jobs list --state failed --model digits", "forebay jobs list --metadata run=7 --limit 1000 --json"
    ),
)
@clear_errors()
def list_(
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="STATE", help=f"{', '.join(JobState)}; may be repeated.", show_default=False),
    ] = None,
    kind: Annotated[str | None, typer.Option(metavar="KIND", help=f"{', '.join(JobKind)}.", show_default=False)] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="name, name/3 or name@alias.", show_default=False)
    ] = None,
    metadata: Metadata = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.")] = 100,
    before: Annotated[
        str | None, typer.Option(metavar="ID", help="Only older jobs than this one: the next page.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""
    filters = pairs(metadata, "--metadata")
    with open_client(home) as client:
        found = client.jobs(state=state, kind=kind, model=model, metadata=filters, limit=limit, before=before)
    if as_json:
        print_json(found)
    elif not found:
        say("no job is like that" if state or kind or model or filters or before else "no job was submitted yet")
    else:
        _print_jobs(found)
        if len(found) == limit:
            say(f"for older ones add --before {found[-1].id}")


@jobs_app.command(
    epilog=examples(
        "forebay jobs show 0190f3c2a1b47c3e9d5f60718293a4b5",
        "forebay jobs show 0190f3c2a1b47c3e9d5f60718293a4b5 --logs",
    )
)
@clear_errors()
def show(
    id: Id,
    logs: Annotated[
        bool, typer.Option("--logs", help="What happened to it, line by line: who claimed it, what was lost and why.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Show one job: its state, times, attempts and error, or with --logs the story of all its attempts."""
    with open_client(home) as client:
        job = client.job(id)
        if logs:
            events = job.history()
            print_json(events) if as_json else _print_events(events)
            return
        info = job.info()
        is_batch = isinstance(job, BatchJob)
        progress, errors = (job.progress, job.errors) if isinstance(job, BatchJob) else (None, BatchErrors())
        if as_json:
            batch = {"batch": plain(progress) | {"errors": plain(errors)}} if is_batch else {}
            print_json(plain(info) | batch | details(job, info))
        else:
            _show(info, progress)
            for line in error_lines(errors):
                write(line)
            show_details(job, info)


@jobs_app.command(
    epilog=examples(
        "forebay jobs wait 0190f3c2a1b47c3e9d5f60718293a4b5 --timeout 5m",
        "forebay predict digits --file rows.jsonl --no-wait | xargs forebay jobs wait",
    )
)
@clear_errors()
def wait(ids: Ids, timeout: Timeout = None, home: Home = None, as_json: Json = False) -> None:
    """Wait until jobs have ended. Exit status 0 when all have succeeded, else 1."""
    wait_s = timeout_s(timeout)
    with open_client(home) as client:
        jobs = _find(client, ids)
        wait_for(client, jobs, wait_s)
        infos = [job.info() for job in jobs]
    if as_json:
        print_json(infos)
    else:
        _print_states([(info.id, info.state, _reason(info)) for info in infos])
    raise_unless_succeeded([info.state for info in infos], jobs)


@jobs_app.command(
    epilog=examples(
        "forebay jobs cancel 0190f3c2a1b47c3e9d5f60718293a4b5",
        "forebay jobs cancel 0190f3c2a1b47c3e9d5f60718293a4b5 --wait",
        "forebay jobs list --state queued --json | jq -r '.[].id' | xargs forebay jobs cancel",
    )
)
@clear_errors()
def cancel(
    ids: Ids,
    wait_: Annotated[bool, typer.Option("--wait", help="Come back when all have ended.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Cancel jobs, and say of each what came of it.

    A job that waits is canceled at once, and so is a batch, whose running shards are asked to stop. Any other job that runs is
    asked to stop, which it does between two batches. Exit status 1 when a job had ended before, or with --wait when it ended
    otherwise.
    """
    with open_client(home) as client:
        jobs = _find(client, ids)
        states = [(job.id, job.cancel()) for job in jobs]
        if wait_:
            wait_for(client, jobs, None)
            states = [(job.id, job.state) for job in jobs]
    if as_json:
        print_json([_cancel_as_json(id, state) for id, state in states])
    else:
        print_table(("ID", "CANCEL"), [(id, _what_came(state)) for id, state in states])
    if any(state not in (JobState.CANCELED, JobState.RUNNING) for _, state in states):
        raise typer.Exit(1)


@jobs_app.command(
    epilog=examples(
        "forebay jobs retry 0190f3c2a1b47c3e9d5f60718293a4b5",
        "forebay jobs retry --failed --dry-run",
        "forebay jobs retry --failed --model digits@champion --yes",
    )
)
@clear_errors()
def retry(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Ids, all 32 digits.", show_default=False)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed and expired job, instead of ids.")] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --failed: only of name, name/3 or name@alias.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --failed: only say how many there are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=f"Do not ask before retrying more than {MANY:,}.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Queue failed, canceled or expired jobs afresh, under the same ids.

    A training job goes on from its last checkpoint. --failed takes all that failed or expired, however many, and leaves
    succeeded and canceled ones alone.
    """
    if failed == bool(ids):
        raise InvalidInput("give the ids of the jobs to retry, or --failed for all that have failed or expired")
    if not failed and (model is not None or dry_run):
        raise InvalidInput("--model and --dry-run go with --failed")
    with open_client(home) as client:
        if failed:
            retry_failed(client, model, dry_run, yes, as_json)
            return
        jobs = _find(client, ids or ())
        refusals = [error for job in jobs if (error := _retried(job)) is not None]
        states = [(job.id, job.info().state) for job in jobs]
    if as_json:
        print_json([{"id": id, "state": state} for id, state in states])
    else:
        _print_states([(id, state, "") for id, state in states])
    if refusals:
        raise typer.Exit(exit_status(refusals[0]))


@jobs_app.command(epilog=examples("forebay jobs result 0190f3c2a1b47c3e9d5f60718293a4b5 -o scores.npy"))
@clear_errors()
def result(
    id: Id,
    output: Output = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Wait so long for it: 30, 45s, 5m.", show_default="no wait")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Print a job's result, or save it."""
    check_output(output)
    wait_s = timeout_s(timeout)
    with open_client(home) as client:
        job = client.job(id)
        if wait_s is not None:
            wait_for(client, [job], wait_s)
        elif not job.done():
            raise ResultTimeout(f"job {id} is {job.state} and has no result yet; wait for it with --timeout 60")
        show_one(job, output, as_json)


def _find(client: Client, ids: Sequence[str]) -> list[Job]:
    """The handles, each job once; JobNotFound before anything is done when one does not exist."""
    return [client.job(id) for id in dict.fromkeys(ids)]


def _retried(job: Job) -> ForebayError | None:
    try:
        job.retry()
    except IllegalTransition as error:
        refusal = IllegalTransition(f"job {job.id}: {error}")
        say_error(refusal)
        return refusal
    return None


def _what_came(state: JobState) -> str:
    if state is JobState.RUNNING:
        return "cancel requested"
    return state if state is JobState.CANCELED else f"it had {state}"


def _cancel_as_json(id: str, state: JobState) -> dict[str, Any]:
    return {"id": id, "state": state, "cancel_requested": state is JobState.RUNNING}


def _reason(info: JobInfo) -> str:
    return f"{info.error.type}: {info.error.message}" if info.error and info.state is JobState.FAILED else ""


def _print_states(rows: Sequence[tuple[str, JobState, str]]) -> None:
    if any(note for _, _, note in rows):
        print_table(("ID", "STATE", "NOTE"), rows)
    else:
        print_table(("ID", "STATE"), [row[:2] for row in rows])


def _print_events(events: Sequence[JobEvent]) -> None:
    rows = [
        (e.at.isoformat(timespec="milliseconds"), e.event, e.attempt, e.worker, " ".join(e.message.split()))
        for e in events
    ]
    print_table(("TIME", "EVENT", "ATTEMPT", "WORKER", "NOTE"), rows, right=("ATTEMPT",))


def _print_jobs(jobs: Sequence[JobInfo]) -> None:
    now = datetime.now(UTC)
    titles = ("ID", "STATE", "KIND", "MODEL", "QUEUE", "TRY", "AGE", "TOOK")
    print_table(titles, [_row(job, now) for job in jobs], right=("TRY", "AGE", "TOOK"))


def _row(job: JobInfo, now: datetime) -> tuple[Any, ...]:
    attempts = f"{job.attempt}/{job.max_attempts}"
    took = age(job.started_at, job.finished_at or now)
    return (
        job.id,
        _state(job),
        job.kind,
        job.ref,
        job.queue,
        attempts,
        age(job.created_at, now),
        took,
    )


def _state(job: JobInfo) -> str:
    stopping = job.state is JobState.RUNNING and job.cancel_requested_at is not None
    return "cancel requested" if stopping else job.state


def _show(job: JobInfo, batch: BatchProgress | None = None) -> None:
    (error, of_error), (note, of_note) = _head(_reason(job)), _head(job.progress.message)
    message = f" ({note})" if note else ""
    fields: dict[str, Any] = {
        "id": job.id,
        "kind": job.kind,
        "state": job.state,
        "error": error or None,
        "model": job.ref,
        "queue": job.queue,
        "priority": job.priority,
        "attempt": f"{job.attempt} of {job.max_attempts}",
        "progress": f"{job.progress.done} of {job.progress.total}{message}",
        "worker": job.worker,
        "submitted": f"{moment(job.created_at)} ({age(job.created_at)} ago)",
        "started": moment(job.started_at),
        "finished": moment(job.finished_at),
        "cancel requested": moment(job.cancel_requested_at),
        "not before": moment(job.not_before),
        "took": age(job.started_at, job.finished_at) if job.finished_at else None,
        "deadline": moment(job.deadline_at),
        "parent": job.parent_id,
        "metadata": pairs_text(job.metadata),
    }
    if batch is not None:
        fields = {k: v for k, v in fields.items() if k != "progress"} | progress_fields(batch)
    print_fields(fields)
    for line in of_error or of_note:
        write(f"  {one_line(line)}")


def _head(text: str) -> tuple[str, list[str]]:
    """A text for its field, and the lines to print below all fields: those of a long one, such as a dead child's last."""
    first, *rest = text.splitlines() or [""]
    return (first, rest) if len(rest) > LINES_IN_FIELD else (text, [])
