"""Running shards: a thread reads and decodes ahead, the device works, a thread encodes and writes behind.

While one shard is on the device the next one of its batch is claimed and read already. A shard is finished in the ledger
first, fenced by its attempt, and only then are its files given their names: whoever lost the lease leaves nothing behind.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from forebay.contract.batch import BatchRequest, Shard
from forebay.contract.errors import ForebayError, LedgerUnavailable
from forebay.contract.job import JobError, JobKind, JobState
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.storage.batch_records import Batch, ShardOutcome, ShardWork
from forebay.storage.batches import BatchStore
from forebay.storage.datasets.folder import OutputFolder
from forebay.storage.datasets.inputs import Inputs, convert
from forebay.storage.datasets.parts import Made, Part
from forebay.storage.datasets.reach import Halves, Reach
from forebay.storage.datasets.reading import read_pieces
from forebay.storage.datasets.sources import CHUNK_ROWS
from forebay.storage.models import ModelRegistry
from forebay.storage.records import ClaimedJob
from forebay.worker.batches import device
from forebay.worker.batches.tender import Tender
from forebay.worker.limits import Limits
from forebay.worker.model_cache import LoadedModel

log = structlog.get_logger()

GO_ON_S = 2.0  # for how long a child takes further shards before it lets other jobs have their turn
BEAT_S = 1.0
SPLIT_S = 2.0  # what a share of a running shard must be worth
AHEAD = 1  # chunks decoded ahead, and written behind, beside the one in each thread's hand
CHUNK_BATCHES = 32  # the device's batches in a chunk: texts of like length are looked for among so many
LEDGER_TRIES = 20


class Stopped(Exception):
    """The shard's work is in vain: its batch has ended, or its lease was lost."""


