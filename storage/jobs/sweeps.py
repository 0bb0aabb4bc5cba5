"""JobSweeps: what the sweeper does to jobs: frees lapsed leases, expires deadlines, has lost messages sent again, deletes what
retention allows. Every step picks its rows so that two sweepers never take the same.
"""

from __future__ import annotations

import time

from forebay.contract.job import Transition
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.lost import LAPSED, free_lost
from forebay.storage.jobs.records import Ended, ended, routed_jobs
from forebay.storage.jobs.statements import IS_PARENT, ROUTED_JOB, new_state
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

PURGE_S = 2.0  # of a sweep, at most: some thousand jobs a second, all sweeps together
LEASE_LAPSED = "the worker's lease lapsed: it died, hung or lost the ledger"

FIRST_DUE = Statement("SELECT min(not_before) FROM jobs WHERE state = 'queued' AND not_before IS NOT NULL")
TAKE_DUE = Statement(f"""
UPDATE jobs SET sent_at = :now, not_before = NULL WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND not_before IS NOT NULL AND not_before <= :now
    ORDER BY not_before LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING {ROUTED_JOB}""")

EXPIRE = Statement(f"""
UPDATE jobs SET {new_state(Transition.EXPIRE)}, finished_at = :now
WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND deadline_at IS NOT NULL AND deadline_at <= :now FOR UPDATE SKIP LOCKED)
RETURNING id, client""")

# Whether a queue lost its messages is told by Redis, not here. Marking the jobs as sent keeps a second sweeper off.
TAKE_UNSENT = Statement(f"""
UPDATE jobs SET sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND queue = :queue AND sent_at < :before AND not_before IS NULL
    ORDER BY priority, id LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING {ROUTED_JOB}""")

# A queue is served in the order of sending. A job that was sent well before one of the same priority that runs by now, and
# still waits, has no message any more, or one in some worker's buffer. Being wrong is harmless: a second message claims nothing.
# Not of parents, whose `sent_at` says when somebody last planned for them.
LAST_SENT_RUNNING = Statement(f"""
SELECT priority, max(sent_at) AS sent_at FROM jobs WHERE state = 'running' AND queue = :queue AND NOT {IS_PARENT}
GROUP BY priority""")
# Only the oldest by id are looked at, where such jobs sink to: a long queue must not cost a long look.
SENT_BEFORE = Statement("""
SELECT id FROM (
    SELECT id, sent_at FROM jobs WHERE state = 'queued' AND queue = :queue AND priority = :priority AND not_before IS NULL
    ORDER BY id LIMIT :look_at) AS oldest
WHERE sent_at < :before ORDER BY id LIMIT :limit""")
TAKE_LOST = Statement(f"""
UPDATE jobs SET sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE id = ANY(:ids) AND state = 'queued' AND sent_at < :before ORDER BY id FOR UPDATE SKIP LOCKED)
RETURNING {ROUTED_JOB}""")

# A shard tells what its batch has written, also to a retry of the batch: it goes after it. The jobs of a batch of requests are
# read as that ends.
PURGE = Statement("""
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE state IN ('succeeded', 'failed', 'canceled', 'expired') AND finished_at < :before
    AND (parent_id IS NULL OR NOT EXISTS (SELECT 1 FROM jobs AS batch WHERE batch.id = jobs.parent_id)
        AND NOT EXISTS (SELECT 1 FROM request_batches AS batch WHERE batch.id = jobs.parent_id
            AND status IN ('validating', 'in_progress', 'finalizing', 'cancelling')))
    LIMIT :limit FOR UPDATE SKIP LOCKED)""")


class JobSweeps:
    """The sweeper's steps. Thread-safe, and safe for several sweepers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def free_lapsed(self) -> tuple[list[RoutedJob], list[Ended]]:
        """Free every job whose lease was not renewed, as JobStore.free_crashed does."""
        return free_lost(self._ledger, LAPSED, LEASE_LAPSED, 1, {})

    def expire(self) -> list[Ended]:
        """End every queued job whose deadline has passed."""
        with self._ledger.write() as connection:
            return ended(EXPIRE.execute(connection, now=self._ledger.now()))

    def take_due(self, limit: int = 10_000) -> list[RoutedJob]:
        """Queued jobs whose `not_before` has come, marked as sent now: the caller sends them. One quick read when none is."""
        first = self._ledger.scalar(FIRST_DUE)
        now = self._ledger.now()
        if first is None or first > now:
            return []
        with self._ledger.write() as connection:
            return routed_jobs(TAKE_DUE.execute(connection, now=now, limit=limit))

    def take_unsent(self, queue: str, older_than_s: float, limit: int = 10_000) -> list[RoutedJob]:
        """Queued jobs last sent longer ago than `older_than_s` seconds, marked as sent now: the caller sends them."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            taken = TAKE_UNSENT.execute(connection, queue=queue, now=now, before=now - older_than_s, limit=limit)
            return routed_jobs(taken)

    def take_lost(self, queue: str, after_s: float, margin_s: float, limit: int = 1000) -> list[RoutedJob]:
        """Jobs whose message is lost though the queue in Redis is never empty, marked as sent now: the caller sends them.

        They were sent more than `after_s` seconds ago, and `margin_s` before one of their priority that runs.
        """
        now = self._ledger.now()
        found: list[RoutedJob] = []
        for running in self._ledger.rows(LAST_SENT_RUNNING, queue=queue):
            before = min(now - after_s, running.sent_at - margin_s)
            values = {"queue": queue, "priority": running.priority, "before": before, "limit": limit}
            ids = [row.id for row in self._ledger.rows(SENT_BEFORE, **values, look_at=10 * limit)]
            if ids:
                with self._ledger.write() as connection:
                    found += routed_jobs(TAKE_LOST.execute(connection, ids=ids, before=before, now=now))
        return sorted(found, key=lambda job: (job.priority, job.id))

    def purge(self, older_than_s: float, limit: int = 500, seconds: float = PURGE_S) -> int:
        """Delete jobs that ended longer ago than `older_than_s` seconds, `limit` to a transaction; how many.

        For about so many `seconds`, on SQLite in half of which it writes: nobody else can meanwhile.
        """
        before, until, deleted = self._ledger.now() - older_than_s, time.monotonic() + seconds, 0
        while True:
            began = time.monotonic()
            with self._ledger.write() as connection:
                done = PURGE.execute(connection, before=before, limit=limit).rowcount
            deleted += done
            ended_at = time.monotonic()
            if done < limit or ended_at >= until:
                return deleted
            if self._ledger.sqlite:
                time.sleep(ended_at - began)
