"""Batch jobs and their shards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.summary import Summary
from forebay.worker.kinds.batch.coordinator import BatchCoordinator
from forebay.worker.kinds.batch.shards import ShardRunner
from forebay.worker.shared_page import STORE, WRITE


class BatchHandler:
    """Runs the batch jobs of one child."""

    def __init__(self, context: ChildContext) -> None:
        settings, store = context.settings, BatchStore(context.ledger)
        waiting = partial(context.page.limit, settings.store_timeout_s, STORE, WRITE)
        self._shards = ShardRunner(
            jobs=context.jobs, store=store,
            coordinator=BatchCoordinator(
                store, context.registry, context.payloads, context.dispatcher, context.announcer, context.broker, waiting
            ),
            registry=context.registry, announcer=context.announcer, engine=context.engine, load=context.models.load,
            worker=settings.worker_name, lease_s=settings.lease_s, page=context.page,
            outage_timeout_s=settings.outage_timeout_s, store_timeout_s=settings.store_timeout_s, metrics=context.metrics,
        )  # fmt: skip

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Start these batches, run these shards."""
        ran = self._shards.run(claimed)
        attempts.add(
            Summary(
                succeeded=ran.succeeded, failed=ran.failed, stopped=ran.stopped, postponed=ran.postponed, lost=ran.dropped,
                rows=ran.rows, released=ran.left,
            )
        )  # fmt: skip
