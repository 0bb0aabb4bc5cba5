"""Putting jobs into the ledger and handing them to the sender: concurrent submits share one commit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind
from forebay.contract.references import shown
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.producer.sender import Parting, Sender
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore

T = TypeVar("T")


@dataclass(slots=True)
class Entry:
    """One caller's jobs on their way into the ledger."""

    jobs: Sequence[NewJob]
    max_queue_size: int | None = None
    ids: list[str] = field(default_factory=list)
    error: Exception | None = None


class Combined(Generic[T]):
    """Calls that share work: whoever gets in acts for all who wait behind, who then find theirs done."""

    def __init__(self, act: Callable[[list[T]], None]) -> None:
        self._act = act
        self._waiting: list[tuple[T, threading.Event]] = []
        self._lock = threading.Lock()
        self._acting = threading.Lock()

    def __call__(self, item: T) -> None:
        """Return once `act` has been called with a list that holds `item`."""
        done = threading.Event()
        with self._lock:
            self._waiting.append((item, done))
        with self._acting:
            if done.is_set():
                return
            with self._lock:
                batch, self._waiting = self._waiting, []
            try:
                self._act([item for item, _ in batch])
            finally:
                for _, other in batch:
                    other.set()


class Submitter:
    """Adds and sends jobs. Thread-safe; concurrent submits share a commit."""

    def __init__(self, store: JobStore, dispatcher: Dispatcher) -> None:
        self._store = store
        self._sender = Sender(store, dispatcher)
        self._commit = Combined(self._commit_all)

    def submit(
        self, jobs: Sequence[NewJob], batch_size: int, hold_s: float = 0.0, max_queue_size: int | None = None
    ) -> list[str]:
        """Make the jobs durable and send them; their ids, those of existing jobs for idempotency keys met before.

        `batch_size` is what the model runs at once: a message carries about that many ids, so that two workers share a
        small backlog. A worker holds them back for up to `hold_s` seconds for a batch to fill. With `max_queue_size` no more
        than that may wait in their queue. QueueFull, LedgerUnavailable or InvalidInput when nothing was stored.
        """
        entry = Entry(jobs, max_queue_size)
        self._commit(entry)
        if entry.error is not None:
            raise entry.error
        fresh = [_ticket(job) for job, id in zip(jobs, entry.ids, strict=True) if job.id == id]
        if fresh:
            self._sender.send(Parting.of(fresh, batch_size, hold_s))
        return entry.ids

    def close(self) -> None:
        """Return once everything submitted has been sent."""
        self._sender.close()

    def _commit_all(self, batch: list[Entry]) -> None:
        for group in _groups(batch):
            try:
                ids = self._store.add(
                    [job for entry in group for job in entry.jobs], max_queue_size=group[0].max_queue_size
                )
            except Exception as error:  # noqa: BLE001 - handed to each caller
                for entry in group:
                    entry.error = error
                continue
            for entry in group:
                entry.ids, ids = ids[: len(entry.jobs)], ids[len(entry.jobs) :]


def check_key(value: Any) -> str | None:
    """An idempotency key as it was given; InvalidInput for what is none."""
    if value is None:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= 180 or not value.isprintable():
        raise InvalidInput(f"idempotency_key {shown(value)} is not 1 to 180 printable characters")
    return value


def keys_for(key: str | None, count: int) -> list[str | None]:
    """The keys of `count` jobs that were submitted together: `key:0`, `key:1`, …; a job by itself has the key as it is."""
    if key is None or count == 1:
        return [key] * count
    return [f"{key}:{i}" for i in range(count)]


def _groups(batch: list[Entry]) -> list[list[Entry]]:
    """What shares a transaction. Jobs that may be refused, by their key or a full queue, go alone: one caller's at a time."""
    plain: list[Entry] = []
    alone: list[Entry] = []
    for entry in batch:
        sure = entry.max_queue_size is None and all(job.idempotency_key is None for job in entry.jobs)
        (plain if sure else alone).append(entry)
    return ([plain] if plain else []) + [[entry] for entry in alone]


def _ticket(job: NewJob) -> RoutedJob:
    exclusive = job.kind is not JobKind.PREDICT
    return RoutedJob(job.id, job.model, job.version, job.queue, job.priority, exclusive=exclusive)
