"""What happened to a job, line by line, told from its row and from the attempts that its row has forgotten.

Pure: the ledger's records in, lines out. `forebay jobs show --logs` and the job's page show the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from forebay.contract.job import Attempt, JobInfo, JobState

AGAIN = dict.fromkeys(("lost", "released", "postponed"), "queued") | dict.fromkeys(
    ("failed", "canceled", "expired"), "retried"
)


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One line: when, what, in which attempt (None before the first), on which worker, and what there is to say of it."""

    at: datetime
    event: str
    attempt: int | None = None
    worker: str | None = None
    message: str = ""


def history(job: JobInfo, attempts: Iterable[Attempt]) -> list[JobEvent]:
    """The lines of one job, oldest first; attempts are numbered from its first one on, over retries too."""
    past = sorted(attempts, key=lambda attempt: (attempt.attempt, attempt.ended_at))
    events = [JobEvent(job.created_at, "queued", message=f"{job.ref} on queue {job.queue}")]
    for attempt in past:
        events += _past(attempt)
    last = max((attempt.attempt for attempt in past), default=0)
    events += _present(job, max(job.attempt, last + 1) if job.started_at else None)
    return sorted(events, key=lambda event: event.at)  # stable: what has the same time stays in the order of telling


def _past(attempt: Attempt) -> Iterator[JobEvent]:
    number = attempt.attempt or None
    if attempt.started_at is not None:
        yield JobEvent(attempt.started_at, "claimed", number, attempt.worker)
    yield JobEvent(attempt.ended_at, attempt.ended, number, attempt.worker, attempt.reason)
    if attempt.ended in AGAIN:
        yield JobEvent(attempt.ended_at, AGAIN[attempt.ended], message="waits for its next attempt")


def _present(job: JobInfo, number: int | None) -> Iterator[JobEvent]:
    if job.started_at is not None:
        yield JobEvent(job.started_at, "claimed", number, job.worker)
    if job.finished_at is not None:
        why = f"{job.error.type}: {job.error.message}" if job.error and job.state is JobState.FAILED else ""
        yield JobEvent(job.finished_at, job.state, number, job.worker, why)
