"""From what a user asks for to durable jobs and their handles: check, pack, commit, hand to the sender."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from forebay.contract.errors import InvalidInput, LedgerUnavailable
from forebay.contract.job import JobKind, new_ids
from forebay.contract.model import Model, ModelVersion, parse_model
from forebay.contract.references import shown
from forebay.contract.requests.request import Request, encode
from forebay.contract.wire.messages import RoutedJob
from forebay.contract.wire.payload import pack_input
from forebay.producer import inputs
from forebay.producer.handles.job import Job
from forebay.producer.options import ResolvedOptions, resolve_options
from forebay.producer.sender import PendingSend
from forebay.producer.session import Session
from forebay.storage.jobs.records import NewJob

J = TypeVar("J", bound=Job)


class PackedInput(NamedTuple):
    data: bytes
    rows: int


class Submitter:
    """Makes jobs durable and sends them. Thread-safe; concurrent submits share a commit and a message."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def resolve(self, kind: JobKind, model: Model, options: Mapping[str, Any]) -> ResolvedOptions:
        """What a submit for `model` asks for, checked; the version is the one that is meant now."""
        return self.check(kind, self._session.registry.resolve(parse_model(model)), options)

    def check(self, kind: JobKind, version: ModelVersion, options: Mapping[str, Any]) -> ResolvedOptions:
        """The same for a version at hand, which may be yet to be made."""
        return resolve_options(kind, version, options, self._session.settings.queues, self._session.ledger.now())

    def pack(self, options: ResolvedOptions, value: Any) -> PackedInput:
        """The payload of one input; InvalidInput when the model does not take it, PayloadTooLarge when it is too large."""
        signature = options.model.signature
        try:
            if options.batched:
                rows = signature.rows(inputs.batch(signature, value))
            else:
                rows = [signature.row(inputs.sample(signature, value))]
            data = pack_input(rows, options.batched)
            self._session.payloads.check(data)
        except InvalidInput as error:
            raise type(error)(f"model {options.model.ref}: {error}") from error
        except Exception as error:
            raise InvalidInput(
                f"model {options.model.ref}: the input cannot be read: {type(error).__name__} {shown(str(error))}"
            ) from error
        return PackedInput(data, len(rows))

    def submit_inputs(self, options: ResolvedOptions, packed: Sequence[PackedInput]) -> list[Job]:
        """A predict job for each input, all or none; job i of an idempotency key has the key `key:i`, a single one `key`."""
        maximum = self._room_for(options, len(packed))
        key, one = options.idempotency_key, len(packed) == 1
        jobs = []
        for i, (id, (data, rows)) in enumerate(zip(new_ids(len(packed)), packed, strict=True)):
            hash = options.request_hash(data) if key else None
            jobs.append(self._new_job(id, options, data, rows, key if one or not key else f"{key}:{i}", hash))
        return self._submit(Job, options, jobs, maximum)

    def submit_request(self, handle: type[J], options: ResolvedOptions, request: Request, id: str | None = None) -> J:
        """One job whose payload is a request."""
        maximum = self._room_for(options, 1)
        key = options.idempotency_key
        fingerprint = request.fingerprint(options.model.ref) if key else None
        job = self._new_job(id or new_ids(1)[0], options, encode(request), 1, key, fingerprint)
        return self._submit(handle, options, [job], maximum)[0]

    def _room_for(self, options: ResolvedOptions, count: int) -> int | None:
        return self._session.quota.take(options.queue, count, keyed=options.idempotency_key is not None)

    def _new_job(
        self, id: str, options: ResolvedOptions, data: bytes, rows: int, key: str | None, request_hash: str | None
    ) -> NewJob:
        inline, ref = self._session.payloads.store(data)
        return NewJob(
            id=id, kind=options.kind, model=options.model.name, version=options.model.version, queue=options.queue,
            priority=options.priority, max_attempts=options.max_attempts, rows=rows, deadline_at=options.deadline_at,
            client=self._session.id, idempotency_key=key, request_hash=request_hash, metadata=options.metadata, input=inline,
            input_ref=ref,
        )  # fmt: skip

    def _submit(
        self, handle: type[J], options: ResolvedOptions, jobs: Sequence[NewJob], max_queue_size: int | None
    ) -> list[J]:
        session, watcher, model = self._session, self._session.watcher, options.model
        watcher.start()
        ids = [job.id for job in jobs]
        # Handles are registered first: a quick worker announces a job before the commit has returned here.
        handles = watcher.register([handle(session, id) for id in ids])
        stored = session.commit.add(jobs, max_queue_size)
        exclusive = options.kind is not JobKind.PREDICT
        added = [
            RoutedJob(id, model.name, model.version, options.queue, options.priority, exclusive=exclusive)
            for id, in_ledger in zip(ids, stored, strict=True)
            if id == in_ledger
        ]
        if added:
            session.sender.send(PendingSend.of(added, model.max_batch_size, model.batch_wait_timeout_s))
        if stored != ids:  # some existed already, by their idempotency keys
            handles = watcher.register([handle(session, id) for id in stored])
            with suppress(LedgerUnavailable):  # whoever waits for them asks again
                watcher.refresh(id for id, new in zip(stored, ids, strict=True) if id != new)
        return handles
