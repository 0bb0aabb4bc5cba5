"""What may happen to the jobs that a child has claimed: they succeed, fail, are postponed, stopped, released, or found lost.

Every write is fenced by the attempt that the claim gave, so the ledger is right whenever this process may die. A write waits
while the ledger is away, and what became of the job is counted, logged and told to its client.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import structlog

from forebay.contract.errors import BlobUnavailable, ForebayError, LedgerUnavailable
from forebay.contract.job import JobError, JobKind, Transition
from forebay.contract.settings import Settings
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import ClaimedJob, Ended, Finished, LeaseLost, Postponed
from forebay.storage.jobs.store import JobStore
from forebay.worker.announcer import Announcer
from forebay.worker.execution.backoff import delay_s, may_pass
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.retrying import retry_while_unavailable
from forebay.worker.execution.summary import FINAL_FATES, Fate, Summary
from forebay.worker.shared_page import SharedPage

log = structlog.get_logger()

TRAINING = (JobKind.TRAIN, JobKind.NODE)  # have series of their own; a machine that helps a run is not counted

T = TypeVar("T")


class Stopping(Exception):
    """This process has to stop: `Attempts.run` releases the job."""


class Canceled(Exception):
    """A user has asked for the job's cancel: `Attempts.run` ends it so."""


