"""From what a user asks for to durable jobs and their handles: check, pack, commit, hand to the sender."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, LedgerUnavailable, PayloadTooLarge
from forebay.contract.job import JobKind, new_ids
from forebay.contract.model import Model, ModelVersion, parse_model
from forebay.contract.references import shown
from forebay.contract.requests.explain import ExplainRequest
from forebay.contract.requests.request import Request, encode
from forebay.contract.values import is_array
from forebay.contract.wire.codec import Parts
from forebay.contract.wire.messages import RoutedJob
from forebay.contract.wire.payload import pack_input, pack_inputs, pack_parts
from forebay.producer import inputs
from forebay.producer.explanations import check_baseline, plain_request
from forebay.producer.group_commit import PendingSubmit
from forebay.producer.handles.job import Job
from forebay.producer.options import ResolvedOptions, resolve_options
from forebay.producer.sender import PendingSend
from forebay.producer.session import Session
from forebay.storage.blobs.payloads import Stored
from forebay.storage.jobs.records import NewJob

J = TypeVar("J", bound=Job)

SORTED_JOBS = 1024  # no more: whoever reads results in the order of the inputs waits for them


class PackedInput(NamedTuple):
    parts: Parts
    rows: int


class Submission(NamedTuple):
    """The jobs of one submit, checked and made, and not stored yet."""

    handle: type[Job]
    options: ResolvedOptions
    jobs: Sequence[NewJob]
    max_queue_size: int | None

    def routed_jobs(self, stored: Collection[str]) -> list[RoutedJob]:
        """Where to send those of the jobs that are in the ledger under the ids they were made with."""
        model, queue, priority = self.options.model, self.options.queue, self.options.priority
        exclusive = not self.options.kind.of_rows
        texts = any(field.dtype == "str" and not field.cell for field in model.signature.inputs or ())
        ids = (job.id for job in (_longest_first(self.jobs) if texts else self.jobs) if job.id in stored)
        return [RoutedJob(id, model.name, model.version, queue, priority, exclusive=exclusive) for id in ids]


class Submitter:
    """Makes jobs durable and sends them. Thread-safe; concurrent submits share a commit and a message."""

    def __init__(self, session: Session, submitted_by: str | None = None, parent_id: str | None = None) -> None:
        self._session = session
        self._submitted_by = submitted_by
        self._parent_id = parent_id

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
            inputs.check_requests(options.model, rows)
            if options.explain:
                check_baseline(options.model.signature, rows, options.explain)
            parts = pack_parts(rows, options.batched, options.usage, options.stream, options.explain)
            self._session.payloads.check(*parts)
        except InvalidInput as error:
            raise type(error)(f"model {options.model.ref}: {error}") from error
        except Exception as error:
            raise InvalidInput(
                f"model {options.model.ref}: the input cannot be read: {type(error).__name__} {shown(str(error))}"
            ) from error
        return PackedInput(parts, len(rows))

    def prepare_one(self, model: Model, value: Any, options: Mapping[str, Any]) -> Submission:
        """A predict job for one input."""
        resolved = self.resolve(JobKind.PREDICT, model, options)
        return self._prepare(resolved, [self.pack(resolved, inputs.for_model(resolved.model, value))], 1)

    def explain(self, model: Model, value: Any, given: Mapping[str, Any]) -> Job:
        """An explain job for one input; `given` are the options of a submit, and the fields of ExplainRequest."""
        asked = {name: value for name, value in given.items() if name in ExplainRequest.__struct_fields__}
        submit = {name: value for name, value in given.items() if name not in asked}
        resolved = self.resolve(JobKind.EXPLAIN, model, submit)
        options = replace(resolved, explain=plain_request(resolved.model, asked))
        packed = self.pack(options, inputs.for_model(resolved.model, value))
        return self.submit(self._prepare(options, [packed], 1))[0]

    def prepare_many(self, model: Model, values: Iterable[Any], options: Mapping[str, Any]) -> Submission:
        """A predict job for each input, all or none; job i of an idempotency key has the key `key:i`, a single one `key`."""
        resolved = self.resolve(JobKind.PREDICT, model, options)
        given = inputs.for_model(resolved.model, values)
        column = None if resolved.batched or resolved.stream else inputs.column(resolved.model.signature, given)
        if column is not None and self._fits_inline(*column, resolved.usage):
            return self._prepare_column(resolved, pack_inputs(*column, resolved.usage))
        samples = inputs.several(resolved.model.signature, given)
        count = next((len(known) for known in (samples, given) if isinstance(known, Sized)), None)
        return self._prepare(resolved, self._pack_all(resolved, samples, _lasts(samples) or _lasts(given)), count)

    def _fits_inline(self, name: str, column: NDArray[Any], usage: bool) -> bool:
        """Whether the rows of a column, which are all of one size, need no blobs, and are not too large either."""
        first, payloads = pack_input([{name: column[0, ...]}], False, usage), self._session.payloads
        with suppress(PayloadTooLarge):
            payloads.check(first)
            return payloads.fits_inline(first)
        return False

    def _pack_all(self, options: ResolvedOptions, samples: Iterable[Any], last: bool) -> Iterator[PackedInput]:
        for i, sample in enumerate(samples):
            try:
                parts, rows = self.pack(options, sample)
            except InvalidInput as error:
                raise type(error)(f"inputs[{i}]: {error}") from error
            # Whoever makes one sample, or one array of it, after the other may do it in the same memory, and several are stored
            # at once.
            own = len(parts) == 1 or (last and not _makes_arrays(sample))
            yield PackedInput(parts if own else [b"".join(parts)], rows)

    def submit_by_key(self, options: ResolvedOptions, inputs_by_key: Mapping[str, Any]) -> list[Job]:
        """A predict job for each input, under an idempotency key of its own, which always means the same input: all or none."""
        packed = {key: self.pack(options, value) for key, value in inputs_by_key.items()}
        maximum = self._session.quota.take(options.queue, len(packed), keyed=True)
        stored = self._session.payloads.store_all(parts for parts, _ in packed.values())
        ids = zip(new_ids(len(packed)), packed.items(), stored, strict=True)
        jobs = [self._new_job(id, options, place, rows, key, None) for id, (key, (_, rows)), place in ids]
        return self.submit(Submission(Job, options, jobs, maximum))

    def submit_request(self, handle: type[J], options: ResolvedOptions, request: Request, id: str | None = None) -> J:
        """One job whose payload is a request."""
        maximum = self._room_for(options, 1)
        key = options.idempotency_key
        fingerprint = request.fingerprint(options.model.ref) if key else None
        stored = self._session.payloads.store(encode(request))
        job = self._new_job(id or new_ids(1)[0], options, stored, 1, key, fingerprint)
        return cast(J, self.submit(Submission(handle, options, [job], maximum))[0])

    def submit(self, submission: Submission) -> list[Job]:
        """Store and send; the handles, in order."""
        [made] = self.submit_all([submission])
        if isinstance(made, Exception):
            raise made
        return made

    def submit_all(self, submissions: Sequence[Submission]) -> list[list[Job] | Exception]:
        """The same for many at once, in one commit and with as few messages as can be; the handles of each, or its error."""
        session, watcher = self._session, self._session.watcher
        watcher.start()
        # Handles are registered first: a quick worker announces a job before the commit has returned here.
        handles = [watcher.register([s.handle(session, job.id) for job in s.jobs]) for s in submissions]
        pending = [PendingSubmit(s.jobs, s.max_queue_size) for s in submissions]
        session.commit.add_all(pending)
        done = [
            (submission, made, stored)
            for submission, made, stored in zip(submissions, handles, pending, strict=True)
            if stored.error is None
        ]
        alike: dict[tuple[int, float], list[RoutedJob]] = {}
        for submission, _, stored in done:
            model = submission.options.model
            batch = alike.setdefault((model.max_batch_size, model.batch_wait_timeout_s), [])
            batch += submission.routed_jobs(set(stored.ids))
        for (batch_size, wait_s), added in alike.items():
            if added:
                session.sender.send(PendingSend.of(added, batch_size, wait_s))
        return [
            stored.error or self._of_stored(submission.handle, made, stored.ids)
            for submission, made, stored in zip(submissions, handles, pending, strict=True)
        ]

    def _of_stored(self, handle: type[Job], made: list[Job], stored: list[str]) -> list[Job]:
        """The handles of what is in the ledger: some jobs existed already, by their idempotency keys."""
        new = [job.id for job in made]
        if new == stored:
            return made
        found = self._session.watcher.register([handle(self._session, id) for id in stored])
        with suppress(LedgerUnavailable):  # whoever waits for them asks again
            self._session.watcher.refresh(id for id in stored if id not in new)
        return found

    def _prepare(self, options: ResolvedOptions, packed: Iterable[PackedInput], count: int | None) -> Submission:
        """Stores large payloads as they come. When it is known how `count` many, a full queue refuses them before that."""
        maximum = self._room_for(options, count) if count is not None else None
        key, rows, hashes = options.idempotency_key, list[int](), list[str | None]()

        def payloads() -> Iterator[Parts]:
            for parts, size in packed:
                rows.append(size)
                hashes.append(options.request_hash(parts) if key else None)
                yield parts

        stored = list(self._session.payloads.store_all(payloads()))
        if count is None:
            maximum = self._room_for(options, len(stored))
        return self._submission(options, stored, rows, hashes, maximum)

    def _prepare_column(self, options: ResolvedOptions, inputs: Sequence[bytes]) -> Submission:
        maximum, key = self._room_for(options, len(inputs)), options.idempotency_key
        hashes = [options.request_hash([data]) if key else None for data in inputs]
        return self._submission(options, [(data, None) for data in inputs], [1] * len(inputs), hashes, maximum)

    def _submission(
        self,
        options: ResolvedOptions,
        stored: Sequence[Stored],
        rows: Sequence[int],
        hashes: Sequence[str | None],
        maximum: int | None,
    ) -> Submission:
        key, one = options.idempotency_key, len(stored) == 1
        jobs = [
            self._new_job(id, options, stored[i], rows[i], key if one or not key else f"{key}:{i}", hashes[i])
            for i, id in enumerate(new_ids(len(stored)))
        ]
        return Submission(Job, options, jobs, maximum)

    def _room_for(self, options: ResolvedOptions, count: int) -> int | None:
        return self._session.quota.take(options.queue, count, keyed=options.idempotency_key is not None)

    def _new_job(
        self, id: str, options: ResolvedOptions, stored: Stored, rows: int, key: str | None, request_hash: str | None
    ) -> NewJob:
        inline, ref = stored
        return NewJob(
            id=id, kind=options.kind, model=options.model.name, version=options.model.version, queue=options.queue,
            priority=options.priority, max_attempts=options.max_attempts, rows=rows, deadline_at=options.deadline_at,
            client=self._session.id, idempotency_key=key, request_hash=request_hash, metadata=options.metadata, input=inline,
            input_ref=ref, submitted_by=self._submitted_by, parent_id=self._parent_id,
        )  # fmt: skip


def _longest_first(jobs: Sequence[NewJob]) -> Iterator[NewJob]:
    """The jobs of texts, of those that one child may get together the longest first: a message then holds texts of like length,
    however many workers share them, and the last ones, for which one waits, are soon run.
    """  # fmt: skip
    for start in range(0, len(jobs), SORTED_JOBS):
        yield from sorted(jobs[start : start + SORTED_JOBS], key=lambda job: -len(job.input or b""))


def _makes_arrays(sample: Any) -> bool:
    """Whether there is an object in it that gives an array only when it is asked for one."""
    inner = sample.values() if isinstance(sample, Mapping) else sample if type(sample) in (list, tuple) else None
    if inner is not None:
        return any(map(_makes_arrays, inner))
    return is_array(sample) and not isinstance(sample, np.ndarray | np.generic) and not hasattr(sample, "detach")


def _lasts(values: Any) -> bool:
    """Whether what has been taken from them stays as it is while the next one is."""
    return type(values) in (list, tuple) or is_array(values)
