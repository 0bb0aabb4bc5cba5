"""The sweeper: a pass over the ledger that brings back what was lost. Every worker runs it; many at once are safe.

It frees lapsed leases, ends jobs past their deadline, sends what has waited out a transient error and what Redis lost, and
deletes what retention allows. Each step is one statement that picks its rows so that two sweepers never take the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import redis
import structlog

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.settings import Settings
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob, redis_keys
from forebay.storage.files import FileStore
from forebay.storage.jobs.parents import ParentJobs
from forebay.storage.jobs.store import JobStore
from forebay.worker.announcer import Announcer

log = structlog.get_logger()

LOST_AFTER = 10  # times resend_s: so long a job waits before its message counts as lost though its queue is not empty


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What one pass did, in jobs."""

    freed: int = 0
    failed: int = 0
    expired: int = 0
    due: int = 0  # sent again after a transient error
    resent: int = 0
    deleted: int = 0


class Sweeper:
    """Sweeps one ledger and its queues; its caller decides when."""

    def __init__(
        self, store: JobStore, dispatcher: Dispatcher, announcer: Announcer, broker: redis.Redis, settings: Settings
    ) -> None:
        self._store = store
        self._parents = ParentJobs(store.ledger)
        self._files = FileStore(store.ledger)
        self._dispatcher = dispatcher
        self._announcer = announcer
        self._redis = broker
        self._settings = settings

    def sweep(self, *, free_lapsed: bool = True) -> SweepResult:
        """One pass. LedgerUnavailable when the ledger is away; without Redis, what needs sending waits for a later pass.

        `free_lapsed` is False after an outage of the ledger: the holders of leases have to renew them first.
        """
        freed, failed = self._store.sweeps.free_lapsed() if free_lapsed else ([], [])
        expired = self._store.sweeps.expire()
        self.send(freed)
        self.send(self._parents.requeue_stalled(self._settings.resend_s))
        due = self.send_due()
        resent = self._resend()
        deleted = self._store.sweeps.purge(self._settings.retention_s)
        self._announcer.announce([*failed, *expired])
        self._files.drop_expired()
        self._store.ledger.checkpoint()
        result = SweepResult(len(freed), len(failed), len(expired), due, resent, deleted)
        if any(asdict(result).values()):
            log.info("swept", **asdict(result))
        return result

    def send_due(self) -> int:
        """Send the jobs that have waited long enough after a transient error; how many. Costs a read when there are none."""
        return self.send(self._store.sweeps.take_due())

    def count_crash(self, ids: list[str], worker: str, reason: str, *, suspect: bool = True) -> None:
        """A child died with these: those it had claimed count an attempt, and all that are still queued are sent again.

        They run alone from then on if they are `suspect`: what one of them did may have been the cause.
        """
        freed, failed = self._store.free_crashed(ids, worker, reason, suspect=suspect)
        log.error("child_lost", worker=worker, jobs=len(ids), freed=len(freed), failed=len(failed), reason=reason)
        self._announcer.announce(failed)
        known = {job.id for job in freed}
        self.send([*freed, *(job for job in self._store.queries.queued(ids) if job.id not in known)])

    def release(self, ids: list[str], worker: str, reason: str) -> None:
        """A child was killed because the worker had to stop: no attempt is counted, and all go to other workers."""
        self._store.release(ids, worker)
        log.error("child_lost", worker=worker, jobs=len(ids), freed=len(ids), failed=0, reason=reason)
        self.send_queued(ids)

    def give_back(self, attempts: Mapping[str, int], worker: str) -> None:
        """The worker has stopped and held these: they go to others, uncounted."""
        released = self._store.release(list(attempts), worker, attempts) if attempts else []
        if released:
            log.info("jobs_released", worker=worker, jobs=len(released))
            self.send(released)

    def send_queued(self, ids: list[str]) -> None:
        self.send(self._store.queries.queued(ids))

    def send(self, jobs: list[RoutedJob]) -> int:
        """Send the jobs; when Redis does not take them they are marked so that a later pass sends them."""
        if not jobs:
            return 0
        try:
            self._dispatcher.send_jobs(jobs)
        except BrokerUnavailable as error:
            self._store.mark_unsent([job.id for job in jobs])
            log.warning("send_failed", jobs=len(jobs), error=str(error))
            return 0
        return len(jobs)

    def _resend(self) -> int:
        sent, resend_s = 0, self._settings.resend_s
        for queue in self._store.queries.queues_with_unsent(resend_s):
            empty = self._is_empty(queue)
            if empty:
                sent += self.send(self._store.sweeps.take_unsent(queue, resend_s))
            elif empty is not None:  # other messages are there; a lost one may have left its job behind
                sent += self.send(self._store.sweeps.take_lost(queue, LOST_AFTER * resend_s, resend_s))
        return sent

    def _is_empty(self, queue: str) -> bool | None:
        """Whether Redis holds nothing for this queue: jobs that wait in the ledger have then lost their messages. None: unknown.

        What a busy worker holds in its buffer is sent a second time then, which is harmless: whoever claims first runs it.
        """
        try:
            return not any(self._redis.llen(key) for key in redis_keys(queue))
        except (redis.RedisError, OSError) as error:
            log.warning("queue_unreachable", queue=queue, error=str(error))
            return None
