"""Connections: what a client opens and closes, and the way of jobs into the ledger and on into the queue."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import structlog

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.queues import Resources, route
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import connect_redis, make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import JobMessage, RoutedJob, TaskArgs
from forebay.producer.models import Models
from forebay.producer.quota import Room
from forebay.producer.submit import Submitter
from forebay.producer.waiting.watcher import Watcher
from forebay.storage.batches.store import BatchStore
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.queries import TrainingQueries
from forebay.storage.workers import WorkerRegistry

log = structlog.get_logger()


class Connections:
    """The ledger and the queue as one client has them open. Thread-safe; a context manager."""

    def __init__(self, settings: Settings | None = None) -> None:
        """Open the ledger and the queue that `settings` name (Settings.load() when None).

        LedgerUnavailable or BrokerUnavailable when none is configured or no ledger is there; a Redis that is down is none.
        """
        self.settings = settings or Settings.load()
        self.id = secrets.token_hex(8)
        app = make_app(self.settings)
        self._ledger = Ledger(self.settings.database)
        self._store = JobStore(self._ledger)
        self._batches = BatchStore(self._ledger)
        self._training = TrainingQueries(self._ledger)
        self._registry = ModelRegistry(self._ledger)
        self._workers = WorkerRegistry(self._ledger)
        blobs = BlobStore(self.settings.blobs)
        self._payloads = Payloads(blobs, self.settings)
        self._dispatcher = Dispatcher(app)
        self._submitter = Submitter(self._store, self._dispatcher)
        self._room = Room(self._store, self.settings.queues)
        self._watcher = Watcher(self._store, connect_redis(self.settings), self.id)
        self.models = Models(self._registry, self._training, blobs, self._ask_to_load)
        self._app = app

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection; jobs go on."""
        self._watcher.close()
        self._submitter.close()
        self._dispatcher.close()
        self._app.close()
        self._ledger.close()

    def _ask_to_load(self, model: ModelVersion) -> list[str]:
        """A message without ids for each worker of the version's queue: there is nothing to run, so it is only loaded."""
        queue = route(self.settings.queues, Resources.parse(model.resources), JobKind.PREDICT, None)
        workers = [w.name for w in self._workers.alive(3 * self.settings.heartbeat_s) if queue in w.queues]
        self._dispatcher.send(
            [JobMessage(queue, 0, TaskArgs(model.name, model.version, [], exclusive=False))] * len(workers)
        )
        return workers

    def _send(self, routed_jobs: Sequence[RoutedJob]) -> bool:
        """Send jobs that are queued already; False when Redis is away: the sweeper does it then."""
        try:
            self._dispatcher.send_jobs(routed_jobs)
        except BrokerUnavailable as error:
            log.warning("send_failed", jobs=len(routed_jobs), error=str(error))
            self._store.mark_unsent([t.id for t in routed_jobs])
            return False
        return True