class Attempts:
    """Claims jobs for one child and brings each attempt to its end. Thread-safe."""

    def __init__(
        self, jobs: JobStore, announcer: Announcer, page: SharedPage, metrics: ChildMetrics, settings: Settings
    ) -> None:
        self.worker, self.claimant = settings.worker_name, settings.claimant
        self.lease_s = settings.lease_s
        self._jobs = jobs
        self._announcer = announcer
        self._page = page
        self._metrics = metrics
        self._queues = settings.worker_queues or None
        self._outage_timeout_s = settings.outage_timeout_s
        self._claimed_at = 0.0
        self._summary = Summary()
        self._lock = threading.Lock()

    def claim(self, ids: Sequence[str]) -> list[ClaimedJob]:
        """Those of the jobs that could be claimed; the others are nothing to this worker."""
        claimed = self.retry_while_unavailable(
            partial(self._jobs.claim, ids, self.claimant, self.lease_s, self._queues)
        )
        self._claimed_at = time.perf_counter()
        self.add(Summary(unclaimed=len(ids) - len(claimed)))
        return claimed

    @property
    def stopping(self) -> bool:
        return self._page.stopping

    def check(self) -> None:
        """Raise Stopping when this process has to stop."""
        if self._page.stopping:
            raise Stopping

    def take_summary(self) -> Summary:
        """What became of the jobs claimed since this was last called."""
        with self._lock:
            summary, self._summary = self._summary, Summary()
        return summary

    def add(self, summary: Summary) -> None:
        """Count something that no method here knows of."""
        with self._lock:
            self._summary += summary

    def hold(self, job: ClaimedJob) -> None:
        """The parent is to know that this process holds the job, which it has claimed itself."""
        self._page.hold(job.id, job.attempt)

    def let_go(self, job: ClaimedJob) -> None:
        """It no longer holds this job."""
        self._page.let_go(job.id, job.attempt)

    # One job.

    def run(self, job: ClaimedJob, work: Callable[[], Fate], *, count_errors: bool = True) -> Fate:
        """One attempt of one job. `work` ends it and gives what became of it, or raises.

        An error that may pass costs an attempt unless not `count_errors`; any other fails the job. LedgerUnavailable is raised
        on: nothing can be written then, and the lease lapses.
        """
        started = time.perf_counter()
        if job.kind not in TRAINING:
            self.begin([job])
        try:
            fate = work()
        except LeaseLost:
            fate = self.lost(job)
        except Stopping:
            fate = self.release(job)
        except Canceled:
            fate = self.cancel(job)
        except LedgerUnavailable:
            raise
        except Exception as error:
            if not isinstance(error, ForebayError) and not may_pass(error):
                log.exception("attempt_failed", job=job.id, attempt=job.attempt)
            stopped = self.stopping and may_pass(error)  # nobody can wait here until it has passed
            fate = self.release(job) if stopped else self.end_with_error(job, error, counted=count_errors)
        seconds = time.perf_counter() - started
        if job.kind not in TRAINING:
            self.count(job, fate, seconds)
        else:
            self.add(Summary.of({job.id: fate}))
            if job.kind is JobKind.TRAIN:
                self._metrics.trained(job.model, fate, seconds)
        log.info(
            "attempt_done", job=job.id, kind=str(job.kind), model=job.model, version=job.version, queue=job.queue,
            worker=self.worker, attempt=job.attempt, state=str(fate), seconds=round(seconds, 3),
        )  # fmt: skip
        return fate

    def succeed(self, job: ClaimedJob, result: bytes | None = None, ref: str | None = None) -> Fate:
        return self._end(Finished(job.id, job.attempt, result, ref))

    def succeeded(self, ended: Sequence[Ended]) -> Fate:
        """The job's own store has written its success: tell its client."""
        self._announcer.announce(ended)
        return Fate.SUCCEEDED

    def fail(self, job: ClaimedJob, type_: str, message: str) -> Fate:
        return self._end(Finished(job.id, job.attempt, error=JobError(type_, message)))

    def end_with_error(self, job: ClaimedJob, error: Exception, *, counted: bool = True) -> Fate:
        """Postpone the job if the error may pass and an attempt is left, or none was used up; else fail it."""
        return self._end(outcome_of_error(job, error, passing=may_pass(error), counted=counted))

    def cancel(self, job: ClaimedJob) -> Fate:
        """Its work has stopped, as a user asked."""
        return self._end(Finished(job.id, job.attempt, ending=Transition.CANCEL))

    def postpone(self, job: ClaimedJob, reason: str, *, wait_s: float | None = None, counted: bool = False) -> Fate:
        """Queue it for later: in `wait_s` seconds, by default longer with each attempt."""
        wait = delay_s(job.tries if counted else job.attempt) if wait_s is None else wait_s
        return self._end(Postponed(job.id, job.attempt, wait, reason, counted=counted))

    def release(self, job: ClaimedJob) -> Fate:
        """This process has to stop: the job goes back to its queue, its attempt uncounted."""
        return self._release([job])[job.id]

    def crashed(self, job: ClaimedJob, evidence: str, send: Callable[[list[RoutedJob]], None] = lambda _: None) -> Fate:
        """The job has ended its process or taken its memory: queued again while attempts are left, else failed as WorkerLost.

        `send` is given what waits again; else a sweep sends it.
        """
        freed, ended = self.retry_while_unavailable(
            partial(self._jobs.free_crashed, [job.id], self.claimant, evidence, attempt=job.attempt)
        )
        self._announcer.announce(ended)
        send(freed)
        log.error("attempt_lost", job=job.id, attempt=job.attempt, freed=len(freed), failed=len(ended), reason=evidence)
        return Fate.RELEASED if freed else Fate.FAILED if ended else self.lost(job)

    def lost(self, job: ClaimedJob) -> Fate:
        """Another worker has been given the job, or it has ended: nothing of this attempt counts."""
        self._refused({job.id: job.attempt})
        return Fate.LOST

    def count(self, job: ClaimedJob, fate: Fate, seconds: float) -> None:
        """Count what became of a job that ran for so long. `run` does it."""
        self._count(job, Summary.of({job.id: fate}), seconds)

    # Many jobs of one model version.

    def begin(self, jobs: Sequence[ClaimedJob]) -> None:
        """Count how long jobs have waited that are now to be run for the first time."""
        self._metrics.waited(_key(jobs[0]), [job.waited_s for job in jobs if job.attempt == 1])

    def finish(self, of: ClaimedJob, outcomes: Sequence[Finished | Postponed], seconds: float | None = None) -> Summary:
        """Write how attempts ended, in one commit; what became of them, counted. `of` is one of the jobs.

        They ran for so many seconds, by default since the last claim.
        """
        summary = Summary.of(self._write(outcomes))
        self._count(of, summary, time.perf_counter() - self._claimed_at if seconds is None else seconds)
        return summary

    def release_all(self, jobs: Sequence[ClaimedJob]) -> None:
        """This process has to stop: what it has not run goes back, and is counted."""
        if jobs:
            self.add(Summary.of(self._release(jobs)))

    def find_lost(self, jobs: Iterable[ClaimedJob], *, ask: bool = False) -> set[str]:
        """The ids of those that have been given to others. Asks the ledger only after some lease was not renewed, or to `ask`."""
        if not ask and not self._page.doubted():
            return set()
        attempts = {job.id: job.attempt for job in jobs}
        held = self.retry_while_unavailable(partial(self._jobs.queries.attempts, list(attempts)))
        lost = {id for id, attempt in attempts.items() if held.get(id) != attempt}
        if lost:
            log.warning("lease_lost", worker=self.worker, jobs=len(lost), first=min(lost), dropped="unrun")
        return lost

    def cancel_requested(self) -> set[str]:
        """The ids of this worker's running jobs that a user has asked to cancel. LedgerUnavailable when nobody can tell."""
        return self._jobs.queries.cancel_requested(self.claimant)

    def now(self) -> float:
        return self._jobs.ledger.now()

    # All of them.

    def retry_while_unavailable(self, action: Callable[[], T]) -> T:
        """What the action gives once ledger and blob store answer: minutes or hours of work may be in hand.

        Of a blob store it raises the error at once where this process has to stop: the job can be given back.
        """

        def gives_way(error: Exception) -> bool:
            return self.stopping and isinstance(error, BlobUnavailable)

        return retry_while_unavailable(action, self._outage_timeout_s, (LedgerUnavailable, BlobUnavailable), gives_way)

    def _release(self, jobs: Sequence[ClaimedJob]) -> dict[str, Fate]:
        attempts = {job.id: job.attempt for job in jobs}
        ids = list(attempts)
        self.retry_while_unavailable(partial(self._jobs.release, ids, self.claimant, attempts))
        log.info("jobs_released", worker=self.worker, jobs=len(ids))
        return dict.fromkeys(ids, Fate.RELEASED)

    def _end(self, outcome: Finished | Postponed) -> Fate:
        return self._write([outcome])[outcome.id]

    def _write(self, outcomes: Sequence[Finished | Postponed]) -> dict[str, Fate]:
        finished = [o for o in outcomes if isinstance(o, Finished)]
        later = [o for o in outcomes if isinstance(o, Postponed)]
        ended = self.retry_while_unavailable(partial(self._jobs.finish, finished)) if finished else []
        queued, canceled = self.retry_while_unavailable(partial(self._jobs.postpone, later)) if later else ([], [])
        self._announcer.announce([*ended, *canceled])
        if later:
            log.warning(
                "jobs_postponed", worker=self.worker, jobs=len(queued), reason=later[0].reason,
                longest_s=round(max(o.delay_s for o in later), 1),
            )  # fmt: skip
        fates = dict.fromkeys((o.id for o in outcomes), Fate.LOST)
        how = {o.id: _fate_of(o) for o in finished}
        fates |= {job.id: how[job.id] for job in ended}
        fates |= dict.fromkeys(queued, Fate.POSTPONED) | {job.id: Fate.STOPPED for job in canceled}
        self._refused({o.id: o.attempt for o in outcomes if fates[o.id] is Fate.LOST})
        return fates

    def _refused(self, lost: Mapping[str, int]) -> None:
        if lost:
            log.warning("lease_lost", worker=self.worker, jobs=len(lost), first=next(iter(lost)))
            self.retry_while_unavailable(partial(self._jobs.keep_refused, lost, self.claimant))

    def _count(self, of: ClaimedJob, summary: Summary, seconds: float) -> None:
        self.add(summary)
        counts = {str(fate): getattr(summary, fate) for fate in FINAL_FATES}
        self._metrics.ended(
            _key(of), counts, seconds, postponed=summary.postponed, refused=summary.lost
        )  # fmt: skip


def _key(job: ClaimedJob) -> tuple[str, int, str]:
    return job.model, job.version, job.kind.value


def outcome_of_error(job: ClaimedJob, error: Exception, *, passing: bool, counted: bool = True) -> Finished | Postponed:
    """How an attempt ends that met an error. One that is `passing` is tried again while attempts are left; not `counted`, it
    costs none of them.
    """  # fmt: skip
    counted = counted and getattr(error, "counted", True)
    if passing and (not counted or job.tries < job.max_attempts):
        wait = max(delay_s(job.tries if counted else job.attempt), getattr(error, "wait_s", 0.0))
        return Postponed(job.id, job.attempt, wait, f"{type(error).__name__}: {error}", counted=counted)
    return Finished(job.id, job.attempt, error=JobError(type(error).__name__, str(error) or repr(error)))


def _fate_of(finished: Finished) -> Fate:
    if finished.error is not None:
        return Fate.FAILED
    return Fate.SUCCEEDED if finished.ending is None else Fate.STOPPED
