"""One job's page: what became of it step by step, what went in and came out, and what an operator may do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from tornado.web import HTTPError

from forebay.contract.errors import JobNotFound
from forebay.contract.history import JobEvent, history
from forebay.contract.job import TRANSITIONS, Attempt, JobInfo, JobState, Transition
from forebay.dashboard.pages import formatting as words
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.dashboard.reads.preview import Line, look_at_input, look_at_result
from forebay.storage.jobs.views import JobDetails

PREVIEW_BYTES = 65_536  # larger payloads are not read at all


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
    past: list[Attempt]
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
            "job", answer, id=id, seen=seen, job=job, steps=list(life(seen.details, seen.past, self.now())) if seen else [],
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


def look(ears: ConsumerHealth, id: str) -> Seen:
    """Read a job and decode the beginnings of its payloads."""
    details = ears.views.details(id, PREVIEW_BYTES)
    into = None if details.input is None else look_at_input(details.input)
    return Seen(details, ears.views.past(id), into, None if details.result is None else look_at_result(details.result))


def life(details: JobDetails, past: Sequence[Attempt], now: datetime) -> Iterator[Step]:
    """What happened to a job, in order, and where it stands."""
    job = details.info
    steps = [_step(event, details) for event in history(job, past)]
    if job.cancel_requested_at is not None:
        steps.append(Step(job.cancel_requested_at, "Cancel asked for", "its worker stops between two batches", "bad"))
    yield from sorted(steps, key=lambda step: step.when or now)
    if not job.state.final:
        yield _where_it_stands(details, now)


def _step(event: JobEvent, details: JobDetails) -> Step:
    job = details.info
    attempt = f"Attempt {event.attempt}"
    match event.event:
        case "queued" if event.at == job.created_at and event.attempt is None and not event.message.startswith("waits"):
            return Step(event.at, "Submitted", f"by client {details.client}" if details.client else "")
        case "queued":
            return Step(event.at, "Queued again")
        case "retried":
            return Step(event.at, "Retried", "its attempts start afresh")
        case "claimed":
            waited = _between(job.created_at, event.at)
            return Step(event.at, f"{attempt} began", f"on {event.worker}, {waited} after submission")
        case "lost" | "released" | "postponed" | "refused":
            what = {"released": "was given back", "postponed": "was put off", "refused": "came back too late"}
            return Step(event.at, f"{attempt} {what.get(event.event, 'was lost')}", event.message, "bad")
    took = (
        f"after {_between(job.started_at, event.at)}"
        if job.started_at and event.at == job.finished_at
        else event.message
    )
    return Step(event.at, event.event.capitalize(), took, "good" if event.event == JobState.SUCCEEDED else "bad")


def _where_it_stands(details: JobDetails, now: datetime) -> Step:
    job = details.info
    if job.state is JobState.QUEUED:
        if job.not_before is not None and job.not_before > now:
            why = f"after an error that may pass: {job.progress.message}" if job.progress.message else ""
            return Step(None, "Waits", f"until {words.moment(job.not_before)} {why}", "busy")
        left = f"; it expires if it has not started by {words.moment(job.deadline_at)}" if job.deadline_at else ""
        return Step(None, "Waits", f"in queue {job.queue} for {_ago(details.sent_at, now)}{left}", "busy")
    lease = f"; its lease holds until {words.moment(details.lease_until)}" if details.lease_until else ""
    return Step(None, "Runs", f"for {_ago(job.started_at or job.created_at, now)}{lease}", "busy")


def _between(start: datetime, end: datetime) -> str:
    return words.duration(max(0.0, (end - start).total_seconds()))


def _ago(when: datetime, now: datetime) -> str:
    return words.age((now - when).total_seconds())
