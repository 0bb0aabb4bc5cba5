"""One job's page: its timeline, its input and result, and what an operator may do. Batches and runs build on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from forebay.contract.errors import JobNotFound
from forebay.contract.history import JobEvent, history
from forebay.contract.job import TRANSITIONS, Attempt, JobInfo, JobKind, JobState, Transition
from forebay.dashboard.pages import formatting as fmt
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.explanation import ExplainedRow, payload_of, preview_explanation
from forebay.dashboard.reads.ledger import LedgerQueries, Snapshot
from forebay.dashboard.reads.preview import (
    PreviewLine,
    Turn,
    preview_input,
    preview_prompts,
    preview_result,
    preview_texts,
)
from forebay.storage.jobs.views import JobDetails

PREVIEW_BYTES = 65_536  # larger payloads are not read at all
NOTICES = {
    "job_canceled": "The job was canceled.",
    "job_cancel_requested": "The job's worker was asked to stop; it does so between two batches.",
    "job_retried": "The job was queued again.",
    "job_unchanged": "Nothing was changed: the job's state had changed in the meantime.",
}


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One line of a job's timeline: when, what, and more about it. `tone` colours it: good, bad, busy or nothing."""

    when: datetime | None
    what: str
    more: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class JobPageData:
    """What the page shows of a job; previews are None where the payload is too large, in the blob store or missing. `prompts` and
    `texts` are there when it generates text, `explained` when it explains rows.
    """  # fmt: skip

    details: JobDetails
    attempts: list[Attempt]
    input: list[PreviewLine] | None
    result: list[PreviewLine] | None
    planning: bool
    prompts: list[Turn]
    texts: list[Turn]
    explained: list[ExplainedRow]


class JobPageBase(Page):
    """What the pages of a job, of a batch and of a training run share: its state, and the buttons of operators."""

    poll_s = 2

    def show_job(self, snapshot: Snapshot[Any], id: str, **values: Any) -> None:
        """`snapshot` holds a record with the job's `details`."""
        data = snapshot.value
        job = data.details.info if data else None
        self.show(
            snapshot, title=f"{self.heading} {fmt.short_id(id)}", about=id, id=id, data=data, job=job, now=self.now(),
            can_cancel=job is not None and can_cancel(job), can_retry=job is not None and can_retry(job),
            notice=NOTICES.get(self.get_query_argument("notice", ""), ""), **values,
        )  # fmt: skip


class JobPage(JobPageBase):
    """`/jobs/ID`."""

    tab, template, heading = "jobs", "job", "Job"

    async def get(self, id: str) -> None:
        snapshot = await self.or_404(self.ledger.read(("job", id), lambda queries: read_job(queries, id)))
        data = snapshot.value
        self.show_job(snapshot, id, timeline=list(timeline(data.details, data.attempts, self.now())) if data else [])


def can_cancel(job: JobInfo) -> bool:
    """Whether the job waits, or runs and was not asked to stop yet."""
    return job.state in TRANSITIONS[Transition.CANCEL][0] and job.cancel_requested_at is None


def can_retry(job: JobInfo) -> bool:
    return job.state in TRANSITIONS[Transition.RETRY][0]


def read_job(queries: LedgerQueries, id: str) -> JobPageData:
    """A job with previews of its payloads."""
    details = queries.jobs.details(id, PREVIEW_BYTES)
    prompts = preview_prompts(details.input) if details.input and details.info.kind is JobKind.PREDICT else []
    return JobPageData(
        details,
        queries.store.queries.past_attempts(id),
        None if details.input is None else preview_input(details.input, details.info.kind),
        None if details.result is None else preview_result(details.result),
        bool(queries.batches.planning([details.info])),
        prompts,
        preview_texts(details.result) if prompts and details.result else [],
        _explained(queries, details) if details.info.kind is JobKind.EXPLAIN else [],
    )


def _explained(queries: LedgerQueries, details: JobDetails) -> list[ExplainedRow]:
    places = ((details.input, details.input_ref), (details.result, details.result_ref))
    input, result = (payload_of(lambda: queries.blobs, *place) for place in places)
    return preview_explanation(input, result) if input and result else []


def read_details(queries: LedgerQueries, id: str, kind: JobKind) -> JobDetails:
    """A job of one kind; JobNotFound when there is no such job, or it is of another kind."""
    details = queries.jobs.details(id, PREVIEW_BYTES)
    if details.info.kind is not kind:
        raise JobNotFound(f"job {id} is a {details.info.kind} job, not a {kind} job: see its page among the jobs")
    return details


def timeline(details: JobDetails, attempts: Sequence[Attempt], now: datetime) -> Iterator[TimelineEntry]:
    """What happened to a job, in order, and its state now."""
    job = details.info
    events = history(job, attempts)
    submitted = next(event for event in events if event.event == "queued")
    entries = [_submitted(event, details) if event is submitted else _entry(event, details) for event in events]
    if job.cancel_requested_at is not None:
        entries.append(
            TimelineEntry(job.cancel_requested_at, "Cancel requested", "its worker stops between two batches", "bad")
        )
    yield from sorted(entries, key=lambda entry: entry.when or now)
    if not job.state.final:
        yield _current(details, now)


def _submitted(event: JobEvent, details: JobDetails) -> TimelineEntry:
    return TimelineEntry(event.at, "Submitted", f"by client {details.client}" if details.client else "")


def _entry(event: JobEvent, details: JobDetails) -> TimelineEntry:
    job = details.info
    attempt = f"Attempt {event.attempt}"
    match event.event:
        case "queued":
            return TimelineEntry(event.at, "Queued again")
        case "retried":
            return TimelineEntry(event.at, "Retried", "attempts are counted from zero again")
        case "claimed":
            waited = _between(job.created_at, event.at)
            return TimelineEntry(event.at, f"{attempt} started", f"on {event.worker}, {waited} after submission")
        case "lost" | "released" | "postponed" | "refused":
            what = {"released": "was released", "postponed": "was postponed", "refused": "finished too late"}
            return TimelineEntry(event.at, f"{attempt} {what.get(event.event, 'was lost')}", event.message, "bad")
    ended = job.started_at is not None and event.at == job.finished_at
    took = f"after {_between(job.started_at, event.at)}" if ended and job.started_at else event.message
    return TimelineEntry(
        event.at, event.event.capitalize(), took, "good" if event.event == JobState.SUCCEEDED else "bad"
    )


def _current(details: JobDetails, now: datetime) -> TimelineEntry:
    job = details.info
    if job.state is JobState.QUEUED:
        if job.not_before is not None and job.not_before > now:
            why = f"after a temporary error: {job.progress.message}" if job.progress.message else ""
            return TimelineEntry(None, "Waiting", f"until {fmt.timestamp(job.not_before)} {why}", "busy")
        limit = f"; it expires if it has not started by {fmt.timestamp(job.deadline_at)}" if job.deadline_at else ""
        return TimelineEntry(None, "Waiting", f"in queue {job.queue} for {_ago(details.sent_at, now)}{limit}", "busy")
    lease = f"; its lease holds until {fmt.timestamp(details.lease_until)}" if details.lease_until else ""
    return TimelineEntry(None, "Running", f"for {_ago(job.started_at or job.created_at, now)}{lease}", "busy")


def _between(start: datetime, end: datetime) -> str:
    return fmt.duration(max(0.0, (end - start).total_seconds()))


def _ago(when: datetime, now: datetime) -> str:
    return fmt.age((now - when).total_seconds())
