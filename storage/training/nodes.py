"""NodeStore: every SQL statement about the further machines of a training run, which are jobs of kind `node` with the run as
their parent. They move by the same rules as other jobs; here they are added, canceled, and looked for.
"""  # fmt: skip

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import ClaimedJob, NewJob
from forebay.storage.jobs.requests import CANCEL_JOBS, CANCEL_SHARDS, new_row
from forebay.storage.ledger import tables
from forebay.storage.ledger.connection import Ledger
from forebay.storage.training.store import HELD, LeaseLost

OLDER_WAITING = """
SELECT count(*) FROM (
    SELECT id FROM jobs WHERE state = 'queued' AND queue = :queue AND kind = 'node' AND parent_id < :id LIMIT 1) AS older"""


class NodeStore:
    """The node jobs of training runs. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sql = cache(ledger.statement)

    def add(self, job: ClaimedJob, nodes: Sequence[NewJob]) -> list[RoutedJob]:
        """Add the node jobs of this attempt, cancel those of an earlier one; where to send them.

        LeaseLost when the run is no longer this attempt's.
        """
        now = self.ledger.now()
        with self.ledger.write() as connection:
            if connection.execute(self._sql(HELD), {"id": job.id, "attempt": job.attempt}).fetchone() is None:
                raise LeaseLost(job.id)
            connection.execute(self._sql(CANCEL_SHARDS), {"ids": self.ledger.bind([job.id]), "now": now})
            connection.execute(tables.jobs.insert(), [new_row(node, now) for node in nodes])
        return [
            RoutedJob(node.id, node.model, node.version, node.queue, node.priority, exclusive=True) for node in nodes
        ]

    def cancel(self, ids: Sequence[str]) -> None:
        """The attempt that these node jobs were for has ended: those that wait are canceled, those that run asked to stop."""
        with self.ledger.write() as connection:
            values = {"ids": self.ledger.bind(ids), "now": self.ledger.now()}
            connection.execute(self._sql(CANCEL_JOBS), values)

    def has_older_waiting(self, job: ClaimedJob) -> bool:
        """Whether an older run waits in the same queue for machines: of two runs that wait for each other's, one must yield."""
        with self.ledger.read() as connection:
            return bool(connection.execute(self._sql(OLDER_WAITING), {"queue": job.queue, "id": job.id}).scalar_one())
