"""What a child does with a training job: start its trainer, follow it, and bring the job to what came of it.

The child holds the lease through its parent, as for any job, and never imports torch: the trainer is a process of its own that
knows neither ledger nor queue. Every write is fenced by the attempt, so that whoever lost the lease leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from forebay.contract.errors import BlobCorrupt, BlobMissing, BlobUnavailable, ForebayError, LedgerUnavailable
from forebay.contract.job import JobError, Transition
from forebay.contract.recipes import default_metric
from forebay.contract.settings import Settings
from forebay.contract.training import EVENTS_FILE, REQUEST_FILE, RESUME_FILE, Trained, TrainRequest
from forebay.storage.blobs import BlobStore
from forebay.storage.jobs import JobStore
from forebay.storage.models import ModelRegistry
from forebay.storage.payloads import Payloads
from forebay.storage.records import ClaimedJob, Finished, Postponed
from forebay.storage.training import LeaseLost, TrainingStore
from forebay.worker.announcer import Announcer
from forebay.worker.backoff import delay_s, may_pass
from forebay.worker.board import Board
from forebay.worker.patience import wait_out
from forebay.worker.tally import Tally
from forebay.worker.training.follow import CANCELED, LOST, STOPPING, End, Follower, Lookout
from forebay.worker.training.launch import TRAINER, Trainer, command, environment, processes
from forebay.worker.training.record import Record
from forebay.worker.training.register import new_version, result
from forebay.worker.training.tail import Tail
from forebay.worker.training.workplace import workplace

log = structlog.get_logger()

T = TypeVar("T")

WORKPLACES = "training"  # below the home
CHECKPOINT_SHARE, STORE_SHARE = 0.6, 0.3  # of shutdown_grace_s: for the trainer's last checkpoint, and to store it
AWAY = (LedgerUnavailable, BlobUnavailable)

# What became of a job. LEFT goes back to the queue, by this worker's parent.
SUCCEEDED, FAILED, STOPPED, POSTPONED, DROPPED, LEFT = "succeeded", "failed", "stopped", "postponed", "dropped", "left"


class TrainingSlot:
    """Runs the training jobs of one child process, one at a time."""

    def __init__(
        self,
        settings: Settings,
        *,
        jobs: JobStore,
        store: TrainingStore,
        registry: ModelRegistry,
        payloads: Payloads,
        blobs: BlobStore,
        announcer: Announcer,
        board: Board,
        tally: Tally,
        module: str = TRAINER,
    ) -> None:
        """`module` is what each process of a trainer runs."""
        self._settings = settings
        self._jobs = jobs
        self._store = store
        self._registry = registry
        self._payloads = payloads
        self._blobs = blobs
        self._announcer = announcer
        self._board = board
        self._tally = tally
        self._module = module
        self._worker = settings.worker_name

    def run(self, job: ClaimedJob) -> str:
        """Run a claimed job to its end, or as far as this worker may; what became of it."""
        started = time.perf_counter()
        model = (job.model, job.version)
        self._tally.waited(model, [job.waited_s] if job.attempt == 1 else [])
        try:
            what = self._try(job)
        except LeaseLost:
            what = self._lost(job)
        seconds = time.perf_counter() - started
        counts = {what: 1} if what in (SUCCEEDED, FAILED, STOPPED) else {}
        self._tally.ended(model, counts, seconds, postponed=int(what == POSTPONED), refused=int(what == DROPPED))
        log.info(
            "training_done", job=job.id, model=job.model, kind=str(job.kind), worker=self._worker, attempt=job.attempt,
            state=what, seconds=round(seconds, 3),
        )  # fmt: skip
        return what

    def _try(self, job: ClaimedJob) -> str:
        try:
            return self._train(job)
        except (LeaseLost, LedgerUnavailable):  # without a ledger nothing can be written: the lease lapses
            raise
        except Exception as error:
            if may_pass(error):
                return self._postpone(job, error)
            if not isinstance(error, ForebayError):
                log.exception("training_broken", job=job.id, attempt=job.attempt)
            return self._fail(job, error)

    def _train(self, job: ClaimedJob) -> str:
        request = TrainRequest.load(self._payloads.load(job.input, job.input_ref))
        with workplace(self._settings.home / WORKPLACES, f"{job.id}-{job.attempt}") as folder:
            self._prepare(job, request, folder)
            record = Record(self._store, self._blobs, job, request, folder)
            trainer = self._start(job, request, folder)
            try:
                end = self._follow(job, trainer, record, folder)
                return self._conclude(job, request, end, trainer, record, folder)
            finally:
                trainer.close()
                record.close()

    def _prepare(self, job: ClaimedJob, request: TrainRequest, folder: Path) -> None:
        """What the trainer reads: the request, and the newest checkpoint whose blob is whole."""
        (folder / REQUEST_FILE).write_bytes(request.dump())
        if self._wait_out(partial(self._store.start, job, request)) is None:
            return
        for checkpoint in self._store.checkpoints(job.id):
            try:
                self._blobs.fetch(checkpoint.blob, folder / RESUME_FILE)
            except (BlobMissing, BlobCorrupt) as error:
                log.warning("checkpoint_unusable", job=job.id, step=checkpoint.step, error=str(error))
                continue
            log.info("training_resumed", job=job.id, attempt=job.attempt, step=checkpoint.step)
            return

    def _start(self, job: ClaimedJob, request: TrainRequest, folder: Path) -> Trainer:
        settings = self._settings
        queue = settings.queues.get(job.queue)
        nproc = processes(settings, request.nproc, queue.capacity.gpu if queue is not None else 1)
        words = command(
            folder, nproc, settings.allowed_python_models, self._grace(CHECKPOINT_SHARE), module=self._module
        )
        trainer = Trainer(words, environment(settings, nproc), job.id)
        log.info(
            "training_started", job=job.id, model=job.model, recipe=request.recipe, worker=self._worker, pid=trainer.pid,
            attempt=job.attempt, processes=nproc, device=settings.device,
        )  # fmt: skip
        return trainer

    def _follow(self, job: ClaimedJob, trainer: Trainer, record: Record, folder: Path) -> End:
        lookout = Lookout(self._board, self._jobs, job, self._worker)
        follower = Follower(
            trainer, Tail(folder / EVENTS_FILE), record, lookout,
            timeout_s=self._settings.train_timeout_s, grace_s=self._grace(CHECKPOINT_SHARE),
        )  # fmt: skip
        return follower.run()

    def _conclude(
        self, job: ClaimedJob, request: TrainRequest, end: End, trainer: Trainer, record: Record, folder: Path
    ) -> str:
        if end.reason == LOST:
            return self._lost(job)
        if end.trained is not None:
            record.settle(self._settings.outage_patience_s, checkpoints=False)
            return self._finish(job, request, end.trained, record, folder)
        if end.refused is not None:
            return self._end(Finished(job.id, job.attempt, error=JobError(end.refused.type, end.refused.message)))
        if end.reason == CANCELED:
            return self._end(Finished(job.id, job.attempt, ending=Transition.CANCEL))
        if end.reason == STOPPING:
            record.settle(self._grace(STORE_SHARE))
            return self._give_back(job)
        record.settle(self._settings.outage_patience_s)
        return self._crashed(job, trainer.evidence())

    def _finish(self, job: ClaimedJob, request: TrainRequest, trained: Trained, record: Record, folder: Path) -> str:
        model = self._wait_out(
            partial(new_version, job, request, trained, record.data, folder, self._blobs, self._registry)
        )
        metric = request.metric or default_metric(request.recipe)
        version, ended = self._wait_out(partial(self._store.finish, job, request, model, trained, metric, result))
        self._announcer.announce([ended])
        log.info("model_trained", job=job.id, model=version.ref, **{metric: trained.metrics.get(metric)})
        return SUCCEEDED

    def _crashed(self, job: ClaimedJob, evidence: str) -> str:
        """The trainer's end counts as that of any process with a job: again while attempts are left, else WorkerLost."""
        freed, ended = self._wait_out(partial(self._jobs.crashed, [job.id], self._worker, evidence, job.attempt))
        self._announcer.announce(ended)
        log.error("trainer_lost", job=job.id, attempt=job.attempt, freed=len(freed), failed=len(ended), reason=evidence)
        if freed:
            return LEFT
        return FAILED if ended else self._lost(job)

    def _give_back(self, job: ClaimedJob) -> str:
        self._wait_out(partial(self._jobs.release, [job.id], self._worker))
        log.info("jobs_released", worker=self._worker, jobs=1)
        return LEFT

    def _fail(self, job: ClaimedJob, error: Exception) -> str:
        told = JobError(type(error).__name__, str(error) or repr(error))
        return self._end(Finished(job.id, job.attempt, error=told))

    def _end(self, finished: Finished) -> str:
        ended = self._wait_out(partial(self._jobs.finish, [finished]))
        self._announcer.announce(ended)
        if not ended:
            raise LeaseLost(finished.id)
        return STOPPED if finished.ending is not None else FAILED

    def _postpone(self, job: ClaimedJob, error: Exception) -> str:
        """What the trainer needs is away for now: the job waits, at the cost of no attempt."""
        wait, reason = delay_s(job.attempt), f"{type(error).__name__}: {error}"
        queued, canceled = self._wait_out(
            partial(self._jobs.postpone, [Postponed(job.id, job.attempt, wait, reason, counted=False)])
        )
        self._announcer.announce(canceled)
        log.warning(
            "jobs_postponed", worker=self._worker, jobs=len(queued), model=job.model, reason=reason, longest_s=round(wait, 1)
        )  # fmt: skip
        return POSTPONED if queued else STOPPED if canceled else DROPPED

    def _lost(self, job: ClaimedJob) -> str:
        log.warning("lease_lost", worker=self._worker, jobs=1, first=job.id)
        self._wait_out(partial(self._jobs.refused, {job.id: job.attempt}, self._worker))
        return DROPPED

    def _grace(self, share: float) -> float:
        return self._settings.shutdown_grace_s * share

    def _wait_out(self, action: Callable[[], T]) -> T:
        """Hours of work are in hand."""
        return wait_out(action, self._settings.outage_patience_s, AWAY)
