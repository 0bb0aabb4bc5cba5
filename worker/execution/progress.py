"""How far a long job is: shown about once a second, which is when it is seen whether a user has asked to cancel it."""

from __future__ import annotations

import time
from functools import partial

from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.training.store import TrainingStore
from forebay.worker.execution.attempts import Attempts, Canceled

SHOW_EVERY_S = 1.0


class JobProgress:
    """The progress of one job. Raises what `Attempts.run` takes for a stop: Stopping, Canceled, LeaseLost."""

    def __init__(self, ledger: Ledger, job: ClaimedJob, attempts: Attempts) -> None:
        self._store, self._job, self._attempts = TrainingStore(ledger), job, attempts
        self._shown_at = 0.0

    def check(self, done: int, total: int, message: str) -> None:
        """Raise when the job must stop; show how far it is now and then."""
        self._attempts.check()
        if time.monotonic() - self._shown_at >= SHOW_EVERY_S:
            self.show(done, total, message)

    def step(self, done: int, total: int, message: str) -> None:
        """Raise when the job must stop; else show which of its few steps begins."""
        self._attempts.check()
        self.show(done, total, message)

    def show(self, done: int, total: int, message: str) -> None:
        """Write it into the ledger; Canceled when a user has asked for that."""
        self._shown_at = time.monotonic()
        advance = partial(self._store.set_progress, self._job, done, total, message)
        if self._attempts.retry_while_unavailable(advance):
            raise Canceled
