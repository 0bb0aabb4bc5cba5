"""Jobs that join others of their version while these generate text: claimed from the ledger, for a busy child gets no messages.

The parent learns of them by the page that it shares with the child, as it does of shards: it renews their leases, and settles
them if the child dies. Their messages, which come later, then find nothing to claim.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.storage.jobs.line import next_of_version
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext

log = structlog.get_logger()

LOOK_EVERY_S = 0.25  # a run that is shorter costs the ledger nothing
AWAY_S = 5.0  # before a ledger that did not answer is asked again: what runs needs it not
AT_ONCE = 16  # the page has as many slots for them, beside large results
MOST, LONGEST_S = 1024, 300.0  # in one run, which then ends, and reports: so many come to a child at once, too


class JoiningJobs:
    """Those that join a run that `first` belongs to.

    Only such join as stand in line before every job of another version or kind in the worker's queues. So once another job waits,
    no more join than were submitted before it, and it gets its turn when these have ended. Thread-safe.
    """  # fmt: skip

    def __init__(
        self, context: ChildContext, attempts: Attempts, first: ClaimedJob, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._jobs, self._settings, self._attempts, self._first = context.jobs, context.settings, attempts, first
        self._queues = context.settings.worker_queues or (first.queue,)
        self._clock = clock
        self._look_at = clock() + LOOK_EVERY_S
        self._until = clock() + LONGEST_S
        self._held: dict[str, ClaimedJob] = {}
        self._lock = threading.Lock()
        self.count = 0

    def claim(self, places: int) -> list[ClaimedJob]:
        """Up to so many jobs that join now. Often none, without a look: call it between any two tokens."""
        now = self._clock()
        free = min(places, AT_ONCE - len(self._held), MOST - self.count)
        if free <= 0 or not self._look_at <= now < self._until or self._attempts.stopping:
            return []
        self._look_at = now + LOOK_EVERY_S
        first, settings = self._first, self._settings
        try:
            ids = next_of_version(self._jobs.ledger, self._queues, first.model, first.version, free)
            claimed = self._jobs.claim(ids, settings.claimant, settings.lease_s, self._queues) if ids else []
        except LedgerUnavailable as error:  # what was claimed after all is free again when its lease lapses
            log.warning("joining_unknown", worker=self._attempts.worker, error=str(error))
            self._look_at = now + AWAY_S
            return []
        for job in claimed:
            self._attempts.hold(job)
        if claimed:
            self._attempts.begin(claimed)
        with self._lock:
            self._held |= {job.id: job for job in claimed}
        self.count += len(claimed)
        return claimed

    def ended(self, ids: Iterable[str]) -> None:
        """Hold these no more, if they are such."""
        with self._lock:
            ended = [self._held.pop(id) for id in ids if id in self._held]
        for job in ended:
            self._attempts.let_go(job)

    def forget(self, ids: Iterable[str]) -> None:
        """These are held as long as their results have to wait for room."""
        with self._lock:
            for id in ids:
                self._held.pop(id, None)

    def let_go_all(self) -> None:
        """The run has ended: of what it has left, the lease lapses."""
        self.ended(list(self._held))
