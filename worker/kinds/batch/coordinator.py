"""Coordinating a batch: planning its next shards, sending them, and ending it when the last one has ended.

Any child may do it at any time, and several at once: each step is a compare-and-swap in the ledger. It is done after each
shard, and when a batch's own job is claimed: at its start, after a retry, and when a sweep finds nobody looking.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial

import msgspec
import redis
import structlog

from forebay.contract.errors import BrokerUnavailable, InvalidInput
from forebay.contract.generation import usage
from forebay.contract.job import JobError, JobState, utc
from forebay.contract.references import ModelRef, shown
from forebay.contract.requests.batch import BatchRequest
from forebay.contract.requests.coverage import coverage_faults
from forebay.contract.requests.manifest import InputRange, Manifest, OutputFile, RowCounts
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import WrittenFile
from forebay.contract.wire import codec
from forebay.contract.wire.messages import RoutedJob, redis_keys
from forebay.datasets.formats.source import get_source
from forebay.datasets.planning.schema import dump_schema, part_schema
from forebay.datasets.writing.folder import MANIFEST, OutputFolder
from forebay.storage.batches.records import Batch, Totals
from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.records import ClaimedJob, LeaseLost
from forebay.worker.execution.backoff import may_pass
from forebay.worker.execution.context import ChildContext
from forebay.worker.kinds.batch.planner import ShardPlanner
from forebay.worker.shared_page import STORE, WRITE

log = structlog.get_logger()

MIN_ROWS_FOR_SHARE = 1024  # a share of fewer rows says nothing yet
WAITING_AHEAD = 2  # shards that wait beside one for each that runs
MAX_FAILED_SHARDS = 10
TOTALS_EVERY_S = 1.0  # a batch's totals are read at most so often
CACHED_REQUESTS = 16


class BatchCoordinator:
    """Looks after the batches whose shards this child runs. Thread-safe."""

    def __init__(self, context: ChildContext, store: BatchStore) -> None:
        self._context = context
        self._store = store
        self._dispatcher = context.dispatcher
        # Whoever looks after a batch writes nothing else meanwhile.
        self._waiting = partial(context.page.limit, context.settings.store_timeout_s, STORE, WRITE)
        self._requests: OrderedDict[str, BatchRequest] = OrderedDict()
        self._looked: dict[str, float] = {}

    def request(self, batch: str) -> BatchRequest:
        if batch not in self._requests:
            self._requests[batch] = decode(
                self._context.payloads.load(*self._store.queries.request(batch)), BatchRequest
            )
            while len(self._requests) > CACHED_REQUESTS:
                self._requests.popitem(last=False)
        return self._requests[batch]

    def start(self, job: ClaimedJob) -> bool:
        """Start or resume a batch whose job was claimed: plan its first shards, and give up its lease. Whether it goes on.

        Raises errors that may pass; the lease is then still held.
        """
        try:
            request = self.request(job.id)
            with self._waiting():
                _check_owner(OutputFolder(request.output), job.id)
            schema = self._store.queries.part_schema(job.id)
            if schema is None:  # one that starts again need not be able to read its files any more
                signature = self._context.registry.get(ModelRef(job.model, job.version)).signature
                schema = dump_schema(part_schema(request, request.signature(signature), self._waiting))
        except (InvalidInput, OSError) as error:
            return self._not_started(job, error)
        try:
            revived = self._store.start(job, request, schema)
        except LeaseLost:
            return False
        self.send(revived)
        try:
            self.advance(job.id)
        except OSError as error:
            return self._not_started(job, error)
        self._store.parents.hand_off(job)
        return True

    def _not_started(self, job: ClaimedJob, error: Exception) -> bool:
        if may_pass(error):
            raise error
        if self._context.jobs.queries.attempts([job.id]).get(job.id) != job.attempt:
            return False
        self.fail(job.id, job.attempt, JobError(type(error).__name__, str(error)))
        return False

    def advance(self, id: str) -> None:
        """Do whatever is due for a batch: plan, send, end it."""
        batch = self._store.queries.get(id)
        if batch.state is not JobState.RUNNING:
            if batch.state.final:
                self._store.parents.cancel_children(id)
            return
        waiting, running = self._store.queries.open_shards(id)
        if self._failed_by_errors(batch, waiting + running):
            return
        if not batch.planned and waiting < running + WAITING_AHEAD:
            waiting += self._plan(batch, 2 * (running + WAITING_AHEAD) - waiting)
            batch = self._store.queries.get(id)
        if batch.planned and waiting + running == 0:
            self._end(batch)
        elif waiting:
            self._wake_others(batch)

    def _failed_by_errors(self, batch: Batch, under_way: int) -> bool:
        """Fail a batch whose errors exceed its threshold, or whose shards mostly fail; whether it has failed."""
        now = time.monotonic()
        if now < self._looked.get(batch.id, 0.0) and (under_way or not batch.planned):
            return False
        self._looked[batch.id] = now + TOTALS_EVERY_S
        totals = self._store.queries.totals(batch.id)
        error = _too_many(self.request(batch.id), totals, ended=batch.planned and not under_way)
        if error is None:
            ended = totals.shards.get(JobState.SUCCEEDED, 0)
            self._store.parents.set_progress(batch.id, totals.done + totals.failed, totals.rows, f"{ended} shards done")
            return False
        self.fail(batch.id, batch.attempt, error, totals)
        return True

    def _plan(self, batch: Batch, wanted: int) -> int:
        """Plan up to `wanted` more shards and send them; how many were added."""
        spec = self._context.registry.get(ModelRef(batch.model, batch.version))
        planner = ShardPlanner(self.request(batch.id), spec, self._waiting)
        try:
            planned, position, all_planned = planner.plan(batch.position, wanted, self._store.queries.totals(batch.id))
        except InvalidInput as error:
            self.fail(batch.id, batch.attempt, JobError("InvalidInput", str(error)))
            return 0
        routed_jobs = self._store.plan(batch, planned, position, all_planned) or []
        self.send(routed_jobs)
        return len(routed_jobs)

    def _end(self, batch: Batch) -> None:
        totals = self._store.queries.totals(batch.id)
        if totals.shards.get(JobState.CANCELED):
            self.send(self._store.parents.retry_canceled(batch.id))
            return
        failed = sum(count for state, count in totals.shards.items() if state is not JobState.SUCCEEDED)
        if failed:
            self.fail(batch.id, batch.attempt, self._shards_failed(batch.id, failed, totals), totals)
            return
        request = self.request(batch.id)
        fault = self._coverage_fault(batch, request)
        if fault is not None:
            self.fail(batch.id, batch.attempt, JobError("PartsMismatch", f"{fault}; submit the batch anew"), totals)
            return
        folder = OutputFolder(request.output)
        missing = self._place_parts(batch, folder)
        if missing:
            words = f"{missing[0]} is missing from {folder.url} ({len(missing)} files are); submit the batch anew"
            self.fail(batch.id, batch.attempt, JobError("PartMissing", words), totals)
            return
        manifest = self._manifest(batch, folder, totals)
        with self._waiting():
            _check_owner(folder, batch.id)
            folder.write(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
            folder.clear_temporary(batch.id)
        result = self._context.payloads.store(codec.encode(msgspec.to_builtins(manifest)))
        done = totals.done + totals.failed
        ended = self._store.complete(batch, *result, done, done)
        self._context.announcer.announce(ended)
        self._looked.pop(batch.id, None)
        for _ in ended:
            log.info("batch_succeeded", batch=batch.id, model=f"{batch.model}/{batch.version}", rows=totals.done,
                     failed=totals.failed, shards=sum(totals.shards.values()))  # fmt: skip

    def _shards_failed(self, id: str, failed: int, totals: Totals) -> JobError:
        type_, message = self._store.queries.first_error(id)
        words = f"{failed} of {sum(totals.shards.values())} shards did not succeed; {totals.done} rows have results"
        return JobError("ShardsFailed", f"{words}; `forebay jobs retry {id}` does what is missing. {type_}: {message}")

    def _coverage_fault(self, batch: Batch, request: BatchRequest) -> str | None:
        """What says that a row of the input is in two parts, or in none."""
        queries, by_row = self._store.queries, get_source(request.format).locator == "row"
        planned, parts = queries.planned_pieces(batch.id), queries.covered_parts(batch.id)
        return next(coverage_faults(planned, parts, [file.path for file in request.files], by_row=by_row), None)

    def _place_parts(self, batch: Batch, folder: OutputFolder) -> list[str]:
        """Rename the parts whose worker died before it could; the names of those that are nowhere."""
        with self._waiting():
            there = folder.names()
        missing = [f for _, _, o in self._store.queries.outcomes(batch.id) for f in o.files if f.name not in there]
        return [file.name for file in missing if not self._place(folder, file)]

    def _place(self, folder: OutputFolder, file: WrittenFile) -> bool:
        with self._waiting():
            return folder.place(file.temporary, file.name)

    def _manifest(self, batch: Batch, folder: OutputFolder, totals: Totals) -> Manifest:
        request = self.request(batch.id)
        parts: list[OutputFile] = []
        errors: list[OutputFile] = []
        prompt = completion = 0
        for _, pieces, outcome in self._store.queries.outcomes(batch.id):
            prompt, completion = prompt + outcome.prompt_tokens, completion + outcome.completion_tokens
            ranges = tuple(InputRange(request.files[p.file].path, p.first, p.last) for p in pieces)
            for file, files in ((outcome.part, parts), (outcome.errors, errors)):
                if file is not None:
                    files.append(OutputFile(file.name, file.rows, file.bytes, file.sha256, ranges))
        return Manifest(
            batch=batch.id, model=f"{batch.model}/{batch.version}", output=folder.url, format=request.format,
            counts=RowCounts(totals.done + totals.failed, totals.done, totals.failed),
            started_at=utc(batch.started_at), finished_at=utc(self._store.queries.last_end(batch.id)),
            parts=tuple(parts), errors=tuple(errors), usage=usage(prompt, completion) if prompt or completion else None,
        )  # fmt: skip

    def fail(self, id: str, attempt: int, error: JobError, totals: Totals | None = None) -> None:
        """End this attempt of a batch with this error; its shards stop."""
        totals = totals or self._store.queries.totals(id)
        ended = self._store.parents.fail(id, attempt, error, totals.done + totals.failed, max(1, totals.rows))
        self._context.announcer.announce(ended)
        self._looked.pop(id, None)
        for _ in ended:
            log.error("batch_failed", batch=id, error=error.type, reason=error.message)

    def send(self, routed_jobs: list[RoutedJob]) -> None:
        """Send shards that wait; a sweep does it when Redis is away."""
        try:
            self._dispatcher.send_jobs(routed_jobs)
        except BrokerUnavailable as error:
            log.warning("send_failed", jobs=len(routed_jobs), error=str(error))

    def _wake_others(self, batch: Batch) -> None:
        """Send the next waiting shards once more when Redis has nothing left: their messages wait in a busy worker's buffer.

        Whoever is idle then takes one; the copy claims nothing.
        """
        if self._queue_is_empty(batch.queue):
            ids = self._store.queries.waiting_shards(batch.id, WAITING_AHEAD)
            self.send(
                [RoutedJob(id, batch.model, batch.version, batch.queue, batch.priority, exclusive=True) for id in ids]
            )

    def _queue_is_empty(self, queue: str) -> bool:
        try:
            return not any(self._context.broker.llen(key) for key in redis_keys(queue))
        except (redis.RedisError, OSError):
            return False


def _check_owner(folder: OutputFolder, batch: str) -> None:
    """InvalidInput when the folder is another batch's.

    Nobody removes a manifest. It is written when every part is there and says the same whoever writes it, so a worker that was
    frozen and wakes late takes nothing from a batch that has ended meanwhile.
    """
    if not folder.is_of(batch):
        raise InvalidInput(f"the output {shown(folder.url)} belongs to another batch by now; name another folder")


def _too_many(request: BatchRequest, totals: Totals, ended: bool) -> JobError | None:
    """The error of a batch whose rows or shards fail too often, or None. A share of few rows says nothing yet."""
    failed, rows = totals.failed, totals.done + totals.failed
    most, share = request.max_errors, request.max_error_share
    over = None
    if most is not None and failed > most:
        over = f"max_errors is {most}"
    elif share is not None and (ended or rows >= MIN_ROWS_FOR_SHARE) and failed > share * rows:
        over = f"max_error_share is {share:g}"
    elif most is None and share is None and ended and failed == rows:
        over = "no row succeeded"
    if rows and over is not None:
        return JobError("TooManyErrors", f"{failed} of {rows} rows failed; {over}")
    lost = totals.shards.get(JobState.FAILED, 0)
    if lost >= MAX_FAILED_SHARDS and lost > totals.shards.get(JobState.SUCCEEDED, 0):
        return JobError("ShardsFailed", f"{lost} shards failed, more than have succeeded: no more are begun")
    return None
