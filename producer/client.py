"""Client: the door for users. Checks what it is given, makes jobs durable, and hands out Job handles.

Everything a submit can refuse it refuses before anything is stored. Knows the ledger and the queue; loads no model.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog

from forebay.contract.celery_app import connect_redis, make_app
from forebay.contract.dispatch import Dispatcher
from forebay.contract.errors import BrokerUnavailable, ForebayError, InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState, QueueInfo, new_ids
from forebay.contract.messages import Envelope, Ticket
from forebay.contract.model import ModelVersion
from forebay.contract.payload import pack_input
from forebay.contract.queues import Resources, route
from forebay.contract.references import ModelRef, check_job_id, shown
from forebay.contract.settings import Settings
from forebay.producer.job import Job, deadline_at
from forebay.producer.models import Models, check_metadata
from forebay.producer.room import Room
from forebay.producer.submit import Submitter, check_key, keys_for
from forebay.producer.watcher import Watcher
from forebay.storage.batches import BatchStore
from forebay.storage.blobs import BlobStore
from forebay.storage.datasets import require_pyarrow
from forebay.storage.jobs import JobStore
from forebay.storage.ledger import Ledger
from forebay.storage.models import ModelRegistry
from forebay.storage.payloads import Payloads
from forebay.storage.records import NewJob
from forebay.storage.workers import WorkerRegistry

log = structlog.get_logger()

Deadline = float | timedelta | datetime


@dataclass(frozen=True, slots=True)
class Terms:
    """What a submit asks for beside its inputs, checked."""

    model: ModelVersion
    queue: str
    priority: int
    deadline_at: float | None
    max_attempts: int
    idempotency_key: str | None
    metadata: Mapping[str, Any]
    batched: bool


class Client:
    """Submits jobs and reads results. Thread-safe; a context manager; one per process is enough."""

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
        self._registry = ModelRegistry(self._ledger)
        self._workers = WorkerRegistry(self._ledger)
        blobs = BlobStore(self.settings.blobs)
        self._payloads = Payloads(blobs, self.settings)
        self._dispatcher = Dispatcher(app)
        self._submitter = Submitter(self._store, self._dispatcher)
        self._room = Room(self._store, self.settings.queues)
        self._watcher = Watcher(self._store, connect_redis(self.settings), self.id)
        self.models = Models(self._registry, blobs, self._ask_to_load)
        self._app = app

    def __enter__(self) -> Client:
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

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        priority: int = 5,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        batched: bool = False,
    ) -> Job:
        """Submit one job and return once it is durable.

        `model` is `name`, `name/3` or `name@alias`, resolved now. `inputs` is one sample (or a batch of them, with
        `batched`): a NumPy array or torch tensor, str, bytes, a number, or a dict or list of those. `priority` runs from 0
        (first) to 9, `deadline` is seconds from now, a timedelta or an aware datetime. The same `idempotency_key` and
        request give the existing job. Raises InvalidInput, PayloadTooLarge, ModelNotFound, NoQueueFits, QueueFull or
        LedgerUnavailable, and then nothing was stored.
        """
        terms = self._terms(model, priority, queue, deadline, max_attempts, idempotency_key, metadata, batched)
        return self._submit(terms, [self._packed(terms, inputs, "")])[0]

    def predict_many(
        self,
        model: str,
        inputs: Iterable[Any],
        *,
        priority: int = 5,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 3,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        batched: bool = False,
    ) -> list[Job]:
        """Submit one job per input, all or none, in one transaction; the handles come in the order of the inputs.

        Takes what `predict` takes; job i of an `idempotency_key` has the key `key:i`. Errors name the input's index.
        """
        terms = self._terms(model, priority, queue, deadline, max_attempts, idempotency_key, metadata, batched)
        packed = [self._packed(terms, value, f"inputs[{i}]: ") for i, value in enumerate(_several(inputs))]
        return self._submit(terms, packed) if packed else []

    def batch(
        self,
        model: str,
        input: str | Path | Sequence[str | Path],
        output: str | Path,
        *,
        columns: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        keep: str | Sequence[str] | None = None,
        format: str | None = None,
        shard_rows: int | None = None,
        error_threshold: int | float | None = None,
        priority: int = 7,
        queue: str | None = None,
        deadline: Deadline | None = None,
        max_attempts: int = 5,
        idempotency_key: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Job:
        """Run a model over a data set and write another one; returns once the batch is durable, its shards run on workers.

        `input` is a path, glob, folder or URL, or several: Parquet, Arrow, .npy, CSV, JSON lines, images. `output` is a folder
        that is empty, or has the same request's unfinished batch, which then goes on. `columns` names what goes into the model:
        a column, several numeric ones that make a vector, or `{input: column}`. `keep` are columns copied to the output; without
        any it has each row's place. `error_threshold` fails the batch when more rows fail: a number of rows or a share.
        `result()` gives the manifest. Raises InvalidInput, naming file, column, expected and found, MissingExtra, and what
        `predict` raises; then nothing was stored.
        """
        require_pyarrow()
        from forebay.producer import batches

        terms = self._terms(
            model, priority, queue, deadline, max_attempts, idempotency_key, metadata, False, JobKind.BATCH
        )
        request = batches.make_request(
            terms.model, input, output, columns=columns, keep=keep, format=format, shard_rows=shard_rows,
            error_threshold=error_threshold,
        )  # fmt: skip
        return batches.submit(self, terms, request)

    def job(self, id: str) -> Job:
        """The handle of an existing job; JobNotFound when there is none of this id."""
        known = self._watcher.find(check_job_id(id))
        if known is not None:
            return known
        self._store.get(id)
        [job] = self._watcher.adopt([Job(self, id)])
        self._watcher.read([id])
        return job

    def jobs(
        self,
        *,
        state: str | Sequence[str] | None = None,
        kind: str | None = None,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[JobInfo]:
        """The newest jobs that meet every filter, newest first; the last one's id as `before` gives the next page.

        `model` is a name, `name/3` or `name@alias`; `metadata` matches the jobs that carry these values.
        """
        states = [state] if isinstance(state, str) or not isinstance(state, Iterable) else list(state)
        name, version = self._model_filter(model)
        if type(limit) is not int or not 1 <= limit <= 10_000:
            raise InvalidInput(f"limit {shown(limit)} is not a whole number from 1 to 10000")
        return self._store.find(
            state=[_word(JobState, s, "state") for s in states if s is not None],
            kind=_word(JobKind, kind, "kind") if kind is not None else None,
            model=name,
            version=version,
            metadata=check_metadata(metadata),
            limit=limit,
            before=check_job_id(before) if before is not None else None,
        )

    def retry_failed(self, model: str | None = None, *, dry_run: bool = False) -> int:
        """Queue every failed and expired job afresh, those of `model` only when it is given; how many.

        Like `Job.retry` for each: same ids, attempts start anew, deadlines are gone. Jobs that succeeded or were canceled are
        not touched. It goes through the ledger once, some thousands of jobs to a transaction; jobs that fail again meanwhile
        are left alone. With `dry_run` they are only counted. What Redis does not take is sent by a later sweep.
        """
        name, version = self._model_filter(model)
        if dry_run:
            return self._store.count_failed(model=name, version=version)
        count, redis_answers = 0, True
        after_id: str | None = ""
        while after_id is not None:
            tickets, after_id = self._store.retry_failed(model=name, version=version, after_id=after_id)
            for known in (self._watcher.find(ticket.id) for ticket in tickets):
                if known is not None:
                    known._forget_outcome()
            if redis_answers:
                redis_answers = self._send(tickets)
            else:  # one wait for it is enough
                self._store.mark_unsent([ticket.id for ticket in tickets])
            count += len(tickets)
        return count

    def _model_filter(self, model: str | None) -> tuple[str | None, int | None]:
        """`name`, `name/3` or `name@alias` as the name and version to look for."""
        if model is None:
            return None, None
        ref = ModelRef.parse(model)
        return ref.name, self._registry.get(ref).version if ref.alias else ref.version

    def queues(self) -> list[QueueInfo]:
        """Every declared queue: how many jobs wait, may wait and run, the age of the oldest, its workers and capacity."""
        depths = self._store.depths()
        workers = self._workers.alive(3 * self.settings.heartbeat_s)
        return [
            QueueInfo(
                name,
                *depths.get(name, (0, None, 0)),
                tuple(w.name for w in workers if name in w.queues),
                spec.capacity.as_dict(),
                spec.max_queue_size,
            )
            for name, spec in self.settings.queues.items()
        ]

    def _terms(
        self,
        model: str,
        priority: int,
        queue: str | None,
        deadline: Deadline | None,
        max_attempts: int,
        idempotency_key: str | None,
        metadata: Mapping[str, Any] | None,
        batched: bool,
        kind: JobKind = JobKind.PREDICT,
    ) -> Terms:
        version = self._registry.resolve(ModelRef.parse(model))
        if type(priority) is not int or not 0 <= priority <= 9:
            raise InvalidInput(f"priority {shown(priority)} is not a whole number from 0 (first) to 9")
        if type(max_attempts) is not int or not 1 <= max_attempts <= 100:
            raise InvalidInput(f"max_attempts {shown(max_attempts)} is not a whole number from 1 to 100")
        if queue is not None and not isinstance(queue, str):
            raise InvalidInput(f"queue {shown(queue)} is not the name of a queue")
        where = route(self.settings.queues, Resources.parse(version.resources), kind, queue)
        ends = deadline_at(deadline, self._ledger.now())
        return Terms(
            version, where, priority, ends, max_attempts, check_key(idempotency_key), check_metadata(metadata), batched
        )

    def _packed(self, terms: Terms, value: Any, where: str) -> tuple[bytes, int]:
        signature = terms.model.signature
        try:
            rows = signature.rows(value) if terms.batched else [signature.row(value)]
            data = pack_input(rows, terms.batched)
            self._payloads.check(data)
        except InvalidInput as error:
            raise type(error)(f"{where}model {terms.model.ref}: {error}") from error
        except Exception as error:
            raise InvalidInput(
                f"{where}model {terms.model.ref}: the input cannot be read: {type(error).__name__} {shown(str(error))}"
            ) from error
        return data, len(rows)

    def _submit(self, terms: Terms, packed: Sequence[tuple[bytes, int]]) -> list[Job]:
        maximum = self._room.take(terms.queue, len(packed), keyed=terms.idempotency_key is not None)
        ids = new_ids(len(packed))
        keys = keys_for(terms.idempotency_key, len(packed))
        jobs = [self._new_job(terms, *args) for args in zip(ids, keys, packed, strict=True)]
        return self._submit_jobs(jobs, terms, maximum)

    def _submit_jobs(self, jobs: Sequence[NewJob], terms: Terms, maximum: int | None) -> list[Job]:
        self._watcher.start()
        ids = [job.id for job in jobs]
        # The handles come first: a quick worker announces a job before `submit` has returned.
        handles = self._watcher.adopt(Job(self, id) for id in ids)
        stored = self._submitter.submit(jobs, terms.model.max_batch_size, terms.model.batch_wait_timeout_s, maximum)
        if stored != ids:  # an idempotency key was met before
            handles = self._watcher.adopt(Job(self, id) for id in stored)
            self._watcher.read(id for id, new in zip(stored, ids, strict=True) if id != new)
        return handles

    def _new_job(self, terms: Terms, id: str, key: str | None, payload: tuple[bytes, int]) -> NewJob:
        data, rows = payload
        inline, ref = self._payloads.store(data)
        return NewJob(
            id, JobKind.PREDICT, terms.model.name, terms.model.version, terms.queue, terms.priority, terms.max_attempts,
            rows, terms.deadline_at, self.id, key, _request_hash(terms, data) if key else None, terms.metadata, None,
            inline, ref,
        )  # fmt: skip

    def _ask_to_load(self, model: ModelVersion) -> list[str]:
        """An envelope without ids for each worker of the version's queue: there is nothing to run, so it is only loaded."""
        queue = route(self.settings.queues, Resources.parse(model.resources), JobKind.PREDICT, None)
        workers = [w.name for w in self._workers.alive(3 * self.settings.heartbeat_s) if queue in w.queues]
        self._dispatcher.send([Envelope(model.name, model.version, queue, 0, ())] * len(workers))
        return workers

    def _send(self, tickets: Sequence[Ticket]) -> bool:
        """Send jobs that are queued already; False when Redis is away: the sweeper does it then."""
        try:
            self._dispatcher.send_tickets(tickets)
        except BrokerUnavailable as error:
            log.warning("send_failed", jobs=len(tickets), error=str(error))
            self._store.mark_unsent([t.id for t in tickets])
            return False
        return True

    def _why_late(self, id: str, timeout: float) -> str:
        try:
            info = self._store.get(id)
            served = any(info.queue in w.queues for w in self._workers.alive(3 * self.settings.heartbeat_s))
        except ForebayError as error:
            return f"job {id} has not ended after {timeout:g} s, and the ledger does not answer: {error}"
        hint = "" if served else f"; no worker serves queue {info.queue!r} now: start one with `forebay worker`"
        return f"job {id} is {info.state} after {timeout:g} s and goes on{hint}"


def _several(inputs: Any) -> Iterable[Any]:
    try:
        if not isinstance(inputs, str | bytes | Mapping):
            several: Iterable[Any] = iter(inputs)
            return several
    except TypeError:  # nothing to iterate over, or an array without a dimension
        pass
    raise InvalidInput(f"predict_many takes a sequence of inputs, got one {type(inputs).__name__}; use predict")


def _request_hash(terms: Terms, data: bytes) -> str:
    """What makes two requests the same: the model version, the input, and how it is to be run."""
    about = f"{terms.model.ref} {terms.queue} {terms.priority} {terms.max_attempts} {sorted(terms.metadata.items())}"
    return hashlib.sha256(about.encode() + b"\0" + data).hexdigest()


def _word(kind: Any, value: Any, what: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InvalidInput(f"no {what} is called {shown(value)}; there are {', '.join(kind)}") from None
