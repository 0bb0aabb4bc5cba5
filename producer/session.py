"""What one client has open: the ledger, the queue and the blob store. Everything the client hands out works through it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from weakref import WeakSet

import structlog

from forebay.contract.errors import BlobCorrupt, BlobMissing, BrokerUnavailable
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import connect_redis, make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.datasets.formats.addresses import allow_hosts
from forebay.producer.group_commit import GroupCommit
from forebay.producer.quota import QueueQuota
from forebay.producer.sender import Sender
from forebay.producer.waiting.watcher import Watcher
from forebay.storage.batches.store import BatchStore
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.queries import TrainingQueries
from forebay.storage.tuning.queries import TuneQueries
from forebay.storage.workers import WorkerInfo, WorkerRegistry

log = structlog.get_logger()

_open_sessions: WeakSet[Session] = WeakSet()


class Session:
    """The connections of one client. Thread-safe. In a process that was forked they are opened anew."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        allow_hosts(settings.allowed_hosts)
        self._inherited: list[object] = []
        self._open()
        _open_sessions.add(self)

    def _open(self) -> None:
        self.id = secrets.token_hex(8)  # names the channel on which workers announce this client's jobs
        self._app = make_app(self.settings)
        self.ledger = Ledger(self.settings.database)
        self.jobs = JobStore(self.ledger)
        self.batches = BatchStore(self.ledger)
        self.training = TrainingQueries(self.ledger)
        self.tunes = TuneQueries(self.ledger)
        self.registry = ModelRegistry(self.ledger)
        self.blobs = BlobStore(self.settings.blobs)
        self.payloads = Payloads(self.blobs, self.settings)
        self.dispatcher = Dispatcher(self._app)
        self.commit = GroupCommit(self.jobs)
        self.sender = Sender(self.jobs, self.dispatcher)
        self.quota = QueueQuota(self.jobs, self.settings.queues)
        self.watcher = Watcher(self.jobs, connect_redis(self.settings), self.id, self.sender.note_ended)
        self._workers = WorkerRegistry(self.ledger)

    def reopen_after_fork(self) -> None:
        """Open connections and locks of this process's own. The parent's are kept as they are: to close them would end its."""
        handles = self.watcher.handles()
        self._inherited.append(dict(vars(self)))
        self._open()
        for handle in self.watcher.register(handles):
            handle.forget_future()

    def close(self) -> None:
        """Close every connection once everything submitted has been sent; jobs go on."""
        _open_sessions.discard(self)
        self.sender.close()
        self.watcher.close()
        self.dispatcher.close()
        self._app.close()
        self.ledger.close()

    def live_workers(self) -> list[WorkerInfo]:
        """The workers that have sent a heartbeat lately."""
        return self._workers.alive(self.settings.alive_s)

    def send(self, routed_jobs: Sequence[RoutedJob]) -> bool:
        """Send jobs that are queued in the ledger; False when Redis is down, and then the sweeper sends them."""
        try:
            self.dispatcher.send_jobs(routed_jobs)
        except BrokerUnavailable as error:
            self.sender.mark_unsent([job.id for job in routed_jobs], str(error))
            return False
        return True


def load_payload(session: Session, about: str, inline: bytes | None, ref: str | None) -> bytes:
    """The bytes of what `about` names; BlobCorrupt and BlobMissing with that name."""
    try:
        return session.payloads.load(inline, ref)
    except (BlobCorrupt, BlobMissing) as error:
        raise type(error)(f"{about} cannot be read: {error}; submit it again") from error


def _prepare_all() -> None:
    for session in list(_open_sessions):
        session.ledger.prepare_fork()


def _reopen_all() -> None:
    for session in list(_open_sessions):
        session.reopen_after_fork()


os.register_at_fork(before=_prepare_all, after_in_child=_reopen_all)