@dataclass(slots=True)
class Run:
    """One shard on its way through the child."""

    work: ShardWork
    request: BatchRequest
    spec: ModelVersion
    part: Part
    folder: OutputFolder
    reach: Reach
    done: int = 0
    failed: int = 0
    seen: int = 0
    began: float = 0.0
    error: Exception | None = None
    stop: str = ""  # why its work is given up: "lost" or "canceled"
    ended: threading.Event = field(default_factory=threading.Event)

    def ran(self, rows: int) -> None:
        """So many more rows came through the device; Stopped when the others need not."""
        self.seen += rows
        if self.stop:
            raise Stopped

    @property
    def over(self) -> bool:
        """Whether nothing more need be done for it."""
        return bool(self.stop) or self.error is not None

    @property
    def seconds(self) -> float:
        """Since its first rows came to the device."""
        return time.monotonic() - self.began if self.began else 0.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of shards: how many ended in which way, and their rows."""

    succeeded: int = 0
    failed: int = 0
    dropped: int = 0
    rows: int = 0


class ShardRunner:
    """Runs the shards and starts the batches of one child process, one hand-over at a time."""

    def __init__(
        self,
        store: BatchStore,
        tender: Tender,
        registry: ModelRegistry,
        limits: Limits,
        load: Callable[[str, int], LoadedModel],
        worker: str,
        lease_s: float,
    ) -> None:
        self._store = store
        self._tender = tender
        self._registry = registry
        self._limits = limits
        self._load = load
        self._worker = worker
        self._lease_s = lease_s

    def run(self, claimed: Sequence[ClaimedJob]) -> Ran:
        """Start these batches, run these shards, and for a while others of the same batches."""
        until = time.monotonic() + GO_ON_S
        by_batch: dict[str, list[ClaimedJob]] = {}
        for job in claimed:
            if job.kind is JobKind.BATCH:
                if self._tender.start(job):
                    by_batch.setdefault(job.id, [])
            else:
                by_batch.setdefault(self._store.shard(job, self._lease_s).batch, []).append(job)
        pipelines = [_Pipeline(self, batch, jobs, until).run() for batch, jobs in by_batch.items()]
        return Ran(*(sum(getattr(ran, name) for ran in pipelines) for name in Ran.__slots__))

    def prepare(self, job: ClaimedJob) -> Run | None:
        """A claimed shard, ready to be read; None when its batch has ended meanwhile."""
        work = self._store.shard(job, self._lease_s)
        if self._store.batch(work.batch).state is not JobState.RUNNING:
            self._store.drop(work)
            return None
        request = self._tender.request(work.batch)
        spec = self._registry.get(ModelRef(job.model, job.version))
        folder = OutputFolder(request.output)
        return Run(
            work, request, spec, Part(folder, request, work, spec.signature, spec.ref), folder, Reach(work.pieces)
        )

    def claim_next(self, batch: str) -> ClaimedJob | None:
        """The next shard of a batch that waits."""
        return self._store.claim_next(batch, self._worker, self._lease_s)

    def on_device(self, run: Run, inputs: Inputs) -> Made:
        """A chunk through the model."""
        loaded = self._load(run.spec.name, run.spec.version)
        run.began = run.began or time.monotonic()  # loading says nothing about how long rows take
        return device.run(loaded, inputs, self._limits, run.ran)

    def beat(self, run: Run) -> None:
        """Keep the lease and tell the progress; note when the work is in vain."""
        state = self._store.beat(run.work, max(run.done, run.seen - run.failed), run.failed, run.seconds, self._lease_s)
        if state is None and not run.ended.is_set():
            run.stop = "lost"
        elif state is not None and state is not JobState.RUNNING:
            run.stop = "canceled"

    def share(self, run: Run) -> None:
        """Give half of what was not read yet to whoever is idle, when nothing else waits and it would take a while."""
        if run.over or not run.began or not run.seen:
            return
        batch = self._store.batch(run.work.batch)
        if batch.planned and self._store.under_way(batch.id)[0] == 0:
            run.reach.halve(lambda halves: self._split(run, batch, halves))

    def _split(self, run: Run, batch: Batch, halves: Halves) -> bool:
        kept, given, share = halves
        work, rate = run.work, run.seen / run.seconds
        if share * work.rows / rate < SPLIT_S:
            return False
        rows, size = int(work.rows * share), int(work.bytes * share)
        tickets = self._store.split(
            work, Shard(kept, work.rows - rows, work.bytes - size), Shard(given, rows, size), batch
        )  # fmt: skip
        if tickets is None:
            return False
        run.work = replace(work, pieces=kept, rows=work.rows - rows, bytes=work.bytes - size)
        self._tender.send(tickets)
        log.info("shard_split", batch=batch.id, shard=work.id, rows=rows, part=Shard(given, rows, size).part)
        return True

    def finish(self, run: Run) -> str:
        """End the attempt in the ledger, then put its files in place; what became of it."""
        what = self._conclude(run)
        run.ended.set()
        if what != "succeeded":
            run.part.discard()
        work = run.work
        log.info(
            "shard_done", batch=work.batch, shard=work.id, model=run.spec.ref, worker=self._worker, attempt=work.attempt,
            state=what, rows=run.done, failed=run.failed, seconds=round(run.seconds, 3), part=work.part,
            error=repr(run.error) if run.error else None,
        )  # fmt: skip
        self._tend(work.batch)
        return what

    def _conclude(self, run: Run) -> str:
        if run.stop == "lost":
            log.warning("lease_lost", worker=self._worker, jobs=1, first=run.work.id)
            return "dropped"
        if run.stop:
            self._store.drop(run.work)
            return "dropped"
        if run.error is None:
            try:
                outcome = run.part.close(run.seconds)
                return self._succeed(run, outcome)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, this shard has failed
                run.error = error
        told = JobError(type(run.error).__name__, str(run.error) or repr(run.error))
        return "failed" if _insist(lambda: self._store.fail(run.work, told)) else "dropped"

    def _succeed(self, run: Run, outcome: ShardOutcome) -> str:
        if not _insist(lambda: self._store.finish(run.work, outcome)):
            log.warning("lease_lost", worker=self._worker, jobs=1, first=run.work.id)
            return "dropped"
        for file in outcome.files:
            try:
                run.folder.place(file.temporary, file.name)
            except OSError as error:  # who ends the batch tries again
                log.warning("part_not_placed", batch=run.work.batch, part=file.name, error=str(error))
        return "succeeded"

    def _tend(self, batch: str) -> None:
        try:
            self._tender.tend(batch)
        except (ForebayError, OSError) as error:  # a sweep finds a batch that nobody looks after
            log.warning("batch_not_tended", batch=batch, error=str(error))


class _Pipeline:
    """Shards of one batch, one after the other, through three threads."""

    def __init__(self, runner: ShardRunner, batch: str, claimed: Sequence[ClaimedJob], until: float) -> None:
        self._runner = runner
        self._batch = batch
        self._claimed = claimed
        self._until = until
        self._read: queue.Queue[tuple[Run, Any] | None] = queue.Queue(AHEAD)
        self._made: queue.Queue[tuple[Run, Any] | None] = queue.Queue(AHEAD)
        self._live: list[Run] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ended: list[tuple[str, int]] = []

    def run(self) -> Ran:
        threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("read", self._read_all), ("write", self._write_all), ("beat", self._beat_all))
        ]
        for thread in threads:
            thread.start()
        try:
            while (item := self._read.get()) is not None:
                self._made.put(self._on_device(*item))
        finally:
            self._made.put(None)
            threads[1].join()
            self._over.set()
            for thread in threads:
                thread.join()
        counts = {what: sum(one == what for one, _ in self._ended) for what in ("succeeded", "failed", "dropped")}
        return Ran(**counts, rows=sum(rows for _, rows in self._ended))

    def _jobs(self) -> Iterator[ClaimedJob]:
        yield from self._claimed
        # What may have killed a worker before can then kill nothing but itself: nothing is read ahead beside it.
        suspect = any(job.tries > 1 for job in self._claimed)
        while not suspect and time.monotonic() < self._until:
            job = self._runner.claim_next(self._batch)
            if job is None:
                return
            yield job

    def _read_all(self) -> None:
        try:
            for job in self._jobs():
                run = self._runner.prepare(job)
                if run is not None:
                    with self._lock:
                        self._live.append(run)
                    self._read_one(run)
        except Exception as error:
            log.exception("shards_failed", batch=self._batch, error=str(error))  # leases lapse, and sweeps free them
        finally:
            self._read.put(None)

    def _read_one(self, run: Run) -> None:
        try:
            for rows in read_pieces(run.request, run.reach, min(CHUNK_ROWS, CHUNK_BATCHES * run.spec.max_batch_size)):
                if run.over:
                    break
                inputs = convert(rows, run.request.columns, run.spec.signature, run.request.format)
                self._read.put((run, (rows, inputs)))
        except Exception as error:  # noqa: BLE001 - a shard that cannot be read fails alone
            run.error = error
        self._read.put((run, None))

    def _on_device(self, run: Run, chunk: Any) -> tuple[Run, Any]:
        if chunk is None or run.over:
            return run, None if chunk is None else ()
        rows, inputs = chunk
        try:
            return run, (rows, self._runner.on_device(run, inputs))
        except Exception as error:  # noqa: BLE001 - a model that cannot be loaded fails the shard
            run.error = None if run.stop else error
            return run, ()

    def _write_all(self) -> None:
        while (item := self._made.get()) is not None:
            run, chunk = item
            if chunk is None:
                self._finish(run)
            elif chunk and not run.over:
                try:
                    done, failed = run.part.add(*chunk)
                    run.done, run.failed = run.done + done, run.failed + failed
                except Exception as error:  # noqa: BLE001 - as above
                    run.error = error

    def _finish(self, run: Run) -> None:
        try:
            self._ended.append((self._runner.finish(run), run.done + run.failed))
        except Exception as error:
            log.exception("shards_failed", batch=self._batch, error=str(error))
        finally:
            with self._lock:
                self._live.remove(run)

    def _beat_all(self) -> None:
        while not self._over.wait(BEAT_S):
            with self._lock:
                live = list(self._live)
            for run in live:
                try:
                    self._runner.beat(run)
                    if len(live) == 1:
                        self._runner.share(run)
                except ForebayError as error:
                    log.warning("housekeeping_failed", what="beat", shard=run.work.id, error=str(error))


def _insist(write: Callable[[], bool]) -> bool:
    """A write that a short outage of the ledger must not undo: it was minutes of work."""
    for left in reversed(range(LEDGER_TRIES)):
        try:
            return write()
        except LedgerUnavailable:
            if not left:
                raise
            time.sleep(0.5)
    return False
