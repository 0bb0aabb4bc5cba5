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
from functools import partial
from typing import Any, TypeVar

import structlog

from forebay.contract.batch import BatchRequest, Shard
from forebay.contract.errors import ForebayError
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
from forebay.storage.jobs import JobStore
from forebay.storage.models import ModelRegistry
from forebay.storage.records import ClaimedJob, Postponed
from forebay.worker.announcer import Announcer
from forebay.worker.backoff import delay_s, may_pass
from forebay.worker.batches import device
from forebay.worker.batches.tender import Tender
from forebay.worker.board import Board
from forebay.worker.limits import Limits
from forebay.worker.model_cache import LoadedModel
from forebay.worker.patience import wait_out
from forebay.worker.tally import Tally

log = structlog.get_logger()

T = TypeVar("T")

GO_ON_S = 2.0  # for how long a child takes further shards before it lets other jobs have their turn
BEAT_S = 1.0
SPLIT_S = 2.0  # what a share of a running shard must be worth
AHEAD = 1  # chunks decoded ahead, and written behind, beside the one in each thread's hand
CHUNK_BATCHES = 32  # the device's batches in a chunk: texts of like length are looked for among so many
LOST, CANCELED, STOPPING = "lost", "canceled", "stopping"  # why a shard's work is given up


class Stopped(Exception):
    """The shard's work is in vain, or this process has to stop."""


@dataclass(slots=True)
class Run:
    """One shard on its way through the child."""

    job: ClaimedJob
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
    tried: bool = True  # not when its model could not be loaded
    stop: str = ""  # LOST, CANCELED, STOPPING
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
    """What became of shards: how many ended in which way, their rows, and the ids of those given back unrun."""

    succeeded: int = 0
    failed: int = 0
    stopped: int = 0
    postponed: int = 0
    dropped: int = 0
    rows: int = 0
    left: tuple[str, ...] = ()

    def __add__(self, other: Ran) -> Ran:
        return Ran(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))


