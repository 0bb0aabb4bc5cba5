"""What a child does with shards: prepare a claimed one, run its rows, finish, give back or postpone it, and tend its batch.

A shard is finished in the ledger first, fenced by its attempt, and only then are its files given their names: whoever lost the
lease leaves nothing behind. The threads that do it are worker.batches.pipeline's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import structlog

from forebay.contract.errors import ForebayError
from forebay.contract.job import JobError, JobKind, JobState
from forebay.contract.references import ModelRef
from forebay.contract.requests.batch import Shard
from forebay.contract.requests.shards import ShardOutcome
from forebay.datasets.reading.inputs import Inputs
from forebay.datasets.reading.shard_range import Halves, ShardRange
from forebay.datasets.writing.folder import OutputFolder
from forebay.datasets.writing.parts import ModelOutputs, Part
from forebay.storage.batches.records import Batch
from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.records import ClaimedJob, Postponed
from forebay.storage.jobs.store import JobStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.announcer import Announcer
from forebay.worker.execution.backoff import delay_s, may_pass
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.chunks import run_chunk
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.retrying import retry_while_unavailable
from forebay.worker.kinds.batch.coordinator import BatchCoordinator
from forebay.worker.kinds.batch.pipeline import CANCELED, LOST, STOPPING, Pipeline, Ran, Run
from forebay.worker.kinds.batch.poison import PoisonIsolation
from forebay.worker.shared_page import READ, STORE, WRITE, SharedPage

log = structlog.get_logger()

T = TypeVar("T")

GO_ON_S = 2.0  # for how long a child takes further shards before it lets other jobs have their turn
SPLIT_S = 2.0  # what a share of a running shard must be worth


class ShardRunner:
    """Runs the shards and starts the batches of one child process, one hand-over at a time."""

    def __init__(
        self,
        *,
        jobs: JobStore,
        store: BatchStore,
        coordinator: BatchCoordinator,
        registry: ModelRegistry,
        announcer: Announcer,
        engine: Engine,
        load: Callable[[str, int], LoadedModel],
        worker: str,
        lease_s: float,
        page: SharedPage,
        outage_timeout_s: float,
        store_timeout_s: float,
        metrics: ChildMetrics,
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._coordinator = coordinator
        self._registry = registry
        self._announcer = announcer
        self._engine = engine
        self._load = load
        self._worker = worker
        self._lease_s = lease_s
        self._page = page
        self._outage_timeout_s = outage_timeout_s
        self._metrics = metrics
        self._poison = PoisonIsolation(store, coordinator, self.reading)
        self._store_timeout_s = store_timeout_s

    @property
    def stopping(self) -> bool:
        """Whether this process is to give back what it has not done."""
        return self._page.stopping

    def reading(self, chunks: Iterator[T]) -> Iterator[T]:
        """The same chunks; a store that keeps the reader waiting for one too long costs this process its life."""
        while True:
            with self._page.limit(self._store_timeout_s, STORE, READ):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def writing(self) -> AbstractContextManager[None]:
        """The same for a step of the thread that writes."""
        return self._page.limit(self._store_timeout_s, STORE, WRITE)

    def run(self, claimed: Sequence[ClaimedJob]) -> Ran:
        """Start these batches, run these shards, and for a while others of the same batches."""
        until = time.monotonic() + GO_ON_S
        by_batch: dict[str, list[ClaimedJob]] = {}
        for job in claimed:
            if job.kind is JobKind.BATCH:
                if self._start(job):
                    by_batch.setdefault(job.id, [])
            else:
                batch = self._retry(partial(self._store.shard, job, self._lease_s)).batch
                by_batch.setdefault(batch, []).append(job)
        try:
            return sum((Pipeline(self, batch, jobs, until).run() for batch, jobs in by_batch.items()), Ran())
        finally:
            self._page.let_go()

    def _start(self, job: ClaimedJob) -> bool:
        try:
            return self._coordinator.start(job)
        except Exception as error:
            if not may_pass(error):
                raise
            self._postpone(job, error, tried=job.tries < job.max_attempts)  # a batch never fails by this
            return False

    def prepare(self, job: ClaimedJob) -> Run | None:
        """A claimed shard, ready to be read; None when its batch has ended meanwhile, or what it needs is away."""
        self._page.hold(job.id, job.attempt)
        self._metrics.waited((job.model, job.version), [job.waited_s] if job.attempt == 1 else [])
        run = None
        try:
            run = self._prepare(job)
        except Exception as error:
            if not may_pass(error):
                raise
            self._postpone(job, error, tried=False)
        if run is None:
            self._page.let_go(job.id)
        return run

    def _prepare(self, job: ClaimedJob) -> Run | None:
        work = self._retry(partial(self._store.shard, job, self._lease_s))
        batch = self._retry(partial(self._store.batch, work.batch))
        request = self._coordinator.request(work.batch)
        judged = self._poison.judge(job, work, request, batch) if batch.state is JobState.RUNNING else None
        if judged is None:
            self._retry(partial(self._store.drop, work))
            return None
        job, work, spec = judged.job, judged.work, self._registry.get(ModelRef(job.model, job.version))
        folder = OutputFolder(request.output)
        part = Part(folder, request, work, spec.signature, spec.ref)
        return Run(job, work, request, spec, part, folder, ShardRange(work.pieces), verdict=judged.verdict)

    def claim_next(self, batch: str) -> ClaimedJob | None:
        """The next shard of a batch that waits."""
        return self._retry(partial(self._store.claim_next, batch, self._worker, self._lease_s))

    def give_back(self, job: ClaimedJob) -> None:
        """This process has to stop: a shard that it has not done goes back, its attempt uncounted."""
        self._retry(partial(self._jobs.release, [job.id], self._worker))
        self._page.let_go(job.id)
        log.info("jobs_released", worker=self._worker, jobs=1)

    def on_device(self, run: Run, inputs: Inputs) -> ModelOutputs:
        """A chunk through the model; past it, when its row is not to be run again."""
        if run.verdict is not None:
            return ModelOutputs(inputs.good[:0], [], dict.fromkeys(inputs.good.tolist(), run.verdict))
        try:
            loaded = self._load(run.spec.name, run.spec.version)
        except Exception as error:
            run.tried = not may_pass(error)
            raise
        run.began = run.began or time.monotonic()  # loading says nothing about how long rows take
        return run_chunk(self._engine, loaded, inputs, partial(self._ran, run))

    def _ran(self, run: Run, rows: int, _: float) -> None:
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
        if run.over or not run.began or not run.seen or run.job.crashes:
            return
        batch = self._store.batch(run.work.batch)
        if batch.planned and self._store.under_way(batch.id)[0] == 0:
            run.shard_range.halve(lambda halves: self._split(run, batch, halves))

    def _split(self, run: Run, batch: Batch, halves: Halves) -> bool:
        kept, given, share = halves
        work, rate = run.work, run.seen / run.seconds
        if share * work.rows / rate < SPLIT_S:
            return False
        rows, size = int(work.rows * share), int(work.bytes * share)
        routed_jobs = self._store.split(
            work, Shard(kept, work.rows - rows, work.bytes - size), Shard(given, rows, size), batch
        )  # fmt: skip
        if routed_jobs is None:
            return False
        run.work = replace(work, pieces=kept, rows=work.rows - rows, bytes=work.bytes - size)
        self._coordinator.send(routed_jobs)
        log.info("shard_split", batch=batch.id, shard=work.id, rows=rows, part=Shard(given, rows, size).part)
        return True

    def finish(self, run: Run) -> str:
        """End the attempt in the ledger, then put its files in place; what became of it."""
        what = self._conclude(run)
        self._page.let_go(run.work.id)
        run.ended.set()
        if what != "succeeded":
            with self.writing():
                run.part.discard()
        work = run.work
        counts = {what: 1} if what in ("succeeded", "failed", "stopped") else {}
        self._metrics.ended(
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
            self._retry(partial(self._store.drop, run.work))
            return "stopped"
        if run.error is None:
            try:
                with self.writing():
                    outcome = run.part.close(run.seconds)
                return self._succeed(run, outcome)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, this shard has failed
                run.error = error
        if may_pass(run.error) and (not run.tried or run.job.tries < run.job.max_attempts):
            return self._postpone(run.job, run.error, tried=run.tried)
        told = JobError(type(run.error).__name__, str(run.error) or repr(run.error))
        return "failed" if self._retry(partial(self._store.fail, run.work, told)) else self._lost(run)

    def _lost(self, run: Run) -> str:
        log.warning("lease_lost", worker=self._worker, jobs=1, first=run.work.id)
        self._retry(partial(self._jobs.refused, {run.work.id: run.work.attempt}, self._worker))
        return "dropped"

    def _postpone(self, job: ClaimedJob, error: Exception, *, tried: bool) -> str:
        """Queue an attempt that met an error which may pass again, for later; what became of it."""
        wait, reason = delay_s(job.tries if tried else job.attempt), f"{type(error).__name__}: {error}"
        postponed = Postponed(job.id, job.attempt, wait, reason, counted=tried)
        queued, canceled = self._retry(partial(self._jobs.postpone, [postponed]))
        self._announcer.announce(canceled)
        log.warning(
            "jobs_postponed", worker=self._worker, jobs=len(queued), model=job.model, reason=reason, longest_s=round(wait, 1)
        )  # fmt: skip
        return "postponed" if queued else "stopped" if canceled else "dropped"

    def _succeed(self, run: Run, outcome: ShardOutcome) -> str:
        if not self._retry(partial(self._store.finish, run.work, outcome)):
            return self._lost(run)
        for file in outcome.files:
            try:
                with self.writing():
                    run.folder.place(file.temporary, file.name)
            except (ForebayError, OSError) as error:  # who ends the batch tries again
                log.warning("part_not_placed", batch=run.work.batch, part=file.name, error=str(error))
        return "succeeded"

    def _tend(self, batch: str) -> None:
        try:
            self._coordinator.tend(batch)
        except (ForebayError, OSError) as error:  # a sweep finds a batch that nobody looks after
            log.warning("batch_not_tended", batch=batch, error=str(error))

    def _retry(self, action: Callable[[], T]) -> T:
        """A shard in hand is worth some patience: it may be minutes of work."""
        return retry_while_unavailable(action, self._outage_timeout_s)
