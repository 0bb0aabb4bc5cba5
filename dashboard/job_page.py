"""One job's page: what became of it step by step, what went in and came out, and what an operator may do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from tornado.web import HTTPError

from forebay.contract.errors import JobNotFound
from forebay.contract.job import TRANSITIONS, JobInfo, JobState, Transition
from forebay.dashboard import words
from forebay.dashboard.ledger_view import Ears
from forebay.dashboard.pages import Page
from forebay.dashboard.preview import Line, look_at_input, look_at_result
from forebay.storage.job_views import JobDetails

PREVIEW_BYTES = 65_536  # larger payloads are not read at all
SENT_AGAIN_S = 2.0


@dataclass(frozen=True, slots=True)
class Step:
    """One line of a job's life: when, what, and more about it. `tone` colours it: good, bad, busy or nothing."""

    when: datetime | None
    what: str
    more: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the page shows of a job; previews are None where the payload is too large, elsewhere or not there."""

    details: JobDetails
    input: list[Line] | None
    result: list[Line] | None


class JobPage(Page):
    """`/jobs/ID`."""

    tab = "jobs"

    async def get(self, id: str) -> None:
        """The page, or the part that changes; 404 for a job that is not there."""
        try:
            answer = await self.ledger.ask(("job", id), lambda ears: look(ears, id))
        except JobNotFound as error:
            raise HTTPError(404, "%s", str(error)) from error
        seen = answer.value
        job = seen.details.info if seen else None
        self.show(
            "job", answer, id=id, seen=seen, job=job, steps=list(life(seen.details, self.now())) if seen else [],
            can_cancel=job is not None and may_cancel(job), can_retry=job is not None and may_retry(job.state),
            said=SAID.get(self.get_query_argument("said", ""), ""), now=self.now(),
        )  # fmt: skip


SAID = {
    "job_canceled": "The job was canceled.",
    "job_cancel_requested": "The job's worker was asked to stop; it does so between two batches.",
    "job_retried": "The job was queued again.",
    "job_moved_on": "Nothing was changed: the job had moved on meanwhile.",
}


def may_cancel(job: JobInfo) -> bool:
    """Whether the job waits, or runs and was not asked to stop yet."""
    return job.state in TRANSITIONS[Transition.CANCEL][0] and job.cancel_requested_at is None


def may_retry(state: JobState) -> bool:
    """Whether a job in this state can be queued afresh."""
    return state in TRANSITIONS[Transition.RETRY][0]


def look(ears: Ears, id: str) -> Seen:
    """Read a job and decode the beginnings of its payloads."""
    details = ears.views.details(id, PREVIEW_BYTES)
    into = None if details.input is None else look_at_input(details.input)
    return Seen(details, into, None if details.result is None else look_at_result(details.result))


def life(details: JobDetails, now: datetime) -> Iterator[Step]:
    """What the ledger knows of a job's life, in order. It keeps the last attempt's times and worker, not those before."""
    job = details.info
    yield Step(job.created_at, "Submitted", f"by client {details.client}" if details.client else "")
    before = details.attempts - (1 if job.started_at is not None else 0)
    if before:
        reason = f": {job.progress.message}" if job.progress.message else ""
        yield Step(
            None,
            f"{before} earlier {'attempt' if before == 1 else 'attempts'} ended",
            f"without a result{reason}",
            "bad",
        )
    if (details.sent_at - job.created_at).total_seconds() > SENT_AGAIN_S:
        yield Step(details.sent_at, "Queued again", "by a retry, a freed lease or a lost message")
    if job.started_at is not None:
        waited = words.duration((job.started_at - job.created_at).total_seconds())
        yield Step(
            job.started_at,
            f"Attempt {job.attempt} of {job.max_attempts} began",
            f"on {job.worker}, {waited} after submission",
        )
    if job.cancel_requested_at is not None:
        yield Step(job.cancel_requested_at, "Cancel asked for", "its worker stops between two batches", "bad")
    yield _where_it_stands(details, now)


def _where_it_stands(details: JobDetails, now: datetime) -> Step:
    job = details.info
    if job.state is JobState.QUEUED:
        if job.not_before is not None and job.not_before > now:
            why = f"after an error that may pass: {job.progress.message}" if job.progress.message else ""
            return Step(None, "Waits", f"until {words.moment(job.not_before)} {why}", "busy")
        left = f"; it expires if it has not started by {words.moment(job.deadline_at)}" if job.deadline_at else ""
        return Step(None, "Waits", f"in queue {job.queue} since {_ago(details.sent_at, now)}{left}", "busy")
    if job.state is JobState.RUNNING:
        lease = f"; its lease holds until {words.moment(details.lease_until)}" if details.lease_until else ""
        return Step(None, "Runs", f"since {_ago(job.started_at or job.created_at, now)}{lease}", "busy")
    since = job.started_at or job.created_at
    took = words.duration((job.finished_at - since).total_seconds()) if job.finished_at else words.UNKNOWN
    if job.state is JobState.SUCCEEDED:
        return Step(job.finished_at, "Succeeded", f"after {took}", "good")
    if job.state is JobState.FAILED:
        return Step(job.finished_at, "Failed", f"after {took}", "bad")
    if job.state is JobState.EXPIRED:
        return Step(job.finished_at, "Expired", f"its deadline was {words.moment(job.deadline_at)}", "bad")
    return Step(job.finished_at, "Canceled", "", "bad")


def _ago(when: datetime, now: datetime) -> str:
    return words.duration(max(0.0, (now - when).total_seconds()))