class ShardRunner:
    """Runs the shards and starts the batches of one child process, one hand-over at a time."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        store: BatchStore,
        tender: Tender,
        registry: ModelRegistry,
        announcer: Announcer,
        limits: Limits,
        load: Callable[[str, int], LoadedModel],
        worker: str,
        lease_s: float,
        board: Board,
        patience_s: float,
        tally: Tally,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._tender = tender
        self._registry = registry
        self._announcer = announcer
        self._limits = limits
        self._load = load
        self._worker = worker
        self._lease_s = lease_s
        self._board = board
        self._patience_s = patience_s
        self._tally = tally

    @property
    def stopping(self) -> bool:
        """Whether this process is to give back what it has not done."""
        return self._board.stopping

    def run(self, claimed: Sequence[ClaimedJob]) -> Ran:
        """Start these batches, run these shards, and for a while others of the same batches."""
        until = time.monotonic() + GO_ON_S
        by_batch: dict[str, list[ClaimedJob]] = {}
        for job in claimed:
            if job.kind is JobKind.BATCH:
                if self._start(job):
                    by_batch.setdefault(job.id, [])
            else:
                batch = self._wait_out(partial(self._store.shard, job, self._lease_s)).batch
                by_batch.setdefault(batch, []).append(job)
        return sum((_Pipeline(self, batch, jobs, until).run() for batch, jobs in by_batch.items()), Ran())

    def _start(self, job: ClaimedJob) -> bool:
        try:
            return self._tender.start(job)
        except Exception as error:
            if not may_pass(error):
                raise
            self._postpone(job, error, tried=job.tries < job.max_attempts)  # a batch never fails by this
            return False

    def prepare(self, job: ClaimedJob) -> Run | None:
        """A claimed shard, ready to be read; None when its batch has ended meanwhile, or what it needs is away."""
        self._tally.waited((job.model, job.version), [job.waited_s] if job.attempt == 1 else [])
        try:
            return self._prepare(job)
        except Exception as error:
            if not may_pass(error):
                raise
            self._postpone(job, error, tried=False)
            return None

    def _prepare(self, job: ClaimedJob) -> Run | None:
        work = self._wait_out(partial(self._store.shard, job, self._lease_s))
        if self._wait_out(partial(self._store.batch, work.batch)).state is not JobState.RUNNING:
            self._wait_out(partial(self._store.drop, work))
            return None
        request = self._tender.request(work.batch)
        spec = self._registry.get(ModelRef(job.model, job.version))
        folder = OutputFolder(request.output)
        part = Part(folder, request, work, spec.signature, spec.ref)
        return Run(job, work, request, spec, part, folder, Reach(work.pieces))

    def claim_next(self, batch: str) -> ClaimedJob | None:
        """The next shard of a batch that waits."""
        return self._wait_out(partial(self._store.claim_next, batch, self._worker, self._lease_s))

    def give_back(self, job: ClaimedJob) -> None:
        """This process has to stop: a shard that it has not done goes back, its attempt uncounted."""
        self._wait_out(partial(self._jobs.release, [job.id], self._worker))
        log.info("jobs_released", worker=self._worker, jobs=1)

    def on_device(self, run: Run, inputs: Inputs) -> Made:
        """A chunk through the model."""
        try:
            loaded = self._load(run.spec.name, run.spec.version)
        except Exception as error:
            run.tried = not may_pass(error)
            raise
        run.began = run.began or time.monotonic()  # loading says nothing about how long rows take
        return device.run(loaded, inputs, self._limits, self._tally, partial(self._ran, run))

    def _ran(self, run: Run, rows: int, seconds: float) -> None:
        self._tally.ran((run.spec.name, run.spec.version), rows, seconds)
        if self.stopping:
            run.stop = run.stop or STOPPING
        run.ran(rows)

    def beat(self, run: Run) -> None:
        """Keep the lease and tell the progress; note when the work is in vain."""
        done = max(run.done, run.seen - run.failed)
        asked = self._store.beat(run.work, done, run.failed, run.seconds, self._lease_s)
        if asked is None and not run.ended.is_set():
            run.stop = LOST
        elif asked:
            run.stop = CANCELED

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
        counts = {what: 1} if what in ("succeeded", "failed", "stopped") else {}
        self._tally.ended(
            (run.spec.name, run.spec.version), counts, run.seconds,
            postponed=int(what == "postponed"), refused=int(what == "dropped"),
        )  # fmt: skip
        log.info(
            "shard_done", batch=work.batch, shard=work.id, model=run.spec.ref, worker=self._worker, attempt=work.attempt,
            state=what, rows=run.done, failed=run.failed, seconds=round(run.seconds, 3), part=work.part,
            error=repr(run.error) if run.error else None,
        )  # fmt: skip
        if what != "left":
            self._tend(work.batch)
        return what

    def _conclude(self, run: Run) -> str:
        if run.stop == LOST:
            return self._lost(run)
        if run.stop == STOPPING:
            self.give_back(run.job)
            return "left"
        if run.stop:
            self._wait_out(partial(self._store.drop, run.work))
            return "stopped"
        if run.error is None:
            try:
                outcome = run.part.close(run.seconds)
                return self._succeed(run, outcome)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, this shard has failed
                run.error = error
        if may_pass(run.error) and (not run.tried or run.job.tries < run.job.max_attempts):
            return self._postpone(run.job, run.error, tried=run.tried)
        told = JobError(type(run.error).__name__, str(run.error) or repr(run.error))
        return "failed" if self._wait_out(partial(self._store.fail, run.work, told)) else self._lost(run)

    def _lost(self, run: Run) -> str:
        log.warning("lease_lost", worker=self._worker, jobs=1, first=run.work.id)
        self._wait_out(partial(self._jobs.refused, {run.work.id: run.work.attempt}, self._worker))
        return "dropped"

    def _postpone(self, job: ClaimedJob, error: Exception, *, tried: bool) -> str:
        """Queue an attempt that met an error which may pass again, for later; what became of it."""
        wait, reason = delay_s(job.tries if tried else job.attempt), f"{type(error).__name__}: {error}"
        postponed = Postponed(job.id, job.attempt, wait, reason, counted=tried)
        queued, canceled = self._wait_out(partial(self._jobs.postpone, [postponed]))
        self._announcer.announce(canceled)
        log.warning(
            "jobs_postponed", worker=self._worker, jobs=len(queued), model=job.model, reason=reason, longest_s=round(wait, 1)
        )  # fmt: skip
        return "postponed" if queued else "stopped" if canceled else "dropped"

    def _succeed(self, run: Run, outcome: ShardOutcome) -> str:
        if not self._wait_out(partial(self._store.finish, run.work, outcome)):
            return self._lost(run)
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

    def _wait_out(self, action: Callable[[], T]) -> T:
        """A shard in hand is worth some patience: it may be minutes of work."""
        return wait_out(action, self._patience_s)


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
        self._left: list[str] = []

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
        ways = ("succeeded", "failed", "stopped", "postponed", "dropped")
        counts = {what: sum(one == what for one, _ in self._ended) for what in ways}
        return Ran(**counts, rows=sum(rows for _, rows in self._ended), left=tuple(self._left))

    def _jobs(self) -> Iterator[ClaimedJob]:
        for job in self._claimed:
            if self._runner.stopping:
                self._runner.give_back(job)
                self._left.append(job.id)
            else:
                yield job
        # What may have killed a worker before can then kill nothing but itself: nothing is read ahead beside it.
        suspect = any(job.crashes for job in self._claimed)
        while not suspect and not self._runner.stopping and time.monotonic() < self._until:
            following = self._runner.claim_next(self._batch)
            if following is None:
                return
            yield following

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
        if chunk is not None and self._runner.stopping:
            run.stop = run.stop or STOPPING
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
            what = self._runner.finish(run)
            self._ended.append((what, run.done + run.failed))
            if what == "left":
                self._left.append(run.work.id)
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
