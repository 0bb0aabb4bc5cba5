"""Batch jobs and their shards. A batch's own job is only started here: its work is done by its shards."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from forebay.contract.job import JobKind
from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.kinds.batch.coordinator import BatchCoordinator
from forebay.worker.kinds.batch.pipeline import Pipeline
from forebay.worker.kinds.batch.shards import ShardRunner
from forebay.worker.kinds.parents import start_parent

GO_ON_S = 2.0  # for how long a child takes further shards before it lets other jobs have their turn


class BatchHandler:
    """Starts the batches and runs the shards of one child."""

    def __init__(self, context: ChildContext) -> None:
        self._context = context
        self._store = BatchStore(context.ledger)
        self._coordinator = BatchCoordinator(context, self._store)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Start these batches, run these shards, and for a while others of the same batches."""
        until = time.monotonic() + GO_ON_S
        by_batch: dict[str, list[ClaimedJob]] = {}
        for job in claimed:
            if job.kind is JobKind.SHARD:
                shard = attempts.retry_while_unavailable(partial(self._store.queries.shard, job, attempts.lease_s))
                by_batch.setdefault(shard.batch, []).append(job)
            elif start_parent(job, attempts, self._coordinator.start):
                by_batch.setdefault(job.id, [])
        shards = ShardRunner(self._context, attempts, self._store, self._coordinator)
        try:
            for batch, jobs in by_batch.items():
                Pipeline(shards, batch, jobs, until).run()
        finally:
            shards.let_go_all()
