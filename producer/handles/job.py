"""Job: the handle that a client holds on a submitted job. Many handles share one watcher; a handle keeps no connection."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Self

from forebay.contract.errors import (
    ForebayError,
    JobCanceled,
    JobExpired,
    JobFailed,
    LedgerUnavailable,
    ResultTimeout,
)
from forebay.contract.history import JobEvent, history
from forebay.contract.job import JobInfo, JobState
from forebay.contract.wire import codec
from forebay.producer.session import Session, load_payload
from forebay.producer.waiting.futures import countable
from forebay.storage.jobs.records import Outcome

_lock = threading.Lock()  # one for all handles: it is held for an instant, and one each would cost every submit
# A forked process finds it free, whatever other threads were doing.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class Job:
    """A submitted job. Its methods ask the ledger; they raise LedgerUnavailable when it does not answer."""

    __slots__ = ("__weakref__", "_future", "_outcome", "_session", "client", "id")

    def __init__(self, session: Session, id: str, client: str = "") -> None:
        self.id = id
        self.client = client
        self._session = session
        self._outcome: Outcome | None = None
        self._future: Future[Outcome] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    def info(self) -> JobInfo:
        """The job's row in the ledger now; JobNotFound when retention has deleted it."""
        return self._session.jobs.queries.get(self.id)

    def history(self) -> list[JobEvent]:
        """What happened to the job, oldest first: queued, claimed, lost, retried, ended; JobNotFound like `info`."""
        jobs = self._session.jobs
        return history(jobs.queries.get(self.id), jobs.queries.past_attempts(self.id))

    @property
    def state(self) -> JobState:
        """The job's state now."""
        return self._outcome.state if self._outcome is not None else self.info().state

    def done(self) -> bool:
        """Whether the job has reached a final state."""
        return self.state.final

    def wait(self, timeout: float | None = None, progress: bool = False) -> bool:
        """Wait until the job has ended; False when it has not within `timeout` seconds. Draws a bar with `progress`."""
        if progress:
            return self._wait_with_progress(timeout)
        try:
            self._wait_for_outcome(timeout)
        except ResultTimeout:
            return False
        return True

    def result(self, timeout: float | None = None) -> Any:
        """The job's result: the output's value, or `{name: value}` for several outputs; arrays as NumPy arrays.

        Waits up to `timeout` seconds (None: for ever). JobFailed, JobCanceled or JobExpired say how else it ended;
        ResultTimeout that it has not: the job goes on, and `result` may be called again.
        """
        return self._value(timeout)

    def exception(self, timeout: float | None = None) -> ForebayError | None:
        """Why there is no result, or None when there is one; waits like `result`."""
        outcome = self._wait_for_outcome(timeout)
        if outcome.state is JobState.CANCELED:
            return JobCanceled(f"job {self.id} was canceled")
        if outcome.state is JobState.EXPIRED:
            return JobExpired(f"job {self.id} did not start before its deadline")
        if outcome.state is JobState.FAILED and outcome.error is not None:
            kind, reason = outcome.error.type, outcome.error.message
            where = f"attempt {outcome.attempt}" + (f" on {outcome.worker}" if outcome.worker else "")
            return JobFailed(f"job {self.id} failed ({where}): {kind}: {reason}", type=kind, reason=reason)
        return None

    def cancel(self) -> JobState:
        """Cancel the job; the state it is in afterwards says what came of it.

        `canceled`: it still waited, or it is a batch, and is over; a batch's running shards are asked to stop. `running`: its
        worker was asked to stop, and does so between two batches; the job is then canceled, or it has succeeded or failed if
        it was quicker (`wait` for it to know). Any other state: it had ended before.
        """
        return self._session.jobs.cancel_job(self.id) or self.state

    def retry(self) -> Self:
        """Queue a failed, canceled or expired job again, under the same id; IllegalTransition for any other.

        A batch does what is missing, a training job goes on from its last checkpoint.
        """
        routed_job = self._session.jobs.retry(self.id)
        self.clear_outcome()
        self._session.send([routed_job])
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        return self._async_result().__await__()

    def future(self) -> Future[Outcome]:
        """Done when the job has ended; for `as_completed` and `wait`. It cannot be canceled."""
        with _lock:
            if self._future is None:
                self._future = Future()
                self._future.set_running_or_notify_cancel()  # one who gives up awaiting must not cancel it for all
                if self._outcome is not None:
                    self._future.set_result(self._outcome)
            future = self._future
        if not future.done():
            self._session.watcher.poll_for(self)
        return future

    def set_outcome(self, outcome: Outcome) -> None:
        """Called by the watcher with the job's final state."""
        with _lock:
            if self._outcome is not None:
                return
            self._outcome = outcome
            future = self._future
        if future is not None:
            future.set_result(outcome)

    def clear_outcome(self) -> None:
        """Called when the job was queued again."""
        with _lock:
            self._outcome, self._future = None, None

    def forget_future(self) -> None:
        """Called in a forked process: the threads that wait for this future are the parent's."""
        self._future = None

    @property
    def has_inline_result(self) -> bool:
        """Whether the job is known to have ended, and `result` will have nothing to fetch."""
        return type(self) is Job and self._outcome is not None and self._outcome.result_ref is None

    def why_late(self, timeout: float) -> str:
        """What to tell whoever has waited `timeout` seconds in vain."""
        try:
            info = self.info()
            served = any(info.queue in worker.queues for worker in self._session.live_workers())
        except ForebayError as error:
            return f"job {self.id} has not ended after {timeout:g} s, and the ledger does not answer: {error}"
        hint = "" if served else f"; no worker serves queue {info.queue!r} now: start one with `forebay worker`"
        return f"job {self.id} is {info.state} after {timeout:g} s and goes on{hint}"

    async def _async_result(self) -> Any:
        await asyncio.wrap_future(self.future())
        return self.result(0)

    def _wait_with_progress(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.progress import watch

        return watch([self], timeout)

    def _value(self, timeout: float | None) -> Any:
        error = self.exception(timeout)
        if error is not None:
            raise error
        outcome = self._wait_for_outcome(timeout)
        return codec.decode(
            load_payload(self._session, f"the result of job {self.id}", outcome.result, outcome.result_ref)
        )

    def _wait_for_outcome(self, timeout: float | None) -> Outcome:
        if self._outcome is not None:
            return self._outcome
        try:
            return self.future().result(countable(timeout))
        except TimeoutError:
            outcome = self._ended_unannounced()
            if outcome is None:
                raise ResultTimeout(self.why_late(timeout or 0.0)) from None
            return outcome

    def _ended_unannounced(self) -> Outcome | None:
        with suppress(LedgerUnavailable):
            self._session.watcher.refresh([self.id])
        return self._outcome
