"""Following one trainer from its start to its end: what it tells is recorded, and it is ended when it must not go on.

Knows the trainer's process and its events, the record they go to and the ledger's word on the job. What the end means for the
job is worker.training.slot's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.requests.training import DataSummary, Point, Refused, Saved, Trained
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.jobs.store import JobStore
from forebay.worker.kinds.train.launch import Trainer
from forebay.worker.kinds.train.record import Record
from forebay.worker.kinds.train.tail import Tail
from forebay.worker.shared_page import SharedPage

log = structlog.get_logger()

# Why a trainer is ended by its worker: the worker stops, a user asked for it, the job is another's, nothing was heard of it.
STOPPING, CANCELED, LOST, HUNG = "stopping", "canceled", "lost", "hung"
TICK_S = 0.1
LOOK_EVERY_S = 1.0
LINGER_S = 60.0  # from the last event to the end of the process
FROZEN_S = 5.0  # between two ticks: this process was stopped, and the trainer perhaps too


@dataclass(frozen=True, slots=True)
class End:
    """How a trainer ended: with `trained` or `refused`, for a `reason` of its worker's, or else by itself."""

    trained: Trained | None = None
    refused: Refused | None = None
    reason: str | None = None


class Lookout:
    """Whether an attempt must not go on. Asks the ledger once a second, and when the parent has doubts about a lease."""

    def __init__(
        self, page: SharedPage, jobs: JobStore, job: ClaimedJob, worker: str,
        further: Callable[[], str | None] = lambda: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """`further` is asked with the ledger, and may name a reason of its own."""
        self._page, self._jobs, self._job, self._worker = page, jobs, job, worker
        self._further, self._clock = further, clock
        self._looked = clock()
        self._unknown = False

    def reason(self) -> str | None:
        """Why it must end now, if it must."""
        if self._page.stopping:
            return STOPPING
        if self._page.doubted() or self._clock() - self._looked >= LOOK_EVERY_S:
            self._looked = self._clock()
            return self._look()
        return None

    def _look(self) -> str | None:
        job = self._job
        try:
            if self._jobs.attempts([job.id]).get(job.id) != job.attempt:
                return LOST
            if job.id in self._jobs.cancel_requested(self._worker):
                return CANCELED
            reason = self._further()
        except LedgerUnavailable as error:  # the training itself needs no ledger
            if not self._unknown:
                log.warning("cancel_unknown", worker=self._worker, error=str(error))
            self._unknown = True
            return None
        self._unknown = False
        return reason


class Follower:
    """Follows one trainer. `run` it once."""

    def __init__(
        self, trainer: Trainer, tail: Tail, record: Record, lookout: Lookout, *, timeout_s: float, grace_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Without an event for `timeout_s` seconds the trainer counts as hung. It has `grace_s` for its last checkpoint."""
        self._trainer, self._tail, self._record, self._lookout = trainer, tail, record, lookout
        self._timeout_s, self._grace_s, self._clock = timeout_s, grace_s, clock
        self._heard = clock()
        self._trained: Trained | None = None
        self._refused: Refused | None = None

    def run(self) -> End:
        """Until the trainer has ended. LeaseLost when a write finds that the job is another's."""
        reason = None
        while reason is None and self._trainer.status is None and not self._lingers():
            began = self._clock()
            self._hear()
            self._record.tend()
            reason = self._lookout.reason() or self._hung()
            time.sleep(TICK_S)
            if self._clock() - began > FROZEN_S:
                self._heard = self._clock()
        if reason == STOPPING:
            self._wind_up()
        elif self._trainer.status is None:
            self._trainer.kill(self._why(reason))
        self._hear()
        return End(self._trained, self._refused, reason)

    def _hear(self) -> None:
        for event in self._tail.read():
            self._heard = self._clock()
            match event:
                case DataSummary():
                    self._record.found(event)
                case Point():
                    self._record.measured(event)
                case Saved():
                    self._record.checkpoint(event)
                case Trained():
                    self._trained = event
                case Refused():
                    self._refused = event

    def _wind_up(self) -> None:
        """Have it write a checkpoint, which is stored while it ends."""
        self._trainer.stop()
        until = self._clock() + self._grace_s
        while self._trainer.status is None and self._clock() < until:
            self._hear()
            self._record.tend()
            time.sleep(TICK_S)
        if self._trainer.status is None:
            self._trainer.kill(f"no checkpoint within {self._grace_s:g} s of the worker's stop: killed (SIGKILL)")

    def _lingers(self) -> bool:
        """It has told its end, and its process does not end."""
        over = self._trained is not None or self._refused is not None
        return over and self._clock() - self._heard > LINGER_S

    def _hung(self) -> str | None:
        over = self._trained is not None or self._refused is not None
        return HUNG if not over and self._clock() - self._heard > self._timeout_s else None

    def _why(self, reason: str | None) -> str:
        if reason == HUNG:
            return f"nothing heard for train_timeout_s of {self._timeout_s:g} s: killed by its worker (SIGKILL)"
        return f"killed by its worker (SIGKILL): {reason or 'it had told its end and did not end'}"
