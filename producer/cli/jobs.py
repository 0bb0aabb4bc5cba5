"""`forebay jobs`: looking at jobs, waiting for them, canceling and retrying them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from forebay.contract.errors import ForebayError, IllegalTransition, InvalidInput, ModelNotFound, ResultTimeout
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.producer.cli.commands import command, root
from forebay.producer.cli.options import (
    Connect,
    Id,
    Metadata,
    Timeout,
    argument,
    confirm,
    find_job,
    option,
    pairs,
    since,
    timeout_s,
)
from forebay.producer.cli.output import (
    counts_text,
    exit_status,
    print_error,
    print_fields,
    print_json,
    print_line,
    print_note,
    print_table,
)
from forebay.producer.cli.views.jobs import error_line, job_as_json, print_events, print_job, print_jobs, print_states
from forebay.producer.cli.views.results import (
    Named,
    Output,
    as_it_is,
    check_output,
    raise_unless_succeeded,
    show_one,
    wait_for,
)
from forebay.producer.cli.views.training import print_metrics
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.handles.kinds import TrainingJob

MANY = 1000  # jobs; more are not retried without asking
EXAMPLE_ID = "0190f3c2a1b47c3e9d5f60718293a4b5"

jobs_app = typer.Typer(help="Look at jobs, wait for them, cancel and retry them.", no_args_is_help=True)
root.add_typer(jobs_app, name="jobs")

Ids = Annotated[list[str], argument("ID", "One id or more, or how they begin.")]


@command(
    jobs_app,
    "forebay jobs list --state failed --model digits",
    "forebay jobs list --queue gpu --since 2h",
    "forebay jobs list --metadata run=7 --limit 1000 --json",
    name="list",
)
def list_(
    connect: Connect,
    as_json: bool,
    state: Annotated[list[str] | None, option("STATE", f"{', '.join(JobState)}; may be repeated.")] = None,
    kind: Annotated[str | None, option("KIND", f"{', '.join(JobKind)}.")] = None,
    model: Annotated[str | None, option("MODEL", "name, name/3 or name@alias.")] = None,
    queue: Annotated[str | None, option("QUEUE", "Those of this queue.")] = None,
    worker: Annotated[str | None, option("WORKER", "Those that this worker ran last.")] = None,
    since_: Annotated[str | None, option("TIME", "Submitted since then: 15m ago, or a date.", "--since")] = None,
    metadata: Metadata = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.")] = 100,
    before: Annotated[str | None, option("ID", "Only older jobs than this one: the next page.")] = None,
) -> None:
    """List jobs, newest first."""
    filters = pairs(metadata, "--metadata")
    found = connect().jobs(
        state=state, kind=kind, model=model, queue=queue, worker=worker, since=since(since_), metadata=filters, limit=limit,
        before=before,
    )  # fmt: skip
    if as_json:
        print_json(found)
    elif not found:
        filtered = state or kind or model or queue or worker or since_ or filters or before
        print_note("no job matches these filters" if filtered else "no job was submitted yet")
    else:
        print_jobs(found)
        if len(found) == limit:
            print_note(f"for older ones add --before {found[-1].id}")


@command(jobs_app, f"forebay jobs show {EXAMPLE_ID}", f"forebay jobs show {EXAMPLE_ID} --logs")
def show(
    connect: Connect,
    as_json: bool,
    id: Id,
    logs: Annotated[
        bool, typer.Option("--logs", help="What happened to it, line by line: who claimed it, what was lost and why.")
    ] = False,
) -> None:
    """Show one job: its state, times, attempts and error, or with --logs the history of all its attempts."""
    job = find_job(connect(), id)
    if logs:
        events = job.history()
        print_json(events) if as_json else print_events(events)
    elif as_json:
        print_json(job_as_json(job))
    else:
        print_job(job)


@command(
    jobs_app,
    f"forebay jobs wait {EXAMPLE_ID} --timeout 5m",
    "forebay predict digits --file rows.jsonl --no-wait | xargs forebay jobs wait",
)
def wait(connect: Connect, as_json: bool, ids: Ids, timeout: Timeout = None) -> None:
    """Wait until jobs have ended. Exit status 0 when all have succeeded, else 1."""
    wait_s, client = timeout_s(timeout), connect()
    jobs = _find(client, ids)
    wait_for(client, jobs, wait_s)
    infos = [job.info() for job in jobs]
    if as_json:
        print_json(infos)
    else:
        print_states([(info.id, info.state, error_line(info)) for info in infos])
    raise_unless_succeeded([info.state for info in infos], jobs)


@command(
    jobs_app,
    f"forebay jobs cancel {EXAMPLE_ID}",
    f"forebay jobs cancel {EXAMPLE_ID} --wait",
    "forebay jobs list --state queued --json | jq -r '.[].id' | xargs forebay jobs cancel",
)
def cancel(
    connect: Connect,
    as_json: bool,
    ids: Ids,
    wait_: Annotated[bool, typer.Option("--wait", help="Come back when all have ended.")] = False,
) -> None:
    """Cancel jobs, and say of each what came of it.

    A job that waits is canceled at once, and so is a batch, whose running shards are asked to stop. Any other job that runs is
    asked to stop, which it does between two batches. Exit status 1 when a job had ended before, or with --wait when it ended
    otherwise.
    """
    client = connect()
    jobs = _find(client, ids)
    states = [(job.id, job.cancel()) for job in jobs]
    if wait_:
        wait_for(client, jobs, None)
        states = [(job.id, job.state) for job in jobs]
    if as_json:
        print_json([{"id": id, "state": s, "cancel_requested": s is JobState.RUNNING} for id, s in states])
    else:
        words = {JobState.RUNNING: "cancel requested", JobState.CANCELED: JobState.CANCELED}
        print_table(("ID", "CANCEL"), [(id, words.get(state, f"it had {state}")) for id, state in states])
    if any(state not in (JobState.CANCELED, JobState.RUNNING) for _, state in states):
        raise typer.Exit(1)


@command(
    jobs_app,
    f"forebay jobs retry {EXAMPLE_ID}",
    "forebay jobs retry --failed --dry-run",
    "forebay jobs retry --failed --model digits@champion --yes",
)
def retry(
    connect: Connect,
    as_json: bool,
    ids: Annotated[list[str] | None, argument("ID", "Ids, or how they begin.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed and expired job, instead of ids.")] = False,
    model: Annotated[str | None, option("MODEL", "With --failed: only of name, name/3 or name@alias.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --failed: only say how many there are.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help=f"Do not ask before retrying more than {MANY:,}.")] = False,
) -> None:
    """Queue failed, canceled or expired jobs again, under the same ids.

    A training job goes on from its last checkpoint, if it has one. --failed takes all that failed or expired, however many, and
    leaves succeeded and canceled ones alone.
    """
    if failed == bool(ids):
        raise InvalidInput("give the ids of the jobs to retry, or --failed for all that have failed or expired")
    if not failed and (model is not None or dry_run):
        raise InvalidInput("--model and --dry-run go with --failed")
    if failed:
        _retry_failed(connect(), model, dry_run=dry_run, yes=yes, as_json=as_json)
        return
    jobs = _find(connect(), ids or ())
    refusals = [error for job in jobs if (error := _retry(job)) is not None]
    states = [(job.id, job.info().state) for job in jobs]
    if as_json:
        print_json([{"id": id, "state": state} for id, state in states])
    else:
        print_states([(id, state, "") for id, state in states])
    if refusals:
        raise typer.Exit(exit_status(refusals[0]))


def _namer(client: Client, info: JobInfo) -> Named:
    if info.kind is not JobKind.PREDICT:
        return as_it_is
    try:
        return client.models.get(info.ref).signature.by_class
    except ModelNotFound:  # deleted since
        return as_it_is


@command(jobs_app, f"forebay jobs result {EXAMPLE_ID} -o scores.npy")
def result(
    connect: Connect,
    as_json: bool,
    id: Id,
    output: Output = None,
    timeout: Annotated[str | None, option("TIME", "Wait so long for it: 30, 45s, 5m.", default="no wait")] = None,
) -> None:
    """Print a job's result, or save it."""
    check_output(output)
    wait_s, client = timeout_s(timeout), connect()
    job = find_job(client, id)
    if wait_s is not None:
        wait_for(client, [job], wait_s)
    elif not job.done():
        raise ResultTimeout(f"job {id} is {job.state} and has no result yet; wait for it with --timeout 60")
    show_one(job, output, as_json, _namer(client, job.info()))


