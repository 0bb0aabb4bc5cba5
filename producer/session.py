"""What one client has open: the ledger, the queue and the blob store. Everything the client hands out works through it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import structlog

from forebay.contract.errors import BrokerUnavailable
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import connect_redis, make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.producer.quota import QueueQuota
from forebay.producer.waiting.watcher import Watcher
from forebay.storage.batches.store import BatchStore
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.queries import TrainingQueries
from forebay.storage.workers import WorkerInfo, WorkerRegistry

log = structlog.get_logger()


class Session:
    """The connections of one client. Thread-safe."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.load()
        self.id = secrets.token_hex(8)  # names the channel on which workers announce this client's jobs
        self._app = make_app(self.settings)
        self.ledger = Ledger(self.settings.database)
        self.jobs = JobStore(self.ledger)
        self.batches = BatchStore(self.ledger)
        self.training = TrainingQueries(self.ledger)
        self.registry = ModelRegistry(self.ledger)
        self.blobs = BlobStore(self.settings.blobs)
        self.payloads = Payloads(self.blobs, self.settings)
        self.dispatcher = Dispatcher(self._app)
        self.quota = QueueQuota(self.jobs, self.settings.queues)
        self.watcher = Watcher(self.jobs, connect_redis(self.settings), self.id)
        self._workers = WorkerRegistry(self.ledger)

    def close(self) -> None:
        """Close every connection; jobs go on."""
        self.watcher.close()
        self.dispatcher.close()
        self._app.close()
        self.ledger.close()

    def live_workers(self) -> list[WorkerInfo]:
        """The workers that have sent a heartbeat lately."""
        return self._workers.alive(3 * self.settings.heartbeat_s)

    def send(self, routed_jobs: Sequence[RoutedJob]) -> bool:
        """Send jobs that are queued in the ledger; False when Redis is down, and then the sweeper sends them."""
        try:
            self.dispatcher.send_jobs(routed_jobs)
        except BrokerUnavailable as error:
            log.warning("send_failed", jobs=len(routed_jobs), error=str(error))
            self.jobs.mark_unsent([job.id for job in routed_jobs])
            return False
        return True
