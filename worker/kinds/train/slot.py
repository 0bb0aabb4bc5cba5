"""What a child does with a training job: start its trainer, follow it, and bring the job to what came of it.

The child holds the lease through its parent, as for any job, and never imports torch: the trainer is a process of its own that
knows neither ledger nor queue. Every write is fenced by the attempt, so that whoever lost the lease leaves nothing.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import structlog

from forebay.contract.errors import BlobCorrupt, BlobMissing, BrokerUnavailable, ForebayError, LedgerUnavailable
from forebay.contract.job import JobKind, Transition
from forebay.contract.requests.recipes import default_metric
from forebay.contract.requests.training import EVENTS_FILE, REQUEST_FILE, RESUME_FILE, Trained, TrainRequest
from forebay.contract.settings import Settings
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import ClaimedJob, Finished
from forebay.storage.jobs.store import JobStore
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.nodes import NodeStore
from forebay.storage.training.store import LeaseLost, TrainingStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.execution.backoff import may_pass
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.kinds.train.follow import CANCELED, LOST, STOPPING, End, Follower, Lookout
from forebay.worker.kinds.train.join import Joiner
from forebay.worker.kinds.train.launch import Launcher, Meeting, Trainer
from forebay.worker.kinds.train.nodes import PEER_LEFT, PEER_LOST, TOO_FEW, YIELDS, Companions, rendezvous_host, task_of
from forebay.worker.kinds.train.outcomes import DROPPED, FAILED, POSTPONED, STOPPED, SUCCEEDED, Outcomes
from forebay.worker.kinds.train.record import Record
from forebay.worker.kinds.train.register import new_version, result
from forebay.worker.kinds.train.tail import Tail
from forebay.worker.kinds.train.workplace import workplace
from forebay.worker.shared_page import SharedPage

log = structlog.get_logger()

WORKPLACES = "training"  # below the home
STORE_SHARE = 0.3  # of shutdown_grace_s: to store the trainer's last checkpoint
YIELD_S = 5.0  # until a run that has yielded is tried again: its worker serves the older run first


class TrainingSlot:
    """Runs the training jobs of one child process, one at a time."""

    def __init__(
        self,
        settings: Settings,
        *,
        jobs: JobStore,
        payloads: Payloads,
        blobs: BlobStore,
        outcomes: Outcomes,
        launcher: Launcher,
        dispatcher: Dispatcher,
        page: SharedPage,
        metrics: ChildMetrics,
    ) -> None:
        self._settings = settings
        self._worker = settings.worker_name
        self._jobs, self._payloads, self._blobs = jobs, payloads, blobs
        self._store, self._nodes = TrainingStore(jobs.ledger), NodeStore(jobs.ledger)
        self._registry, self._workers = ModelRegistry(jobs.ledger), WorkerRegistry(jobs.ledger)
        self._outcomes, self._launcher, self._dispatcher = outcomes, launcher, dispatcher
        self._page, self._metrics = page, metrics
        self._joiner = Joiner(settings, jobs, blobs, outcomes, launcher, page)

    def run(self, job: ClaimedJob) -> str:
        """Run a claimed job to its end, or as far as this worker may; what became of it."""
        started = time.perf_counter()
        self._metrics.waited((job.model, job.version), [job.waited_s] if job.attempt == 1 else [])
        try:
            what = self._try(job)
        except LeaseLost:
            what = self._outcomes.lost(job)
        seconds = time.perf_counter() - started
        counts = {what: 1} if what in (SUCCEEDED, FAILED, STOPPED) else {}
        self._metrics.ended(
            (job.model, job.version), counts, seconds, postponed=int(what == POSTPONED), refused=int(what == DROPPED)
        )  # fmt: skip
        log.info(
            "training_done", job=job.id, model=job.model, kind=str(job.kind), worker=self._worker, attempt=job.attempt,
            state=what, seconds=round(seconds, 3),
        )  # fmt: skip
        return what

    def _try(self, job: ClaimedJob) -> str:
        try:
            data = self._payloads.load(job.input, job.input_ref)
            with workplace(self._settings.home / WORKPLACES, f"{job.id}-{job.attempt}") as folder:
                return (
                    self._joiner.join(job, data, folder) if job.kind is JobKind.NODE else self._train(job, data, folder)
                )
        except (LeaseLost, LedgerUnavailable):  # without a ledger nothing can be written: the lease lapses
            raise
        except Exception as error:
            if may_pass(error):
                return self._outcomes.postpone(job, f"{type(error).__name__}: {error}")
            if not isinstance(error, ForebayError):
                log.exception("training_broken", job=job.id, attempt=job.attempt)
            return self._outcomes.fail(job, type(error).__name__, str(error) or repr(error))

    def _train(self, job: ClaimedJob, data: bytes, folder: Path) -> str:
        request = TrainRequest.load(data)
        blob = self._prepare(job, request, folder)
        with ExitStack() as stack:
            companions, meeting = self._company(job, request, blob, stack)
            record = stack.enter_context(closing(Record(self._store, self._blobs, job, request, folder)))
            trainer = stack.enter_context(closing(self._launcher.start(job, request, folder, meeting)))
            end = self._follow(job, trainer, record, folder, companions)
            return self._conclude(job, request, end, trainer, record, folder, companions)

    def _prepare(self, job: ClaimedJob, request: TrainRequest, folder: Path) -> str | None:
        """What the trainer reads: the request, and the newest checkpoint whose blob is whole, which is given."""
        (folder / REQUEST_FILE).write_bytes(request.dump())
        if self._outcomes.retry_while_unavailable(partial(self._store.start, job, request)) is None:
            return None
        for checkpoint in self._store.checkpoints(job.id):
            try:
                self._blobs.fetch(checkpoint.blob, folder / RESUME_FILE)
            except (BlobMissing, BlobCorrupt) as error:
                log.warning("checkpoint_unusable", job=job.id, step=checkpoint.step, error=str(error))
                continue
            log.info("training_resumed", job=job.id, attempt=job.attempt, step=checkpoint.step)
            return checkpoint.blob
        return None

    def _company(
        self, job: ClaimedJob, request: TrainRequest, checkpoint: str | None, stack: ExitStack
    ) -> tuple[Companions | None, Meeting | None]:
        """The other machines of the run, asked for until the stack is left, and where they meet."""
        if request.nodes == 1:
            return None, None
        wait_s = self._settings.node_wait_s
        companions = Companions(self._nodes, self._jobs, self._store, job, wait_s)
        host = rendezvous_host(self._settings, self._workers, job.queue)
        task = task_of(job, request, checkpoint, host, wait_s)
        stack.callback(lambda: self._outcomes.retry_while_unavailable(companions.dismiss))
        self._send(companions.summon(task, self._payloads))
        return companions, task.meeting(host=True, own=host)

    def _send(self, routed_jobs: list[RoutedJob]) -> None:
        try:
            self._dispatcher.send_jobs(routed_jobs)
        except BrokerUnavailable as error:  # a sweep sends them
            self._jobs.mark_unsent([routed_job.id for routed_job in routed_jobs])
            log.warning("send_failed", jobs=len(routed_jobs), error=str(error))

    def _follow(
        self, job: ClaimedJob, trainer: Trainer, record: Record, folder: Path, companions: Companions | None
    ) -> End:
        settings, further = self._settings, (lambda: None) if companions is None else companions.reason
        silence_s = settings.train_timeout_s + (0.0 if companions is None else settings.node_wait_s)
        follower = Follower(
            trainer, Tail(folder / EVENTS_FILE), record, Lookout(self._page, self._jobs, job, self._worker, further),
            timeout_s=silence_s, grace_s=self._launcher.grace_s,
        )  # fmt: skip
        return follower.run()

    def _conclude(
        self, job: ClaimedJob, request: TrainRequest, end: End, trainer: Trainer, record: Record, folder: Path,
        companions: Companions | None,
    ) -> str:  # fmt: skip
        if end.reason == LOST:
            raise LeaseLost(job.id)
        if end.trained is not None:
            record.settle(self._settings.outage_timeout_s, checkpoints=False)
            return self._finish(job, request, end.trained, record, folder)
        if end.refused is not None:
            return self._outcomes.fail(job, end.refused.type, end.refused.message)
        if end.reason == CANCELED:
            return self._outcomes.end(Finished(job.id, job.attempt, ending=Transition.CANCEL))
        if end.reason == STOPPING:
            record.settle(self._settings.shutdown_grace_s * STORE_SHARE)
            return self._outcomes.give_back(job)
        record.settle(self._settings.outage_timeout_s)
        if companions is not None:
            return self._part(job, end, trainer, companions)
        return self._outcomes.crashed(job, trainer.evidence())

    def _part(self, job: ClaimedJob, end: End, trainer: Trainer, companions: Companions) -> str:
        """A run on several machines has come to nothing, perhaps by one of the others."""
        reason = end.reason or companions.settled()
        if reason == YIELDS:
            return self._outcomes.postpone(job, "an older run waits for machines too", wait_s=YIELD_S)
        if reason == PEER_LEFT:
            return self._outcomes.postpone(job, "another machine of the run stopped", wait_s=1.0)
        if reason == TOO_FEW:
            words = f"not all machines came within node_wait_s of {self._settings.node_wait_s:g} s"
            if job.tries < job.max_attempts:
                return self._outcomes.postpone(job, words, counted=True)
            return self._outcomes.fail(job, "TooFewWorkers", f"{words}; start more workers for queue {job.queue}")
        return self._outcomes.crashed(job, companions.why() if reason == PEER_LOST else trainer.evidence())

    def _finish(self, job: ClaimedJob, request: TrainRequest, trained: Trained, record: Record, folder: Path) -> str:
        made = partial(new_version, job, request, trained, record.data, folder, self._blobs, self._registry)
        model = self._outcomes.retry_while_unavailable(made)
        metric = request.metric or default_metric(request.recipe)
        finish = partial(self._store.finish, job, request, model, trained, metric, result)
        version, ended = self._outcomes.retry_while_unavailable(finish)
        self._outcomes.announce([ended])
        log.info("model_trained", job=job.id, model=version.ref, metric=metric, value=trained.metrics.get(metric))
        return SUCCEEDED
