"""How the pages read the ledger: never on the event loop, one query for many viewers, and stale data rather than none.

A result is kept for a moment and shared by every page that asks for the same key. While the ledger is slow or unavailable,
the last result is returned with its age and the reason.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, TypeVar

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.storage.batches.views import BatchViews
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.overview import Overview
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.views import JobViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.benchmarks import BenchmarkStore
from forebay.storage.models.drift import DriftStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.queries import TrainingQueries
from forebay.storage.tuning.queries import TuneQueries
from forebay.storage.workers import WorkerRegistry

log = structlog.get_logger()

T = TypeVar("T")

STATEMENT_LIMIT_S = 5.0  # the database gives up a statement that takes longer
WAIT_S = 3.0  # how long a page waits for the ledger before it shows old data
THREADS = 4
MAX_PENDING = 16  # different queries at a time; a ledger that is slow already gets no more of them
MAX_CACHED = 256


class LedgerQueries:
    """Everything the dashboard asks of an open ledger."""

    def __init__(self, ledger: Ledger, blobs_url: str = "") -> None:
        self.ledger = ledger
        self._blobs_url = blobs_url
        self.jobs = JobViews(ledger)
        self.batches = BatchViews(ledger)
        self.training = TrainingQueries(ledger)
        self.tunes = TuneQueries(ledger)
        self.store = JobStore(ledger)
        self.overview = Overview(ledger)
        self.models = ModelRegistry(ledger)
        self.drift = DriftStore(ledger)
        self.workers = WorkerRegistry(ledger)
        self.benchmarks = BenchmarkStore(ledger)

    @cached_property
    def blobs(self) -> BlobStore:
        return BlobStore(self._blobs_url)


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[T]):
    """What the ledger returned `age_s` seconds ago, None if it never has; `problem` says why it is not newer."""

    value: T | None
    age_s: float = 0.0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _CacheEntry:
    value: Any
    read_at: float
    tried_at: float
    problem: str | None = None


class LedgerReader:
    """Runs the pages' queries in threads of its own. Made and used on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._url, self._blobs = settings.database, settings.blobs
        self._queries: LedgerQueries | None = None
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger")
        self._cache: OrderedDict[Hashable, _CacheEntry] = OrderedDict()
        self._pending: dict[Hashable, asyncio.Task[None]] = {}
        self._available = True

    async def read(
        self, key: Hashable, query: Callable[[LedgerQueries], T], max_age_s: float = 1.0, wait_s: float = WAIT_S
    ) -> Snapshot[T]:
        """The cached result for `key` if it is younger than `max_age_s` seconds, else what the ledger returns now.

        Raises what the query raises, except for LedgerUnavailable.
        """
        entry, now = self._cache.get(key), asyncio.get_running_loop().time()
        if entry is None or now - entry.tried_at >= max_age_s:
            task = self._pending.get(key)
            if task is None:
                if len(self._pending) >= MAX_PENDING:
                    return self._snapshot(key, "the ledger is busy with other queries")
                task = self._pending[key] = asyncio.create_task(self._refresh(key, query))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait({task}, timeout=wait_s)
            if not task.done():
                return self._snapshot(key, f"the ledger has not answered within {wait_s:g} s")
            task.result()
        return self._snapshot(key)

    async def write(self, change: Callable[[LedgerQueries], T]) -> T:
        """Change the ledger and drop everything cached before; raises what the change raises."""
        result = await self._run(change)
        self._cache.clear()
        return result

    def close(self) -> None:
        """Close every connection, without waiting for queries in progress."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._queries is not None:
            self._queries.ledger.close()

    def _snapshot(self, key: Hashable, problem: str | None = None) -> Snapshot[Any]:
        entry = self._cache.get(key)
        if entry is None:
            return Snapshot(None, 0.0, problem)
        self._cache.move_to_end(key)
        age = asyncio.get_running_loop().time() - entry.read_at
        return Snapshot(entry.value, age, problem or entry.problem)

    async def _refresh(self, key: Hashable, query: Callable[[LedgerQueries], Any]) -> None:
        now = asyncio.get_running_loop().time
        try:
            self._keep(key, _CacheEntry(await self._run(query), now(), now()))
            self._log_availability(None)
        except LedgerUnavailable as error:
            before = self._cache.get(key) or _CacheEntry(None, now(), now())
            self._keep(key, replace(before, tried_at=now(), problem=str(error)))
            self._log_availability(error)
        finally:
            del self._pending[key]

    async def _run(self, query: Callable[[LedgerQueries], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: query(self._open()))

    def _keep(self, key: Hashable, entry: _CacheEntry) -> None:
        self._cache[key] = entry
        self._cache.move_to_end(key)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    def _log_availability(self, error: LedgerUnavailable | None) -> None:
        """One line when the ledger goes away, one when it is back."""
        if error is not None and self._available:
            log.warning("ledger_unavailable", error=str(error))
        elif error is None and not self._available:
            log.info("ledger_available", ledger=mask_password(self._url))
        self._available = error is None

    def _open(self) -> LedgerQueries:
        """Opened by the first query that finds the ledger."""
        with self._opening:
            if self._queries is None:
                self._queries = LedgerQueries(Ledger(self._url, statement_limit_s=STATEMENT_LIMIT_S), self._blobs)
        return self._queries
