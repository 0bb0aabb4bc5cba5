"""How the pages read the ledger: never on the event loop, one question for many viewers, and stale rather than not at all.

An answer is kept for a moment and shared by everyone who asks the same. When the ledger is slow or away, the last answer
is given again with its age and the reason. What is asked, and how it is shown, is not known here.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.settings import Settings, mask_password
from forebay.storage.batches.views import BatchViews
from forebay.storage.jobs.overview import Overview
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.views import JobViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.views import TrainingViews
from forebay.storage.workers import WorkerRegistry

log = structlog.get_logger()

T = TypeVar("T")

STATEMENT_LIMIT_S = 5.0  # what takes longer is given up by the database
PATIENCE_S = 3.0  # how long a page waits for an answer before it shows an old one
THREADS = 4
MAX_ASKED = 16  # different questions at a time; more are not put to a ledger that is slow already
MAX_KNOWN = 256


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """Everything that can be asked of an open ledger."""

    ledger: Ledger
    views: JobViews
    batches: BatchViews
    training: TrainingViews
    store: JobStore
    overview: Overview
    models: ModelRegistry
    workers: WorkerRegistry


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What the ledger said `age_s` seconds ago, None if it has never answered; `trouble` says why it is not newer."""

    value: T | None
    age_s: float = 0.0
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    value: Any
    read_at: float
    tried_at: float
    trouble: str | None = None


class LedgerView:
    """Asks the ledger for the pages. ModelOutputs and used on the event loop; questions run in threads of its own."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.database
        self._ears: ConsumerHealth | None = None
        self._opening = threading.Lock()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="ledger")
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._asked: dict[Hashable, asyncio.Task[None]] = {}
        self._away = False

    async def ask(self, key: Hashable, question: Callable[[ConsumerHealth], T], fresh_s: float = 1.0) -> Answer[T]:
        """The answer known for `key` if it is younger than `fresh_s` seconds, else what the ledger says now.

        Raises what the question raises, but for LedgerUnavailable.
        """
        known, now = self._known.get(key), asyncio.get_running_loop().time()
        if known is None or now - known.tried_at >= fresh_s:
            task = self._asked.get(key)
            if task is None:
                if len(self._asked) >= MAX_ASKED:
                    return self._answer(key, "the ledger is busy with other questions")
                task = self._asked[key] = asyncio.create_task(self._put(key, question))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            await asyncio.wait({task}, timeout=PATIENCE_S)
            if not task.done():
                return self._answer(key, f"the ledger has not answered within {PATIENCE_S:g} s")
            task.result()
        return self._answer(key)

    async def act(self, deed: Callable[[ConsumerHealth], T]) -> T:
        """Run something that changes the ledger, and forget what was known before it; raises what it raises."""
        result = await self._run(deed)
        self._known.clear()
        return result

    def close(self) -> None:
        """Give back every connection; what is being asked is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._ears is not None:
            self._ears.ledger.close()

    def _answer(self, key: Hashable, trouble: str | None = None) -> Answer[Any]:
        known = self._known.get(key)
        if known is None:
            return Answer(None, 0.0, trouble)
        self._known.move_to_end(key)
        age = asyncio.get_running_loop().time() - known.read_at
        return Answer(known.value, age, trouble or known.trouble)

    async def _put(self, key: Hashable, question: Callable[[ConsumerHealth], Any]) -> None:
        now = asyncio.get_running_loop().time
        try:
            self._keep(key, _Known(await self._run(question), now(), now()))
            self._said(None)
        except LedgerUnavailable as error:
            before = self._known.get(key) or _Known(None, now(), now())
            self._keep(key, replace(before, tried_at=now(), trouble=str(error)))
            self._said(error)
        finally:
            del self._asked[key]

    async def _run(self, question: Callable[[ConsumerHealth], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: question(self._open()))

    def _keep(self, key: Hashable, known: _Known) -> None:
        self._known[key] = known
        self._known.move_to_end(key)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _said(self, error: LedgerUnavailable | None) -> None:
        """One line when the ledger goes away, one when it is back."""
        if error is not None and not self._away:
            log.warning("ledger_unavailable", error=str(error))
        elif error is None and self._away:
            log.info("ledger_answers", ledger=mask_password(self._url))
        self._away = error is not None

    def _open(self) -> ConsumerHealth:
        """A ledger that is not there yet is looked for again with every question."""
        with self._opening:
            if self._ears is None:
                ledger = Ledger(self._url, statement_limit_s=STATEMENT_LIMIT_S)
                self._ears = ConsumerHealth(
                    ledger, JobViews(ledger), BatchViews(ledger), TrainingViews(ledger), JobStore(ledger), Overview(ledger),
                    ModelRegistry(ledger), WorkerRegistry(ledger),
                )  # fmt: skip
        return self._ears
