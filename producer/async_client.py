"""AsyncClient: the names of Client, awaited, for programs with an event loop. It stands on a Client of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Iterable
from copy import copy
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Protocol, Self, TypeVar, Unpack

from forebay.contract.errors import ForebayError, ResultTimeout
from forebay.contract.history import JobEvent
from forebay.contract.job import JobInfo, JobState
from forebay.contract.model import Model
from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.producer.event_loop import EventLoopBridge
from forebay.producer.handles.job import Job
from forebay.producer.models import Models
from forebay.producer.options import PredictOptions
from forebay.producer.retraining import Retraining
from forebay.producer.submit import Submitter

P = ParamSpec("P")
T = TypeVar("T")
B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)


class Wraps(Protocol[B_co]):
    """An object whose methods are those of a blocking one, awaited."""

    @property
    def sync(self) -> B_co: ...
    @property
    def _bridge(self) -> EventLoopBridge: ...


def _awaited(method: Callable[Concatenate[B, P], T]) -> Callable[Concatenate[Wraps[B], P], Coroutine[Any, Any, T]]:
    """The blocking method, called in a thread."""

    @wraps(method)
    async def call(self: Wraps[B], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._bridge.call(method, self.sync, *args, **kwargs)

    return call


def _submitted(
    method: Callable[Concatenate[B, P], Job],
) -> Callable[Concatenate[Wraps[B], P], Coroutine[Any, Any, AsyncJob]]:
    """The same of one that gives a job's handle."""

    @wraps(method)
    async def call(self: Wraps[B], /, *args: P.args, **kwargs: P.kwargs) -> AsyncJob:
        return AsyncJob(self._bridge, await self._bridge.call(method, self.sync, *args, **kwargs))

    return call


class AsyncJob:
    """A submitted job; `await job` gives its result. `sync` is the blocking handle, of the job's kind."""

    __slots__ = ("_bridge", "sync")

    def __init__(self, bridge: EventLoopBridge, job: Job) -> None:
        self._bridge = bridge
        self.sync = job

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id}>"

    @property
    def id(self) -> str:
        """The job's id."""
        return self.sync.id

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    async def info(self) -> JobInfo:
        """The job's row in the ledger now; JobNotFound when retention has deleted it."""
        return await self._bridge.call(self.sync.info)

    async def history(self) -> list[JobEvent]:
        """What happened to the job, oldest first; JobNotFound like `info`."""
        return await self._bridge.call(self.sync.history)

    async def state(self) -> JobState:
        """The job's state now."""
        return await self._bridge.call(lambda: self.sync.state)

    async def done(self) -> bool:
        """Whether the job has reached a final state."""
        return (await self.state()).final

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the job has ended; False when it has not within `timeout` seconds. Costs no thread and no connection."""
        return await self._bridge.has_ended(self.sync, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """The job's result, as `Job.result` gives it; ResultTimeout when it has not come after `timeout` seconds."""
        await self._ended(timeout)
        if self.sync.has_inline_result:
            return self.sync.result(0)
        return await self._bridge.call(self.sync.result, 0)

    async def exception(self, timeout: float | None = None) -> ForebayError | None:
        """Why there is no result, or None when there is one; waits like `result`."""
        await self._ended(timeout)
        return self.sync.exception(0)

    async def cancel(self) -> JobState:
        """Cancel the job, as `Job.cancel` does; the state it is in afterwards says what came of it."""
        return await self._bridge.call(self.sync.cancel)

    async def retry(self) -> Self:
        """Queue a failed, canceled or expired job again, under the same id; IllegalTransition for any other."""
        await self._bridge.call(self.sync.retry)
        return self

    async def _ended(self, timeout: float | None) -> None:
        if not await self._bridge.has_ended(self.sync, timeout):
            raise ResultTimeout(await self._bridge.call(self.sync.why_late, timeout or 0.0))


