"""Looking after a batch: planning its next shards, sending them, and ending it when the last one has ended.

Any child may do it at any time, and several at once: each step is a compare-and-swap in the ledger. It is done after each
shard, and when a batch's own job is claimed: at its start, after a retry, and when a sweep finds nobody looking.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import msgspec
import redis
import structlog

from forebay.contract.errors import BrokerUnavailable, InvalidInput
from forebay.contract.job import JobError, JobState, utc
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.batch import TO_THE_END, BatchRequest, Position, Shard
from forebay.contract.requests.manifest import InputRange, Manifest, OutputFile, RowCounts
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import WrittenFile
from forebay.contract.wire import codec
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob, redis_keys
from forebay.datasets.formats.source import Block, get_source
from forebay.datasets.planning.checking import check_file
from forebay.datasets.planning.shards import Layout, Size, shards
from forebay.datasets.reading.rows import columns_read
from forebay.datasets.writing.folder import MANIFEST, OutputFolder
from forebay.storage.batches.records import Batch, Totals
from forebay.storage.batches.store import BatchStore
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.execution.backoff import may_pass

log = structlog.get_logger()

SHARD_S = 5.0  # how long a shard should take, once it is known how quick the model is
SHARD_BYTES = 64 << 20
FIRST_BATCHES = 16  # the device's batches in a shard while nothing is known
LEAST_BATCHES = 8
MEANT_ROWS = 1024  # from so many rows on a share of them means something
WAITING_AHEAD = 2  # shards that wait beside one for each that runs
PLAN_S = 1.0  # for a step of planning
MOST_FAILED_SHARDS = 10
LOOK_S = 1.0  # between two looks at the totals
KNOWN = 16  # requests kept in memory


class BatchCoordinator:
    """Looks after the batches whose shards this child runs. Thread-safe."""

    def __init__(
        self,
        store: BatchStore,
        registry: ModelRegistry,
        payloads: Payloads,
        dispatcher: Dispatcher,
        announcer: Announcer,
        broker: redis.Redis,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`waiting` watches over each step that waits for the store of the input or the output."""
        self._store = store
        self._registry = registry
        self._payloads = payloads
        self._dispatcher = dispatcher
        self._announcer = announcer
        self._redis = broker
        self._waiting = waiting
        self._requests: OrderedDict[str, BatchRequest] = OrderedDict()
        self._looked: dict[str, float] = {}

    def request(self, batch: str) -> BatchRequest:
        """What a batch was asked to do."""
        if batch not in self._requests:
            self._requests[batch] = decode(self._payloads.load(*self._store.request(batch)), BatchRequest)
            while len(self._requests) > KNOWN:
                self._requests.popitem(last=False)
        return self._requests[batch]

    def start(self, job: ClaimedJob) -> bool:
        """Start or take up a batch whose job was claimed: plan its first shards, and let go of it. Whether it goes on.

        Raises errors that may pass; then it still has the lease.
        """
        try:
            request = self.request(job.id)
            with self._waiting():
                OutputFolder(request.output).remove([MANIFEST])
        except (InvalidInput, OSError) as error:
            return self._not_started(job, error)
        revived = self._store.start(job, request)
        self.send(revived)
        try:
            self.tend(job.id)
        except OSError as error:
            return self._not_started(job, error)
        self._store.hand_off(job)
        return True

    def _not_started(self, job: ClaimedJob, error: Exception) -> bool:
        if may_pass(error):
            raise error
        self.give_up(job.id, JobError(type(error).__name__, str(error)))
        return False

    def tend(self, id: str) -> None:
        """One step for a batch: whatever is due."""
        batch = self._store.batch(id)
        if batch.state is not JobState.RUNNING:
            self._store.cancel_shards(id)
            return
        waiting, running = self._store.under_way(id)
        if self._stopped_by_errors(batch, waiting + running):
            return
        if not batch.planned and waiting < running + WAITING_AHEAD:
            waiting += self._plan(batch, 2 * (running + WAITING_AHEAD) - waiting)
            batch = self._store.batch(id)
        if batch.planned and waiting + running == 0:
            self._end(batch)
        elif waiting:
            self._wake_others(batch)

    def _stopped_by_errors(self, batch: Batch, under_way: int) -> bool:
        """Give a batch up whose errors exceed its threshold, or whose shards mostly fail."""
        now = time.monotonic()
        if now < self._looked.get(batch.id, 0.0) and (under_way or not batch.planned):
            return False
        self._looked[batch.id] = now + LOOK_S
        totals = self._store.totals(batch.id)
        error = _too_many(self.request(batch.id), totals, ended=batch.planned and not under_way)
        if error is None:
            ended = totals.shards.get(JobState.SUCCEEDED, 0)
            self._store.show(batch.id, totals.done + totals.failed, totals.rows, f"{ended} shards done")
            return False
        self.give_up(batch.id, error, totals)
        return True

    def _plan(self, batch: Batch, wanted: int) -> int:
        """Plan up to so many shards and send them; how many there are now."""
        request, spec = self.request(batch.id), self._registry.get(ModelRef(batch.model, batch.version))
        source, columns, until = get_source(request.format), columns_read(request), time.monotonic() + PLAN_S

        @cache
        def layout(number: int) -> list[Block]:
            file = request.files[number]
            with self._waiting():
                check_file(request, spec.signature, file)
                return list(source.layout(file, columns, request.row_bytes))

        planned: list[Shard] = []
        position, all_planned = batch.position, True
        try:
            size = self._size(batch, request, spec, _rows_left(request, position, layout))
            for shard, behind in shards(layout, len(request.files), position, size):
                planned.append(shard)
                position = behind
                if len(planned) >= wanted or time.monotonic() > until:
                    all_planned = False
                    break
        except InvalidInput as error:
            self.give_up(batch.id, JobError("InvalidInput", str(error)))
            return 0
        routed_jobs = self._store.plan(batch, planned, position, all_planned)
        self.send(routed_jobs or [])
        return len(routed_jobs or [])

    def _size(self, batch: Batch, request: BatchRequest, spec: ModelVersion, left: int) -> Size:
        """What takes about SHARD_S by what was measured, and a guess before; less towards the end, of `left` rows, so that all
        workers end at about the same time.
        """  # fmt: skip
        if request.shard_rows is not None:
            return Size(request.shard_rows, 1 << 60)
        totals = self._store.totals(batch.id)
        done, seconds = totals.done + totals.failed, totals.seconds
        rows = int(done / seconds * SHARD_S) if done and seconds > 0 else FIRST_BATCHES * spec.max_batch_size
        running = max(1, totals.shards.get(JobState.RUNNING, 0))
        return Size(max(LEAST_BATCHES * spec.max_batch_size, min(rows, left // (2 * running))), SHARD_BYTES)

    def _end(self, batch: Batch) -> None:
        totals = self._store.totals(batch.id)
        failed = sum(count for state, count in totals.shards.items() if state is not JobState.SUCCEEDED)
        if failed:
            self.give_up(batch.id, self._shards_failed(batch.id, failed, totals), totals)
            return
        folder = OutputFolder(self.request(batch.id).output)
        gone = self._put_in_place(batch, folder)
        if gone:
            words = f"{gone[0]} is gone from {folder.url} ({len(gone)} files are); submit the batch anew"
            self.give_up(batch.id, JobError("PartMissing", words), totals)
            return
        manifest = self._manifest(batch, folder, totals)
        with self._waiting():
            folder.write(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
            folder.clear_temporary()
        result = self._payloads.store(codec.encode(msgspec.to_builtins(manifest)))
        done = totals.done + totals.failed
        ended = self._store.complete(batch.id, *result, done, done)
        self._announcer.announce(ended)
        for _ in ended:
            log.info("batch_succeeded", batch=batch.id, model=f"{batch.model}/{batch.version}", rows=totals.done,
                     failed=totals.failed, shards=sum(totals.shards.values()))  # fmt: skip

    def _shards_failed(self, id: str, failed: int, totals: Totals) -> JobError:
        type_, message = self._store.first_error(id)
        words = f"{failed} of {sum(totals.shards.values())} shards did not succeed; {totals.done} rows have results"
        return JobError("ShardsFailed", f"{words}; `forebay jobs retry {id}` does what is missing. {type_}: {message}")

    def _put_in_place(self, batch: Batch, folder: OutputFolder) -> list[str]:
        """Give parts their names whose worker died before it could; the names of those that are nowhere."""
        with self._waiting():
            there = folder.names()
        missing = [f for _, _, o in self._store.outcomes(batch.id) for f in o.files if f.name not in there]
        return [file.name for file in missing if not self._place(folder, file)]

    def _place(self, folder: OutputFolder, file: WrittenFile) -> bool:
        with self._waiting():
            return folder.place(file.temporary, file.name)

    def _manifest(self, batch: Batch, folder: OutputFolder, totals: Totals) -> Manifest:
        request = self.request(batch.id)
        parts: list[OutputFile] = []
        errors: list[OutputFile] = []
        for _, pieces, outcome in self._store.outcomes(batch.id):
            ranges = tuple(InputRange(request.files[p.file].path, p.first, p.last) for p in pieces)
            for file, files in ((outcome.part, parts), (outcome.errors, errors)):
                if file is not None:
                    files.append(OutputFile(file.name, file.rows, file.bytes, file.sha256, ranges))
        return Manifest(
            batch=batch.id, model=f"{batch.model}/{batch.version}", output=folder.url, format=request.format,
            counts=RowCounts(totals.done + totals.failed, totals.done, totals.failed),
            started_at=utc(batch.started_at), finished_at=utc(self._store.ledger.now()),
            parts=tuple(parts), errors=tuple(errors),
        )  # fmt: skip

    def give_up(self, id: str, error: JobError, totals: Totals | None = None) -> None:
        """The batch has failed; its shards stop."""
        totals = totals or self._store.totals(id)
        ended = self._store.give_up(id, error, totals.done + totals.failed, max(1, totals.rows))
        self._announcer.announce(ended)
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
            ids = self._store.waiting(batch.id, WAITING_AHEAD)
            self.send(
                [RoutedJob(id, batch.model, batch.version, batch.queue, batch.priority, exclusive=True) for id in ids]
            )

    def _queue_is_empty(self, queue: str) -> bool:
        try:
            return not any(self._redis.llen(key) for key in redis_keys(queue))
        except (redis.RedisError, OSError):
            return False


def _rows_left(request: BatchRequest, position: Position, layout: Layout) -> int:
    """About how many rows no shard covers yet: counted in the file that is being planned, by their bytes in those behind it."""
    if position.file >= len(request.files):
        return 0
    blocks = layout(position.file)
    rows = sum(block.rows for block in blocks)
    rest = sum(int(block.rows * _share_behind(block, position.first)) for block in blocks)
    behind = sum(file.size for file in request.files[position.file + 1 :])
    return rest + behind * rows // max(1, request.files[position.file].size)


def _share_behind(block: Block, first: int) -> float:
    """Which share of a block lies at or behind `first`."""
    if block.last == TO_THE_END or first <= block.first:
        return 1.0
    return max(0, block.last - first) / (block.last - block.first)


def _too_many(request: BatchRequest, totals: Totals, ended: bool) -> JobError | None:
    """The error of a batch whose rows or shards fail too often, or None. A share of few rows says nothing yet."""
    failed, rows = totals.failed, totals.done + totals.failed
    most, share = request.max_errors, request.max_error_share
    over = None
    if most is not None and failed > most:
        over = f"max_errors is {most}"
    elif share is not None and (ended or rows >= MEANT_ROWS) and failed > share * rows:
        over = f"max_error_share is {share:g}"
    elif most is None and share is None and ended and failed == rows:
        over = "no row succeeded"
    if rows and over is not None:
        return JobError("TooManyErrors", f"{failed} of {rows} rows failed; {over}")
    lost = totals.shards.get(JobState.FAILED, 0)
    if lost >= MOST_FAILED_SHARDS and lost > totals.shards.get(JobState.SUCCEEDED, 0):
        return JobError("ShardsFailed", f"{lost} shards failed, more than have succeeded: no more are begun")
    return None
