"""Job: the handle a client holds on a submitted job. Many handles share one watcher; a handle keeps no connection."""

from __future__ import annotations

import asyncio
import concurrent.futures as futures
import datetime as dt
import threading
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from forebay.contract.errors import (
    ForebayError,
    InvalidInput,
    JobCanceled,
    JobExpired,
    JobFailed,
    LedgerUnavailable,
    ResultTimeout,
)
from forebay.contract.history import JobEvent, history
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.references import shown
from forebay.contract.requests.batch import BatchProgress
from forebay.contract.wire import codec
from forebay.storage.batches.views import BatchErrors, BatchViews
from forebay.storage.jobs.records import Outcome
from forebay.storage.training.records import Checkpoint, Run, evaluation_of

if TYPE_CHECKING:
    from forebay.producer.looking import Looking

LAST_DEADLINE_S = 10 * 365 * 86400.0


class Job:
    """A submitted job. Its methods ask the ledger; they raise LedgerUnavailable when it does not answer."""

    __slots__ = ("__weakref__", "_client", "_future", "_lock", "_outcome", "id")

    def __init__(self, client: Looking, id: str) -> None:
        self.id = id
        self._client = client
        self._outcome: Outcome | None = None
        self._future: futures.Future[Outcome] | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def info(self) -> JobInfo:
        """The job's row in the ledger now; JobNotFound when retention has deleted it."""
        return self._client._store.get(self.id)

    def logs(self) -> list[JobEvent]:
        """What happened to the job, oldest first: queued, claimed, lost, retried, ended; JobNotFound like `info`."""
        store = self._client._store
        return history(store.get(self.id), store.past(self.id))

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
            return self._watched(timeout)
        try:
            self._ended(timeout)
        except ResultTimeout:
            return False
        return True

    def _watched(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.following import watch_training
        from forebay.producer.waiting.progress import watch, watch_batch

        kind = self.info().kind
        if kind is JobKind.TRAIN:
            return watch_training(self, timeout)
        return watch_batch(self, timeout) if kind is JobKind.BATCH else watch([self], timeout)

    @property
    def progress(self) -> BatchProgress:
        """How far a batch job is: rows, shards, rows/s, the time that is left."""
        return self._client._batches.progress(self.id)

    @property
    def request_counts(self) -> dict[str, int]:
        """A batch job's rows: total (planned so far), completed and failed."""
        return self.progress.request_counts

    @property
    def errors(self) -> BatchErrors:
        """Why rows of a batch job's finished shards failed, and whole shards: kinds of errors, each with a few samples."""
        return BatchViews(self._client._ledger).errors(self.id)

    @property
    def run(self) -> Run:
        """A training job's run so far: request, data, steps, and in the end metrics and verdict; JobNotFound before it has
        begun, and for other jobs.
        """  # fmt: skip
        return self._client._training.run(self.id)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The saved states of a training job, the newest first: where a later attempt, or a retry, goes on."""
        return self._client._training.checkpoints(self.id)

    def metrics(self, after: int = -1) -> list[dict[str, Any]]:
        """What a training job measured after step `after`, in the order of the steps: `step`, `epoch`, `split` (train, validation
        or test), `at`, `rows_per_s`, and the metrics by name, such as `loss`. A list of rows is what pandas, polars and csv take.
        """
        return [
            {"step": m.step, "epoch": m.epoch, "split": m.split, "at": m.at, "rows_per_s": m.rows_per_s, **m.values}
            for m in self._client._training.curve(self.id, after=after)
        ]

    def result(self, timeout: float | None = None) -> Any:
        """The job's result: the output's value, or `{name: value}` for several outputs; arrays as NumPy arrays. A batch job's
        is the manifest of its output, with the counts of its rows; a training job's the new ModelVersion; an evaluation's an
        Evaluation.

        Waits up to `timeout` seconds (None: for ever). JobFailed, JobCanceled or JobExpired say how else it ended;
        ResultTimeout that it has not: the job goes on, and `result` may be called again.
        """
        error = self.exception(timeout)
        if error is not None:
            raise error
        outcome = self._ended(timeout)
        value = codec.decode(self._client._payloads.load(outcome.result, outcome.result_ref))
        if outcome.kind is JobKind.TRAIN:
            return self._client.models.get(f"{value['model']}/{value['version']}")
        return evaluation_of(value) if outcome.kind is JobKind.EVALUATE else value

    def exception(self, timeout: float | None = None) -> ForebayError | None:
        """Why there is no result, or None when there is one; waits like `result`."""
        outcome = self._ended(timeout)
        if outcome.state is JobState.CANCELED:
            return JobCanceled(f"job {self.id} was canceled")
        if outcome.state is JobState.EXPIRED:
            return JobExpired(f"job {self.id} did not start before its deadline")
        if outcome.state is JobState.FAILED and outcome.error is not None:
            kind, reason = outcome.error.type, outcome.error.message
            where = f"attempt {outcome.attempt} on {outcome.worker}"
            return JobFailed(f"job {self.id} failed ({where}): {kind}: {reason}", type=kind, reason=reason)
        return None

    def cancel(self) -> JobState:
        """Cancel the job; the state it is in afterwards says what came of it.

        `canceled`: it still waited, or it is a batch, and is over; a batch's running shards are asked to stop. `running`: its
        worker was asked to stop, and does so between two batches; the job is then canceled, or it has succeeded or failed if
        it was quicker (`wait` for it to know). Else it had ended before.
        """
        self._client._store.cancel([self.id])
        return self.state

    def retry(self) -> Job:
        """Queue a failed, canceled or expired job afresh, under the same id; IllegalTransition for any other.

        A batch does what is missing, a training job goes on from its last checkpoint.
        """
        routed_job = self._client._store.retry(self.id)
        self._forget_outcome()
        self._client._send([routed_job])
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        return self._async_result().__await__()

    async def _async_result(self) -> Any:
        await asyncio.wrap_future(self._promise())
        return self.result(0)

    def _ended(self, timeout: float | None) -> Outcome:
        if self._outcome is not None:
            return self._outcome
        try:
            return self._promise().result(_finite(timeout))
        except (TimeoutError, futures.TimeoutError):
            return self._ended_unannounced() or self._late(timeout or 0.0)

    def _ended_unannounced(self) -> Outcome | None:
        with suppress(LedgerUnavailable):
            self._client._watcher.read([self.id])
        return self._outcome

    def _late(self, timeout: float) -> NoReturn:
        raise ResultTimeout(self._client._why_late(self.id, timeout)) from None

    def _promise(self) -> futures.Future[Outcome]:
        with self._lock:
            if self._future is None:
                self._future = futures.Future()
                self._future.set_running_or_notify_cancel()  # one who gives up awaiting must not cancel it for all
                if self._outcome is not None:
                    self._future.set_result(self._outcome)
            future = self._future
        if not future.done():
            self._client._watcher.expect(self)
        return future

    def _forget_outcome(self) -> None:
        """It was queued afresh."""
        with self._lock:
            self._outcome, self._future = None, None

    def _deliver(self, outcome: Outcome) -> None:
        """Called by the watcher with the job's final state."""
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = outcome
            if self._future is not None and not self._future.done():
                self._future.set_result(outcome)


class Waited(NamedTuple):
    """What `wait` gives: the jobs that have ended, and those that have not."""

    done: set[Job]
    not_done: set[Job]


def as_completed(jobs: Collection[Job], timeout: float | None = None) -> Iterator[Job]:
    """The jobs in the order in which they end; ResultTimeout when some have not after `timeout` seconds."""
    by_future = {job._promise(): job for job in jobs}
    try:
        for future in futures.as_completed(by_future, _finite(timeout)):
            yield by_future[future]
    except futures.TimeoutError:
        late = sum(not f.done() for f in by_future)
        raise ResultTimeout(f"{late} of {len(by_future)} jobs have not ended after {timeout:g} s; they go on") from None


_RETURN_WHEN = {"all": futures.ALL_COMPLETED, "any": futures.FIRST_COMPLETED}


def wait(jobs: Sequence[Job], timeout: float | None = None, return_when: Literal["all", "any"] = "all") -> Waited:
    """Wait until all jobs, or any, have ended, or `timeout` seconds have passed; which have and which have not."""
    if return_when not in _RETURN_WHEN:
        raise InvalidInput(f"return_when={return_when!r}: write 'all' or 'any'")
    by_future = {job._promise(): job for job in jobs}
    done, late = futures.wait(by_future, _finite(timeout), _RETURN_WHEN[return_when])
    return Waited({by_future[f] for f in done}, {by_future[f] for f in late})


def deadline_at(value: Any, now: float) -> float | None:
    """A deadline given as seconds from now, a timedelta or an aware datetime, in seconds since the epoch."""
    if value is None:
        return None
    if isinstance(value, dt.timedelta):
        value = value.total_seconds()
    if isinstance(value, dt.datetime):
        if value.utcoffset() is None:
            raise InvalidInput(f"deadline {value} has no time zone; use datetime.now(UTC) + …, or seconds from now")
        value = value.timestamp() - time.time()
    if not isinstance(value, int | float) or isinstance(value, bool) or value != value:
        raise InvalidInput(f"deadline {shown(value)}: give seconds from now, a timedelta or an aware datetime")
    if value <= 0:
        raise InvalidInput(f"the deadline is {shown(-value)} s in the past; nothing could start in time")
    if value > LAST_DEADLINE_S:
        raise InvalidInput(f"deadline {shown(value)} s: give at most {LAST_DEADLINE_S:g} s (ten years), or none at all")
    return now + float(value)


def _finite(timeout: float | None) -> float | None:
    """`timeout`, or None for one that is too long for the operating system to count."""
    return None if timeout is None or timeout >= threading.TIMEOUT_MAX else timeout
