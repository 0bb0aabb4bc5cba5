"""Between one event loop and the threads of a client: submits that share a commit, results that wake futures, blocking calls.

Ledger writes of submits go through one thread: what arrives while it commits goes into its next transaction. Waiting costs no
thread and no connection; it rests on the client's watcher.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from forebay.contract.errors import ForebayError
from forebay.producer.handles.job import Job
from forebay.producer.session import Session
from forebay.producer.submit import Submission, Submitter

T = TypeVar("T")

READ_THREADS = 4
Prepare = Callable[[], Submission]
Submitted = list[Job]
Waiters = set["asyncio.Future[None]"]


class EventLoopBridge:
    """What an asynchronous client asks of its session. All methods belong to the loop that runs when it is first used."""

    def __init__(self, session: Session, submitter: Submitter) -> None:
        self._session = session
        self._submitter = submitter
        self._loop: asyncio.AbstractEventLoop | None = None
        self._submits = ThreadPoolExecutor(1, "forebay-submit")
        self._reads = ThreadPoolExecutor(READ_THREADS, "forebay-read")
        self._pending: list[tuple[Prepare, asyncio.Future[Submitted]]] = []
        self._committing: asyncio.Future[None] | None = None
        self._waiters: WeakKeyDictionary[Future[Any], Waiters] = WeakKeyDictionary()
        self._woken: deque[Waiters] = deque()
        self._waking = False
        self._closed = False
        self._interrupted = False

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What a blocking function gives, run in one of a few threads."""
        return await self._running_loop().run_in_executor(self._reads, partial(function, *args, **kwargs))

    async def submit(self, prepare: Prepare) -> list[Job]:
        """Store and send the jobs that `prepare` makes in the committing thread; their handles, once they are durable.

        Whoever gives up waiting takes nothing back.
        """
        loop = self._running_loop()
        done: asyncio.Future[Submitted] = loop.create_future()
        self._pending.append((prepare, done))
        if self._committing is None:
            self._committing = loop.create_future()
            loop.call_soon(self._commit_pending)  # whatever else this turn of the loop submits comes along
        return await done

    async def has_ended(self, job: Job, timeout: float | None) -> bool:
        """Wait until the watcher has delivered the job's outcome; False when it has not within `timeout` seconds."""
        loop = self._running_loop()
        future = job.future()
        if future.done() or self._interrupted:
            return future.done()
        waiter: asyncio.Future[None] = loop.create_future()
        waiters = self._waiters.get(future)
        if waiters is None:
            waiters = self._waiters[future] = set()
            waiters.add(waiter)
            future.add_done_callback(partial(self._wake, waiters))
        waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                await waiter
        except TimeoutError:
            pass
        finally:
            waiters.discard(waiter)
            if not future.done():
                self._session.watcher.stop_polling_for(job)
        return future.done()

    def stop_waiting(self) -> None:
        """End every wait as if its time had run out, and every later one at once."""
        self._interrupted = True
        self._woken += list(self._waiters.values())
        self._wake_all()

    async def close(self, close: Callable[[], None]) -> None:
        """Call `close` once everything submitted has been stored; nothing can be asked afterwards."""
        loop = self._running_loop()
        self._closed = True
        while self._committing is not None:
            await asyncio.wait([self._committing])
        try:
            await loop.run_in_executor(self._submits, close)
        finally:
            self._submits.shutdown(wait=False)
            self._reads.shutdown(wait=False, cancel_futures=True)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._closed or self._loop is not loop:
            reason = "is closed" if self._closed else "belongs to another event loop"
            raise ForebayError(f"this client {reason}; open another one, and ask it for a job by its id")
        return loop

    def _commit_pending(self) -> None:
        batch, self._pending = self._pending, []
        assert self._loop is not None  # noqa: S101 - a submit has set it
        work = self._loop.run_in_executor(self._submits, self._commit, [prepare for prepare, _ in batch])
        work.add_done_callback(partial(self._deliver, [done for _, done in batch]))

    def _commit(self, batch: Sequence[Prepare]) -> list[Submitted | Exception]:
        """Called in the committing thread. A submit that cannot be prepared fails alone."""
        found: list[Submitted | Exception | None] = []
        submissions: list[Submission] = []
        for prepare in batch:
            try:
                submissions.append(prepare())
                found.append(None)
            except Exception as error:  # noqa: BLE001 - handed to its caller
                found.append(error)
        made = iter(self._submitter.submit_all(submissions))
        return [next(made) if result is None else result for result in found]

    def _deliver(self, waiting: Sequence[asyncio.Future[Submitted]], work: asyncio.Future[Any]) -> None:
        error = work.exception()
        results: Sequence[Submitted | BaseException] = work.result() if error is None else [error] * len(waiting)
        for done, result in zip(waiting, results, strict=True):
            if done.done():  # nobody waits for it any more; the jobs are durable all the same
                continue
            if isinstance(result, BaseException):
                done.set_exception(result)
            else:
                done.set_result(result)
        if self._pending:
            self._commit_pending()
        elif self._committing is not None:
            self._committing.set_result(None)
            self._committing = None

    def _wake(self, waiters: Waiters, _: object) -> None:
        """Called by the watcher's thread for each job that has ended: the loop is woken once for all of a moment."""
        self._woken.append(waiters)
        if not self._waking:
            self._waking = True
            assert self._loop is not None  # noqa: S101 - whoever waits has set it
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        self._waking = False  # before the deque is emptied: what comes from now on asks for a turn of its own
        while self._woken:
            for waiter in list(self._woken.popleft()):
                if not waiter.done():
                    waiter.set_result(None)
