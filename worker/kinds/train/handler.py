"""What a child does with a training job: start its trainer, follow it, and end the attempt by what came of it; and with a node
job: join a run that another worker holds, as one of its machines.

The child holds the lease through its parent, as for any job, and never imports torch: the trainer is a process that knows neither
ledger nor queue. Every write is fenced by the attempt, so that whoever lost the lease leaves nothing.
"""  # fmt: skip

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog

from forebay.contract.errors import BlobCorrupt, BlobMissing
from forebay.contract.job import JobKind
from forebay.contract.requests.recipes import RECIPES, base_of, default_metric
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import (
    BASE_FOLDER,
    EVENTS_FILE,
    REQUEST_FILE,
    RESUME_FILE,
    Trained,
    TrainRequest,
)
from forebay.contract.wire import codec
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.training.records import Checkpoint
from forebay.storage.training.store import TrainingStore
from forebay.storage.tuning.records import TrialPlace
from forebay.storage.workers import WorkerRegistry
from forebay.worker.execution.attempts import Attempts, Canceled, Stopping
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.summary import FINAL_FATES, Fate
from forebay.worker.execution.work_folder import work_folder
from forebay.worker.kinds.train.follow import TICK_S, EventReader, Follower, TrainerEnd
from forebay.worker.kinds.train.launch import Launcher, Rendezvous, Trainer
from forebay.worker.kinds.train.nodes import NodeRequest, PeerNodes, node_request, own_address, rendezvous_host
from forebay.worker.kinds.train.record import RunRecorder
from forebay.worker.kinds.train.register import new_version, result
from forebay.worker.kinds.train.stop_check import StopCheck, StopReason
from forebay.worker.kinds.tune.handler import Trials
from forebay.worker.kinds.tune.pruning import TrialJudge
from forebay.worker.runtimes.folders import safe_folder

log = structlog.get_logger()

FOLDERS = "training"  # below the home
STORE_SHARE = 0.3  # of shutdown_grace_s: to store the trainer's last checkpoint
YIELD_S = 5.0  # until a run that has yielded is tried again: its worker serves the older run first
SETTLE_S = 6.0  # until the ledger tells why a run's trainers have ended


@dataclass(frozen=True, slots=True)
class Run:
    """One attempt of a training job, while its trainer runs."""

    job: ClaimedJob
    request: TrainRequest
    folder: Path
    trainer: Trainer
    recorder: RunRecorder
    peers: PeerNodes | None
    trial: TrialPlace | None = None
    judge: TrialJudge | None = None


