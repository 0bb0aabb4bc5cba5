"""The client's half that checks the terms of a submit, packs payloads, and makes jobs durable and sends them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.queues import Resources, route
from forebay.contract.references import ModelRef, shown
from forebay.contract.wire.payload import pack_input
from forebay.producer.handles.job import Job, deadline_at
from forebay.producer.looking import Looking
from forebay.producer.models import check_metadata
from forebay.producer.options import Deadline, Terms, request_hash
from forebay.producer.submit import check_key, keys_for
from forebay.storage.jobs.records import NewJob


class Submitting(Looking):
    """Turns what a user asks for into jobs. Thread-safe."""

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
        return self._terms_for(
            version, kind, priority, queue, deadline, max_attempts, idempotency_key, metadata, batched
        )

    def _terms_for(
        self,
        version: ModelVersion,
        kind: JobKind,
        priority: int,
        queue: str | None,
        deadline: Deadline | None,
        max_attempts: int,
        idempotency_key: str | None,
        metadata: Mapping[str, Any] | None,
        batched: bool = False,
    ) -> Terms:
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

    def _submit_request(self, terms: Terms, kind: JobKind, data: bytes, fingerprint: str, id: str | None = None) -> Job:
        """One job whose payload is a request, which `fingerprint` tells from others."""
        maximum = self._room.take(terms.queue, 1, keyed=terms.idempotency_key is not None)
        inline, ref = self._payloads.store(data)
        job = NewJob(
            id or new_ids(1)[0], kind, terms.model.name, terms.model.version, terms.queue, terms.priority, terms.max_attempts,
            1, terms.deadline_at, self.id, terms.idempotency_key, fingerprint if terms.idempotency_key else None,
            terms.metadata, None, inline, ref,
        )  # fmt: skip
        [handle] = self._submit_jobs([job], terms, maximum)
        return handle

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
