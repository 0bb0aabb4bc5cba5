"""Which of the jobs that a child has claimed must not go on: a user asked to cancel them, or their deadline came first.

Asked between batches. It reads the ledger at most twice a second, and never while nothing runs; a claim gives no job whose
cancel was asked for, so a hand-over that is done within half a second costs no read at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from math import inf

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.job import Transition
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.jobs.store import JobStore
from forebay.worker.execution.work import Work

log = structlog.get_logger()

LOOK_EVERY_S = 0.5


class Stops:
    """What is to stop in one child, one hand-over at a time."""

    def __init__(self, store: JobStore, worker: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._looked = clock()
        self._requested: set[str] = set()
        self._first_deadline = inf

    def claimed(self, jobs: Sequence[ClaimedJob]) -> None:
        """These were claimed just now."""
        self._looked, self._requested = self._clock(), set()
        self._first_deadline = min((job.deadline_at for job in jobs if job.deadline_at is not None), default=inf)

    def among(self, works: Iterable[Work]) -> list[Work]:
        """Those that must not go on. A deadline is about the start: a job with a row that has run is past it."""
        self._look()
        late = self._first_deadline < inf and self._store.ledger.now() >= self._first_deadline
        if not self._requested and not late:
            return []
        return [work for work in works if work.missing and work.ending is None and self._why(work) is not None]

    def stop(self, works: Iterable[Work]) -> list[Work]:
        """The same, each told how it ends."""
        stopped = self.among(works)
        for work in stopped:
            work.ending, work.missing = self._why(work), 0  # nothing of it is to be run any more
        return stopped

    def _why(self, work: Work) -> Transition | None:
        if work.job.id in self._requested:
            return Transition.CANCEL
        deadline = work.job.deadline_at
        late = deadline is not None and not work.begun and self._store.ledger.now() >= deadline
        return Transition.EXPIRE if late else None

    def _look(self) -> None:
        if self._clock() - self._looked < LOOK_EVERY_S:
            return
        self._looked = self._clock()
        try:
            self._requested = self._store.cancel_requested(self._worker)
        except LedgerUnavailable as error:  # the work itself needs no ledger
            log.warning("cancel_unknown", worker=self._worker, error=str(error))