class AsyncModels:
    """`client.models`, awaited."""

    def __init__(self, bridge: EventLoopBridge, models: Models) -> None:
        self._bridge = bridge
        self.sync = models

    register = _awaited(Models.register)
    get = _awaited(Models.get)
    example = _awaited(Models.example)
    list = _awaited(Models.list)
    search = _awaited(Models.search)
    evaluations = _awaited(Models.evaluations)
    reference = _submitted(Models.reference)
    drift = _awaited(Models.drift)
    set_alias = _awaited(Models.set_alias)
    drop_alias = _awaited(Models.drop_alias)
    delete = _awaited(Models.delete)
    warm = _awaited(Models.warm)
    benchmarks = _awaited(Models.benchmarks)
    benchmark = _submitted(Models.benchmark)
    convert = _submitted(Models.convert)
    compress = _submitted(Models.compress)


class AsyncRetraining:
    """`client.retraining`, awaited."""

    def __init__(self, bridge: EventLoopBridge, retraining: Retraining) -> None:
        self._bridge = bridge
        self.sync = retraining

    add = _awaited(Retraining.add)
    list = _awaited(Retraining.list)
    remove = _awaited(Retraining.remove)


class AsyncClient:
    """Submits jobs and reads results from an event loop, asyncio's or uvloop's; `async with` closes it.

    The names and options are those of Client, awaited. What one turn of the loop submits, and what arrives while the ledger
    commits, shares a commit and a message. One per process is enough, and it belongs to the loop that first uses it.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        home: str | Path | None = None,
        broker: str | None = None,
        database: str | None = None,
    ) -> None:
        """Open what Client opens, with the same errors."""
        self.sync = Client(settings, home=home, broker=broker, database=database)
        self._submitter = Submitter(self.sync.session)
        self._bridge = EventLoopBridge(self.sync.session, self._submitter)
        self.models = AsyncModels(self._bridge, self.sync.models)
        self.retraining = AsyncRetraining(self._bridge, self.sync.retraining)

    @property
    def settings(self) -> Settings:
        """The settings that it was opened with."""
        return self.sync.settings

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection once everything submitted has been sent; jobs go on."""
        await self._bridge.close(self.sync.close)

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a blocking function gives, such as a method of `client.sync`: run in one of this client's few threads."""
        return await self._bridge.call(function, *args, **kwargs)

    def submitting_for(self, submitted_by: str) -> AsyncClient:
        """This client, noting in each job who submitted it."""
        other = copy(self)
        other.sync = self.sync.submitting_for(submitted_by)
        other.models = AsyncModels(self._bridge, other.sync.models)
        other.retraining = AsyncRetraining(self._bridge, other.sync.retraining)
        other._submitter = Submitter(self.sync.session, submitted_by)
        other.models = AsyncModels(self._bridge, other.sync.models)
        return other

    def stop_waiting(self) -> None:
        """End every wait for a job as if its time had run out, and later ones at once: for a program that has to end soon."""
        self._bridge.stop_waiting()

    async def predict(self, model: Model, inputs: Any, **options: Unpack[PredictOptions]) -> AsyncJob:
        """Submit one job and return once it is durable; raises what `Client.predict` raises.

        A task that is canceled while it waits for this takes nothing back: the job may have been stored.
        """
        [job] = await self._bridge.submit(partial(self._submitter.prepare_one, model, inputs, options))
        return AsyncJob(self._bridge, job)

    async def predict_many(
        self, model: Model, inputs: Iterable[Any], **options: Unpack[PredictOptions]
    ) -> list[AsyncJob]:
        """Submit one job per input, all or none, in one transaction; the handles come in the order of the inputs."""
        prepare = partial(self._submitter.prepare_many, model, inputs, options)
        return [AsyncJob(self._bridge, job) for job in await self._bridge.submit(prepare)]

    async def job(self, id: str) -> AsyncJob:
        """The handle of an existing job; JobNotFound when there is none of this id."""
        return AsyncJob(self._bridge, await self._bridge.call(self._open, id))

    def _open(self, id: str) -> Job:
        self.sync.session.watcher.start()  # it may wait for Redis, which the loop must not
        return self.sync.job(id)

    batch = _submitted(Client.batch)
    train = _submitted(Client.train)
    evaluate = _submitted(Client.evaluate)
    tune = _submitted(Client.tune)
    explain = _submitted(Client.explain)
    jobs = _awaited(Client.jobs)
    retry_failed = _awaited(Client.retry_failed)
    queues = _awaited(Client.queues)
