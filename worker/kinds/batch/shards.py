"""The steps of a shard: prepare a claimed one, run its rows, prolong its lease, give half of it away, finish it.

A shard is finished in the ledger first, fenced by its attempt, and only then are its files given their names: whoever lost the
lease leaves nothing behind.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import pyarrow as pa
import structlog

from forebay.contract.errors import ForebayError, InvalidInput, LedgerUnavailable, OutcomeUnknown
from forebay.contract.references import ModelRef, shown
from forebay.contract.requests.batch import BatchRequest, Piece, Shard
from forebay.contract.requests.shards import ShardOutcome
from forebay.datasets.planning.cutting import middle
from forebay.datasets.planning.schema import dump_schema, kept_columns, load_schema
from forebay.datasets.reading.inputs import Inputs
from forebay.datasets.reading.shard_range import Halves, ShardRange
from forebay.datasets.writing.folder import OutputFolder
from forebay.datasets.writing.outputs import ModelOutputs, PartSchema
from forebay.datasets.writing.parts import Part
from forebay.storage.batches.records import Batch
from forebay.storage.batches.store import BatchStore
from forebay.storage.blobs.store import FULL
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.backoff import may_pass
from forebay.worker.execution.chunks import run_chunk
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.summary import Fate
from forebay.worker.kinds.batch.coordinator import BatchCoordinator
from forebay.worker.kinds.batch.poison import PoisonIsolation
from forebay.worker.kinds.batch.running_shard import RunningShard, ShardStopped, StopReason
from forebay.worker.shared_page import READ, STORE, WRITE

log = structlog.get_logger()

T = TypeVar("T")

MOST_NAMED = 3  # files of a shard, in an error
SPLIT_S = 2.0  # what half of the rest of a running shard must be worth


class ShardRunner:
    """Runs the steps of shards, in several threads at once."""

    def __init__(
        self, context: ChildContext, attempts: Attempts, store: BatchStore, coordinator: BatchCoordinator
    ) -> None:
        self.attempts = attempts
        self._context = context
        self._store = store
        self._coordinator = coordinator
        self._poison = PoisonIsolation(store, coordinator, self.reading)
        self._held: dict[str, ClaimedJob] = {}

    def reading(self, chunks: Iterator[T]) -> Iterator[T]:
        """The same chunks; a store that keeps the reader waiting for one too long costs this process its life."""
        while True:
            with self._context.page.limit(self._context.settings.store_timeout_s, STORE, READ):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def writing(self) -> AbstractContextManager[None]:
        """The same for a step of the thread that writes."""
        return self._context.page.limit(self._context.settings.store_timeout_s, STORE, WRITE)

    def claim_next(self, batch: str) -> ClaimedJob | None:
        claim = partial(self._store.claim_next, batch, self.attempts.claimant, self.attempts.lease_s)
        return self.attempts.retry_while_unavailable(claim)

    def prepare(self, job: ClaimedJob) -> RunningShard | None:
        """A claimed shard, ready to be read; None when its batch has ended meanwhile, or what it needs is away."""
        self.attempts.hold(job)
        self._held[job.id] = job
        self.attempts.begin([job])
        try:
            shard = self._prepare(job)
            if shard is not None:
                return shard
            fate = self.attempts.cancel(job)
        except Exception as error:
            if not may_pass(error):
                raise
            fate = self.attempts.end_with_error(job, error, counted=False)
        self.attempts.count(job, fate, 0.0)
        self._let_go(job)
        return None

    def _let_go(self, job: ClaimedJob) -> None:
        self.attempts.let_go(job)
        self._held.pop(job.id, None)

    def let_go_all(self) -> None:
        """Hold no shard any more: of one that an error has left, the lease lapses."""
        for job in list(self._held.values()):
            self._let_go(job)

    def _prepare(self, job: ClaimedJob) -> RunningShard | None:
        retry = self.attempts.retry_while_unavailable
        work = retry(partial(self._store.queries.shard, job, self.attempts.lease_s))
        batch = retry(partial(self._store.queries.get, work.batch))
        if batch.state.final:
            return None
        request = self._coordinator.request(work.batch)
        isolated = self._poison.isolate(job, work, request, batch)
        if isolated is None:
            return None
        work, spec = isolated.work, self._context.registry.get(ModelRef(job.model, job.version))
        folder = OutputFolder(request.output)
        schema = PartSchema(
            load_schema(batch.part_schema),
            len(kept_columns(request)),
            request.signature(spec.signature).outputs,
            partial(self._agree, batch.id, batch.part_schema),
        )
        part = Part(folder, request, work, schema, spec.ref)
        return RunningShard(
            isolated.job, work, request, spec, part, folder, ShardRange(work.pieces), isolated.known_error,
            error=isolated.unreadable,
        )  # fmt: skip

    def _agree(self, batch: str, known: bytes, schema: pa.Schema) -> pa.Schema:
        settle = partial(self._store.settle_schema, batch, known, dump_schema(schema))
        return load_schema(self.attempts.retry_while_unavailable(settle))

    def run_inputs(self, shard: RunningShard, inputs: Inputs) -> ModelOutputs:
        """A chunk through the model; past it, when its row is not to be run again."""
        if shard.known_error is not None:
            return ModelOutputs(inputs.good[:0], [], dict.fromkeys(inputs.good.tolist(), shard.known_error))
        try:
            loaded = self._context.models.load(shard.spec.name, shard.spec.version)
        except Exception as error:
            shard.tried = not may_pass(error)
            raise
        shard.began = shard.began or time.monotonic()  # loading says nothing about how long rows take
        engine, asked = self._context.engine, shard.request.explain
        if asked is not None:
            from forebay.worker.execution.explaining.explainer import explaining  # torch and Captum

            engine, loaded = self._context.explain_engine, explaining(loaded, asked, self._context.explain_ceilings)
        made = run_chunk(engine, loaded, inputs, partial(self._ran, shard), partial(self._stopped, shard))
        if asked is None and self._context.drift.due(shard.spec):
            self._context.drift.columns(shard.spec, inputs.values, made.outputs)
        return made

    def _ran(self, shard: RunningShard, rows: int, _: float) -> None:
        shard.seen += rows
        if self._stopped(shard):
            raise ShardStopped

    def _stopped(self, shard: RunningShard) -> bool:
        if self.attempts.stopping:
            shard.stop = shard.stop or StopReason.STOPPING
        return shard.stop is not None

    def heartbeat(self, shard: RunningShard) -> None:
        """Keep the lease and show the progress; note when the work is in vain."""
        done = max(shard.done, shard.seen - shard.failed)
        canceled = self._store.renew(shard.work, done, shard.failed, shard.seconds, self.attempts.lease_s)
        if canceled is None and not shard.ended.is_set():
            shard.stop = StopReason.LOST
        elif canceled:
            shard.stop = StopReason.CANCELED

    def share(self, shard: RunningShard) -> None:
        """Give half of what was not read yet to whoever is idle, when nothing else waits and it would take a while."""
        if shard.over or not shard.began or not shard.seen or shard.job.crashes:
            return
        batch = self._store.queries.get(shard.work.batch)
        if batch.planned and self._store.queries.open_shards(batch.id)[0] == 0:
            shard.range.halve(partial(_middle, shard.request), partial(self._split, shard, batch))

    def _split(self, shard: RunningShard, batch: Batch, halves: Halves) -> bool:
        work, rate = shard.work, shard.seen / shard.seconds
        if halves.share * work.rows / rate < SPLIT_S:
            return False
        counted = all(piece.counted for piece in halves.given)
        rows = sum(piece.rows for piece in halves.given) if counted else int(work.rows * halves.share)
        size = int(work.bytes * halves.share)
        rest, split_off = Shard(halves.kept, work.rows - rows, work.bytes - size), Shard(halves.given, rows, size)
        try:
            routed_jobs = self._store.split(work, rest, split_off, batch)
        except OutcomeUnknown:
            shard.stop = StopReason.DOUBTFUL
            raise
        if routed_jobs is None:
            return False
        shard.work = replace(work, pieces=halves.kept, rows=rest.rows, bytes=rest.bytes)
        self._coordinator.send(routed_jobs)
        log.info("shard_split", batch=batch.id, shard=work.id, rows=rows, part=split_off.part)
        return True

    def finish(self, shard: RunningShard) -> None:
        """End the attempt in the ledger, put the shard's files in place, and see to its batch."""
        fate = self._end(shard)
        self._let_go(shard.job)
        shard.ended.set()
        if fate is not Fate.SUCCEEDED:
            with self.writing():
                shard.part.discard()
        self.attempts.count(shard.job, fate, shard.seconds)
        work = shard.work
        log.info(
            "shard_done", batch=work.batch, shard=work.id, model=shard.spec.ref, worker=self.attempts.worker,
            attempt=work.attempt, state=str(fate), rows=shard.done, failed=shard.failed, seconds=round(shard.seconds, 3),
            part=work.part, error=repr(shard.error) if shard.error else None,
        )  # fmt: skip
        if fate is not Fate.RELEASED:
            self._advance(work.batch)

    def _end(self, shard: RunningShard) -> Fate:
        match shard.stop:
            case StopReason.LOST:
                return self.attempts.lost(shard.job)
            case StopReason.STOPPING | StopReason.DOUBTFUL:
                return self.attempts.release(shard.job)
            case StopReason.CANCELED:
                return self.attempts.cancel(shard.job)
            case StopReason.MEMORY:
                return self._out_of_memory(shard)
        if shard.error is None:
            try:
                with self.writing():
                    outcome = shard.part.close(shard.seconds)
                _check_rows(shard, outcome)
                return self._succeed(shard, outcome)
            except LedgerUnavailable:  # the part stays: nobody knows whose it is before the ledger answers
                raise
            except Exception as error:  # noqa: BLE001 - whatever a store raises, this shard has failed
                shard.error = error
        tried = shard.tried and getattr(shard.error, "errno", None) not in FULL  # no room says nothing about the shard
        return self.attempts.end_with_error(shard.job, shard.error, counted=tried)

    def _out_of_memory(self, shard: RunningShard) -> Fate:
        names = {shown(shard.request.files[piece.file].path) for piece in shard.work.pieces}
        words = (
            f"reading {', '.join(sorted(names)[:MOST_NAMED])} takes more memory than a child may have: {shard.error}"
        )
        return self.attempts.crashed(shard.job, words, self._coordinator.send)

    def _succeed(self, shard: RunningShard, outcome: ShardOutcome) -> Fate:
        if not self.attempts.retry_while_unavailable(partial(self._store.finish, shard.work, outcome)):
            return self.attempts.lost(shard.job)
        for file in outcome.files:
            try:
                with self.writing():
                    shard.folder.place(file.temporary, file.name)
            except (ForebayError, OSError) as error:  # who ends the batch tries again
                log.warning("part_not_placed", batch=shard.work.batch, part=file.name, error=str(error))
        return Fate.SUCCEEDED

    def _advance(self, batch: str) -> None:
        try:
            self._coordinator.advance(batch)
        except (ForebayError, OSError) as error:  # a sweep finds a batch that nobody looks after
            log.warning("batch_not_advanced", batch=batch, error=str(error))


def _middle(request: BatchRequest, piece: Piece, last_read: int | None) -> tuple[int, int] | None:
    try:
        return middle(request, piece, last_read)
    except (InvalidInput, OSError):  # who reads the shard will say so
        return None


def _check_rows(shard: RunningShard, outcome: ShardOutcome) -> None:
    """Every row that was read has a result or an error: else rows were lost on their way."""
    read, written = shard.range.rows_read, outcome.rows + outcome.failed
    if read != written:
        raise ForebayError(f"{read} rows were read and {written} written; nothing of this shard is kept")
