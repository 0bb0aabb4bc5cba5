"""A job's history: the events of its life, made from its row and from its earlier attempts.

`forebay jobs show --logs` and the job's page in the dashboard show the same events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from forebay.contract.job import Attempt, AttemptEnd, JobInfo, JobState

_NEXT = dict.fromkeys((AttemptEnd.LOST, AttemptEnd.RELEASED, AttemptEnd.POSTPONED), "queued") | dict.fromkeys(
    (AttemptEnd.FAILED, AttemptEnd.CANCELED, AttemptEnd.EXPIRED), "retried"
)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event: when, what, in which attempt (None outside of one), on which worker, and details."""

    at: datetime
    event: str
    attempt: int | None = None
    worker: str | None = None
    message: str = ""


def history(job: JobInfo, attempts: Iterable[Attempt]) -> list[JobEvent]:
    """A job's events, oldest first. Attempts are numbered from the first one on, across retries."""
    past = sorted(attempts, key=lambda attempt: (attempt.attempt, attempt.ended_at))
    events = [JobEvent(job.created_at, "queued", message=f"{job.ref} on queue {job.queue}")]
    for attempt in past:
        events += _ended_attempt(attempt)
    last = max((attempt.attempt for attempt in past), default=0)
    events += _current_attempt(job, max(job.attempt, last + 1) if job.started_at else None)
    return sorted(events, key=lambda event: event.at)  # stable: events of the same time keep their order


def _ended_attempt(attempt: Attempt) -> Iterator[JobEvent]:
    number = attempt.attempt or None
    if attempt.started_at is not None:
        yield JobEvent(attempt.started_at, "claimed", number, attempt.worker)
    yield JobEvent(attempt.ended_at, attempt.ended, number, attempt.worker, attempt.reason)
    if attempt.ended in _NEXT:
        yield JobEvent(attempt.ended_at, _NEXT[attempt.ended], message="waiting for its next attempt")


def _current_attempt(job: JobInfo, number: int | None) -> Iterator[JobEvent]:
    if job.started_at is not None:
        yield JobEvent(job.started_at, "claimed", number, job.worker)
    if job.finished_at is not None:
        why = f"{job.error.type}: {job.error.message}" if job.error and job.state is JobState.FAILED else ""
        yield JobEvent(job.finished_at, job.state, number, job.worker, why)