@command(jobs_app, f"forebay jobs metrics {EXAMPLE_ID}", f"forebay jobs metrics {EXAMPLE_ID} --csv > curve.csv")
def metrics(
    connect: Connect, as_json: bool, id: Id, as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False
) -> None:
    """Print what a training job measured, step by step: on the training rows, and on the validation rows."""
    if as_csv and as_json:
        raise InvalidInput("--csv and --json are two forms of the same; give one of them")
    job = find_job(connect(), id)
    if not isinstance(job, TrainingJob):
        raise InvalidInput(f"job {id} is a {job.info().kind} job; only training jobs have metrics")
    rows = job.metrics()
    print_json(rows) if as_json else print_metrics(rows, as_csv=as_csv)


@command(jobs_app, f"forebay jobs audit {EXAMPLE_ID}")
def audit(connect: Connect, as_json: bool, id: Id) -> None:
    """Count a batch's rows in its input, the ledger, its manifest and its files. Exit status 1 when they do not agree."""
    from forebay.producer.requests.audit import audit as audit_batch

    client = connect()
    findings = audit_batch(client.session, find_job(client, id).id)
    if as_json:
        print_json(findings)
    else:
        shown = {name: counts_text(value) if isinstance(value, dict) else value for name, value in findings.items()}
        print_fields({name: value for name, value in shown.items() if name != "faults"})
        for fault in findings["faults"]:
            print_note(fault)
    if findings["faults"]:
        raise typer.Exit(1)


def _find(client: Client, ids: Sequence[str]) -> list[Job]:
    """The handles, each job once; JobNotFound before anything is done when one does not exist."""
    return list({job.id: job for job in (find_job(client, id) for id in ids)}.values())


def _retry(job: Job) -> ForebayError | None:
    try:
        job.retry()
    except IllegalTransition as error:
        refusal = IllegalTransition(f"job {job.id}: {error}")
        print_error(refusal)
        return refusal
    return None


def _retry_failed(client: Client, model: str | None, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    count = client.retry_failed(model, dry_run=True)
    question = f"Queue {count:,} failed or expired jobs again?"
    if not confirm(question, f"{count:,} jobs would run again", yes=dry_run or yes or count <= MANY):
        print_note("nothing was queued")
        raise typer.Exit(1)
    if not dry_run:
        count = client.retry_failed(model)
    if as_json:
        print_json({"jobs": count, "model": model, "dry_run": dry_run})
    else:
        what = f"{count:,} failed or expired job{'' if count == 1 else 's'}" + (f" of {model}" if model else "")
        print_line(f"would queue {what} again" if dry_run else f"queued {what} again")
