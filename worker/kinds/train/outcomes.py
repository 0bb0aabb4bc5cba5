"""How an attempt of a training job ends in the ledger, fenced by the attempt, and who is told. Waits out what is away."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import structlog

from forebay.contract.errors import BlobUnavailable, LedgerUnavailable
from forebay.contract.job import JobError
from forebay.storage.jobs.records import ClaimedJob, Ended, Finished, Postponed
from forebay.storage.jobs.store import JobStore
from forebay.storage.training.store import LeaseLost
from forebay.worker.announcer import Announcer
from forebay.worker.execution.backoff import delay_s
from forebay.worker.execution.retrying import retry_while_unavailable

log = structlog.get_logger()

T = TypeVar("T")

AWAY = (LedgerUnavailable, BlobUnavailable)

# What became of a job. LEFT goes back to the queue, by this worker's parent.
SUCCEEDED, FAILED, STOPPED, POSTPONED, DROPPED, LEFT = "succeeded", "failed", "stopped", "postponed", "dropped", "left"


class Outcomes:
    """Ends attempts for one worker. Each method gives what became of the job; LeaseLost when it is another's by now."""

    def __init__(self, jobs: JobStore, announcer: Announcer, worker: str, outage_timeout_s: float) -> None:
        self._jobs, self._announcer, self._worker, self._outage_timeout_s = jobs, announcer, worker, outage_timeout_s

    def end(self, finished: Finished) -> str:
        """As it says."""
        ended = self.retry_while_unavailable(partial(self._jobs.finish, [finished]))
        if not ended:
            raise LeaseLost(finished.id)
        self.announce(ended)
        return STOPPED if finished.ending is not None else FAILED if finished.error is not None else SUCCEEDED

    def fail(self, job: ClaimedJob, type_: str, message: str) -> str:
        """With this error, for good."""
        return self.end(Finished(job.id, job.attempt, error=JobError(type_, message)))

    def crashed(self, job: ClaimedJob, evidence: str) -> str:
        """The trainer's end counts as that of any process with a job: again while attempts are left, else WorkerLost."""
        freed, ended = self.retry_while_unavailable(
            partial(self._jobs.crashed, [job.id], self._worker, evidence, attempt=job.attempt)
        )
        self.announce(ended)
        log.error("trainer_lost", job=job.id, attempt=job.attempt, freed=len(freed), failed=len(ended), reason=evidence)
        if not freed and not ended:
            raise LeaseLost(job.id)
        return LEFT if freed else FAILED

    def give_back(self, job: ClaimedJob) -> str:
        """This worker has to stop: to others, uncounted."""
        self.retry_while_unavailable(partial(self._jobs.release, [job.id], self._worker))
        log.info("jobs_released", worker=self._worker, jobs=1)
        return LEFT

    def postpone(self, job: ClaimedJob, reason: str, *, wait_s: float | None = None, counted: bool = False) -> str:
        """It waits, for so long or as its attempts say; at the cost of no attempt unless `counted`."""
        wait = delay_s(job.attempt) if wait_s is None else wait_s
        later = Postponed(job.id, job.attempt, wait, reason, counted=counted)
        queued, canceled = self.retry_while_unavailable(partial(self._jobs.postpone, [later]))
        self.announce(canceled)
        log.warning(
            "jobs_postponed", worker=self._worker, jobs=len(queued), model=job.model, reason=reason, longest_s=round(wait, 1)
        )  # fmt: skip
        if not queued and not canceled:
            raise LeaseLost(job.id)
        return POSTPONED if queued else STOPPED

    def lost(self, job: ClaimedJob) -> str:
        """Another has been given it, or it has ended: nothing of this attempt counts."""
        log.warning("lease_lost", worker=self._worker, jobs=1, first=job.id)
        self.retry_while_unavailable(partial(self._jobs.refused, {job.id: job.attempt}, self._worker))
        return DROPPED

    def announce(self, ended: list[Ended]) -> None:
        """Tell the clients."""
        self._announcer.announce(ended)

    def retry_while_unavailable(self, action: Callable[[], T]) -> T:
        """Hours of work may be in hand: what an action gives once ledger and blob store answer."""
        return retry_while_unavailable(action, self._outage_timeout_s, AWAY)
