"""Jobs that others have lost_messages: their message is lost, though their queue in Redis is never empty.

A queue is served in the order of sending. Who was sent well before something of the same priority that runs by now, and still
waits, has no message any more, or one in some worker's buffer. Being wrong is harmless: a second message claims nothing.
"""

from __future__ import annotations

from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.queries import JobQueries
from forebay.storage.jobs.statements import ROUTED_JOB, routed_jobs

# Not of batches, whose `sent_at` says when somebody last planned for them.
RUNNING_SENT = """
SELECT priority, max(sent_at) FROM jobs WHERE state = 'running' AND queue = :queue AND kind <> 'batch' GROUP BY priority"""
# Only the oldest by id are looked at, where such jobs sink to: a long queue must not cost a long look.
OVERTAKEN = """
SELECT id FROM (
    SELECT id, sent_at FROM jobs WHERE state = 'queued' AND queue = :queue AND priority = :priority AND not_before IS NULL
    ORDER BY id LIMIT :look_at) AS oldest
WHERE sent_at < :before ORDER BY id LIMIT :limit"""
SEND_AGAIN = f"""
UPDATE jobs SET sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND state = 'queued' AND sent_at < :before ORDER BY id {{skip_locked}})
RETURNING {ROUTED_JOB}"""


class LostMessages(JobQueries):
    """Finds them, and marks them as sent. Thread-safe, and safe for several sweepers."""

    def take(self, queue: str, after_s: float, margin_s: float, limit: int = 1000) -> list[RoutedJob]:
        """Jobs sent more than `after_s` seconds ago, and `margin_s` before one of their priority that runs: send them."""
        now = self.ledger.now()
        found: list[RoutedJob] = []
        for priority, sent_at in self._running(queue):
            before = min(now - after_s, sent_at - margin_s)
            ids = self._waiting(queue, priority, before, limit)
            if ids:
                with self.ledger.write() as connection:
                    values = {"ids": self.ledger.bind(ids), "before": before, "now": now}
                    found += routed_jobs(connection.execute(self._sql(SEND_AGAIN), values))
        return sorted(found, key=lambda routed_job: (routed_job.priority, routed_job.id))

    def _running(self, queue: str) -> list[tuple[int, float]]:
        """By priority, when the job that was sent last of those that run was sent."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(RUNNING_SENT), {"queue": queue}).fetchall()
        return [(row[0], row[1]) for row in rows]

    def _waiting(self, queue: str, priority: int, before: float, limit: int) -> list[str]:
        values = {"queue": queue, "priority": priority, "before": before, "limit": limit, "look_at": 10 * limit}
        with self.ledger.read() as connection:
            return list(connection.execute(self._sql(OVERTAKEN), values).scalars())