class TrainHandler:
    """Runs the training and node jobs of one child process, one at a time."""

    def __init__(self, context: ChildContext, launcher: Launcher | None = None) -> None:
        self.context, self._settings = context, context.settings
        self._launcher = launcher or Launcher(context.settings)
        self._runs, self._workers = TrainingStore(context.ledger), WorkerRegistry(context.ledger)
        self._trials = Trials(context)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Run one of them; each may take days, so any further ones, which only a forged message brings, are released."""
        first, *others = claimed
        attempts.release_all(others)
        fate = attempts.run(first, partial(self._run, first, attempts), count_errors=False)
        if first.kind is JobKind.TRAIN and fate in FINAL_FATES:
            self._trials.ended(first.id)

    def _run(self, job: ClaimedJob, attempts: Attempts) -> Fate:
        data = self.context.payloads.load(job.input, job.input_ref)
        run = self._join if job.kind is JobKind.NODE else self._train
        with work_folder(self._settings.home / FOLDERS, f"{job.id}-{job.attempt}") as folder:
            return run(job, data, folder, attempts)

    # A run of this worker's own.

    def _train(self, job: ClaimedJob, data: bytes, folder: Path, attempts: Attempts) -> Fate:
        request = decode(data, TrainRequest)
        trial = attempts.retry_while_unavailable(partial(self._trials.store.queries.place, job.id))
        if trial is not None and (trial.pruned or trial.tune_state.final):
            raise Canceled
        judge = None if trial is None else self._trials.judge(trial, _metric(request))
        checkpoint = self._prepare(job, request, folder, attempts)
        with ExitStack() as stack:
            peers, rendezvous = self._submit_peers(job, request, checkpoint, attempts, stack)
            recorder = RunRecorder(self._runs, self.context.blobs, job, request, folder)
            stack.enter_context(closing(recorder))
            trainer = stack.enter_context(closing(self._launcher.start(job, request, folder, rendezvous)))
            run = Run(job, request, folder, trainer, recorder, peers, trial, judge)
            return self._conclude(run, self._follow(run), attempts)

    def _prepare(self, job: ClaimedJob, request: TrainRequest, folder: Path, attempts: Attempts) -> str | None:
        """Write what the trainer reads: the request, and the newest checkpoint whose blob is whole; that blob."""
        self._write_request(request, folder)
        attempts.retry_while_unavailable(partial(self._runs.start, job, request))
        usable = self._fetched(job, folder)
        step = usable.step if usable else None
        attempts.retry_while_unavailable(partial(self._runs.resume, job, step))
        if usable is None:
            return None
        log.info("training_resumed", job=job.id, attempt=job.attempt, step=step)
        return usable.blob

    def _write_request(self, request: TrainRequest, folder: Path) -> None:
        (folder / REQUEST_FILE).write_bytes(encode(request))
        if (base := base_of(request.recipe, request.params)) is not None:
            version, path = self.context.models.artifact(base)
            (folder / BASE_FOLDER).symlink_to(safe_folder(path, version).absolute())

    def _fetched(self, job: ClaimedJob, folder: Path) -> Checkpoint | None:
        for checkpoint in self._runs.queries.checkpoints(job.id):
            try:
                self.context.blobs.fetch(checkpoint.blob, folder / RESUME_FILE)
            except (BlobMissing, BlobCorrupt) as error:
                log.warning("checkpoint_unusable", job=job.id, step=checkpoint.step, error=str(error))
            else:
                return checkpoint
        return None

    def _submit_peers(
        self, job: ClaimedJob, request: TrainRequest, checkpoint: str | None, attempts: Attempts, stack: ExitStack
    ) -> tuple[PeerNodes | None, Rendezvous | None]:
        """Ask for the other machines of the run, until the stack is left; and where they meet."""
        if request.nodes == 1:
            return None, None
        wait_s = self._settings.node_wait_s
        peers = PeerNodes(self.context, job, wait_s)
        host = rendezvous_host(self._settings, self._workers, job.queue)
        node = node_request(job, request, checkpoint, host, wait_s)
        stack.callback(lambda: attempts.retry_while_unavailable(peers.cancel))
        peers.submit(node)
        return peers, node.rendezvous(host=True, address=host)

    def _follow(self, run: Run) -> TrainerEnd:
        timeout_s, check = self._settings.train_timeout_s, StopCheck(self.context, run.job)
        if run.peers is not None:
            timeout_s += self._settings.node_wait_s
            check = StopCheck(self.context, run.job, run.peers.reason)
        events = EventReader(run.folder / EVENTS_FILE)
        follower = Follower(
            run.trainer, events, run.recorder, check, timeout_s=timeout_s, grace_s=self._launcher.grace_s, judge=run.judge
        )  # fmt: skip
        return follower.run()

    def _conclude(self, run: Run, end: TrainerEnd, attempts: Attempts) -> Fate:
        job, settings = run.job, self._settings
        if end.reason is StopReason.LEASE_LOST:
            return attempts.lost(job)
        if end.trained is not None:
            run.recorder.flush(settings.outage_timeout_s, checkpoints=False)
            return self._register(run, end.trained, attempts)
        if end.refused is not None:
            return attempts.fail(job, end.refused.type, end.refused.message)
        if end.reason is StopReason.CANCELED:
            raise Canceled
        if run.judge is not None and run.judge.pruned is not None and end.reason is StopReason.PRUNED:
            run.recorder.flush(settings.outage_timeout_s, checkpoints=False)
            attempts.retry_while_unavailable(partial(self._trials.store.prune, job, *run.judge.pruned))
            raise Canceled
        if end.reason is StopReason.WORKER_STOPS:
            run.recorder.flush(settings.shutdown_grace_s * STORE_SHARE)
            raise Stopping
        run.recorder.flush(settings.outage_timeout_s)
        if run.trainer.misused:
            return attempts.fail(job, "TrainerUsage", run.trainer.evidence())
        if run.peers is not None:
            return self._without_peers(job, end, run.trainer, run.peers, attempts)
        return attempts.crashed(job, run.trainer.evidence())

    def _without_peers(
        self, job: ClaimedJob, end: TrainerEnd, trainer: Trainer, peers: PeerNodes, attempts: Attempts
    ) -> Fate:
        """End an attempt on several machines that came to nothing, perhaps because of one of the others."""
        reason = end.reason or peers.settled_reason()
        if reason is StopReason.YIELDS:
            return attempts.postpone(job, reason, wait_s=YIELD_S)
        if reason is StopReason.PEER_LEFT:
            return attempts.postpone(job, reason, wait_s=1.0)
        if reason is StopReason.TOO_FEW_NODES:
            message = f"{reason} within node_wait_s of {self._settings.node_wait_s:g} s"
            if job.tries < job.max_attempts:
                return attempts.postpone(job, message, counted=True)
            return attempts.fail(job, "TooFewWorkers", f"{message}; start more workers for queue {job.queue}")
        return attempts.crashed(job, peers.evidence() if reason is StopReason.PEER_LOST else trainer.evidence())

    def _register(self, run: Run, trained: Trained, attempts: Attempts) -> Fate:
        job, request = run.job, run.request
        if run.trial is not None:
            return self._keep(run, run.trial, trained, attempts)
        model = attempts.retry_while_unavailable(
            partial(new_version, self.context, job, request, trained, run.recorder.data, run.folder)
        )
        metric = _metric(request)
        version, ended = attempts.retry_while_unavailable(
            partial(self._runs.finish, job, request, model, trained, metric, result)
        )
        log.info("model_trained", job=job.id, model=version.ref, metric=metric, value=trained.metrics.get(metric))
        return attempts.succeeded([ended])

    def _keep(self, run: Run, trial: TrialPlace, trained: Trained, attempts: Attempts) -> Fate:
        """End a trial. Its version is kept for the end of the tune as long as none is better."""
        job, store, metric, retry = run.job, self._trials.store, _metric(run.request), attempts.retry_while_unavailable
        fitted = run.request.recipe in RECIPES and RECIPES[run.request.recipe].fitted
        kept = trained.steps if fitted else None  # all others keep the state of the best value
        value = retry(partial(store.queries.best_value, job.id, metric, kept))
        if value is None:
            there = f"nothing says how good it is: there is no {metric} of a validation split"
            return attempts.fail(job, "NotMeasured", there)
        model = None
        if retry(partial(store.leads, trial, metric, value)):
            made = partial(
                new_version, self.context, job, run.request, trained, run.recorder.data, run.folder, trial.tune
            )
            model = retry(made)
        told = codec.encode(
            {"tune": trial.tune, "trial": trial.number, "metrics": dict(trained.metrics), "value": value}
        )
        finish = partial(store.finish_trial, job, trial, metric, value, trained, model, told)
        log.info("trial_trained", tune=trial.tune, trial=trial.number, job=job.id, metric=metric, value=value)
        return attempts.succeeded([retry(finish)])

    # A run that another worker holds. Process 0 tells everything over there; here nothing is recorded.

    def _join(self, job: ClaimedJob, data: bytes, folder: Path, attempts: Attempts) -> Fate:
        node = decode(data, NodeRequest)
        if not self._runs_still(node):
            raise Canceled
        self._write_request(node.request, folder)
        if node.checkpoint is not None:
            self.context.blobs.fetch(node.checkpoint, folder / RESUME_FILE)
        rendezvous = node.rendezvous(host=False, address=own_address(self._settings, node.endpoint))
        with closing(self._launcher.start(job, node.request, folder, rendezvous)) as trainer:
            return self._watch(job, node, trainer, attempts)

    def _watch(self, job: ClaimedJob, node: NodeRequest, trainer: Trainer, attempts: Attempts) -> Fate:
        check = StopCheck(self.context, job, lambda: None if self._runs_still(node) else StopReason.RUN_ENDED)
        reason = None
        while reason is None and trainer.status is None:
            time.sleep(TICK_S)
            reason = check.reason()
        if reason is StopReason.LEASE_LOST:
            return attempts.lost(job)
        if reason is StopReason.WORKER_STOPS:
            # The ledger first: the run then knows why its trainers end, which write a checkpoint when one process is told.
            fate = attempts.cancel(job)
            trainer.stop()
            _wait_until(lambda: trainer.status is not None, self._launcher.grace_s)
            return fate
        if reason is not None:
            trainer.kill(reason)
            raise Canceled
        if trainer.status == 0:
            return attempts.succeed(job, codec.encode({"run": node.run}))
        evidence = trainer.evidence()
        if _wait_until(lambda: not self._runs_still(node), SETTLE_S):
            raise Canceled
        return attempts.fail(job, "TrainerLost", evidence)

    def _runs_still(self, node: NodeRequest) -> bool:
        return self.context.jobs.queries.attempts([node.run]).get(node.run) == node.attempt


def _metric(request: TrainRequest) -> str:
    return request.metric or default_metric(request.recipe, request.params)


def _wait_until(true: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < until:
        time.sleep(TICK_S)
    return found
