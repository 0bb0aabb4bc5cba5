"""What a child does with a node job: join a training run that another worker holds, as one of its machines.

It records nothing: process 0 of the run tells everything where the run's lease is held. It ends when the run's attempt does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import structlog

from forebay.contract.job import Transition
from forebay.contract.requests.training import REQUEST_FILE, RESUME_FILE, TrainRequest
from forebay.contract.settings import Settings
from forebay.contract.wire import codec
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import ClaimedJob, Finished
from forebay.storage.jobs.store import JobStore
from forebay.storage.training.store import LeaseLost
from forebay.worker.kinds.train.follow import LOST, STOPPING, TICK_S, Lookout
from forebay.worker.kinds.train.launch import Launcher, Trainer
from forebay.worker.kinds.train.nodes import NodeTask, own_address
from forebay.worker.kinds.train.outcomes import Outcomes
from forebay.worker.shared_page import SharedPage

log = structlog.get_logger()

OVER = "over"  # the run's attempt has ended
SETTLE_S = 6.0  # for the run's own word on why the trainers have ended


class Joiner:
    """Joins runs, one at a time."""

    def __init__(
        self,
        settings: Settings,
        jobs: JobStore,
        blobs: BlobStore,
        outcomes: Outcomes,
        launcher: Launcher,
        page: SharedPage,
    ) -> None:
        self._settings, self._jobs, self._blobs = settings, jobs, blobs
        self._outcomes, self._launcher, self._page = outcomes, launcher, page

    def join(self, job: ClaimedJob, data: bytes, folder: Path) -> str:
        """Take part until the trainer or the run has ended; what became of the node job."""
        task = NodeTask.load(data)
        if not self._goes_on(task):
            return self._canceled(job)
        (folder / REQUEST_FILE).write_text(task.request)
        if task.checkpoint is not None:
            self._blobs.fetch(task.checkpoint, folder / RESUME_FILE)
        meeting = task.meeting(host=False, own=own_address(self._settings, task.endpoint))
        trainer = self._launcher.start(job, TrainRequest.load(task.request.encode()), folder, meeting)
        try:
            return self._watch(job, task, trainer)
        finally:
            trainer.close()

    def _watch(self, job: ClaimedJob, task: NodeTask, trainer: Trainer) -> str:
        lookout = Lookout(
            self._page, self._jobs, job, self._settings.worker_name, lambda: None if self._goes_on(task) else OVER
        )
        reason = None
        while reason is None and trainer.status is None:
            time.sleep(TICK_S)
            reason = lookout.reason()
        if reason == LOST:
            raise LeaseLost(job.id)
        if reason == STOPPING:
            return self._leave(job, trainer)
        if reason is not None:
            trainer.kill(reason)
            return self._canceled(job)
        if trainer.status == 0:
            return self._outcomes.end(Finished(job.id, job.attempt, codec.encode({"run": task.run})))
        evidence = trainer.evidence()
        if self._until(lambda: not self._goes_on(task), SETTLE_S):
            return self._canceled(job)
        return self._outcomes.fail(job, "TrainerLost", evidence)

    def _leave(self, job: ClaimedJob, trainer: Trainer) -> str:
        """Say so first: the run then knows why its trainer ends, which writes a checkpoint when one of its processes is told."""
        what = self._canceled(job)
        trainer.stop()
        self._until(lambda: trainer.status is not None, self._launcher.grace_s)
        return what

    def _until(self, true: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not (found := true()) and time.monotonic() < until:
            time.sleep(TICK_S)
        return found

    def _canceled(self, job: ClaimedJob) -> str:
        return self._outcomes.end(Finished(job.id, job.attempt, ending=Transition.CANCEL))

    def _goes_on(self, task: NodeTask) -> bool:
        return self._jobs.attempts([task.run]).get(task.run) == task.attempt
