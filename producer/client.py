"""Client: the door for users. Checks what it is given, makes jobs durable, and hands out Job handles.

Everything a submit can refuse it refuses before anything is stored. Knows the ledger and the queue; loads no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, new_ids
from forebay.contract.payload import pack_input
from forebay.contract.queues import Resources, route
from forebay.contract.references import ModelRef, shown
from forebay.producer.job import Job, deadline_at
from forebay.producer.looking import Looking
from forebay.producer.models import check_metadata
from forebay.producer.submit import check_key, keys_for
from forebay.producer.terms import Deadline, Terms, request_hash
from forebay.storage.datasets import require_pyarrow
from forebay.storage.records import NewJob


class Client(Looking):
    """Submits jobs and reads results. Thread-safe; a context manager; one per process is enough."""

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

    def _new_job(self, terms: Terms, id: str, key: str | None, payload: tuple[bytes, int]) -> NewJob:
        data, rows = payload
        inline, ref = self._payloads.store(data)
        return NewJob(
            id, JobKind.PREDICT, terms.model.name, terms.model.version, terms.queue, terms.priority, terms.max_attempts,
            rows, terms.deadline_at, self.id, key, request_hash(terms, data) if key else None, terms.metadata, None,
            inline, ref,
        )  # fmt: skip

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


def _several(inputs: Any) -> Iterable[Any]:
    try:
        if not isinstance(inputs, str | bytes | Mapping):
            several: Iterable[Any] = iter(inputs)
            return several
    except TypeError:  # nothing to iterate over, or an array without a dimension
        pass
    raise InvalidInput(f"predict_many takes a sequence of inputs, got one {type(inputs).__name__}; use predict")
