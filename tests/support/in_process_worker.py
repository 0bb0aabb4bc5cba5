"""A child's runner without a child: what its parent would do between its jobs is done here. Trainers are stubs that write what
the real ones write; so are evaluations where a stub stands for all models.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from forebay.contract.errors import ForebayError, LedgerUnavailable
from forebay.contract.job import JobKind, JobState
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import (
    ARTIFACT_FOLDER,
    CHECKPOINT_FOLDER,
    EVENTS_FILE,
    TEST,
    TRAIN,
    DataSummary,
    Point,
    Saved,
    Trained,
    TrainRequest,
)
from forebay.contract.settings import Settings
from forebay.producer.session import Session
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.parents import ParentJobs
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.training.records import Evaluation
from forebay.storage.training.store import TrainingStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.child.kinds import HANDLERS
from forebay.worker.child.runner import Runner
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import Artifacts, ModelCache
from forebay.worker.execution.summary import Fate
from forebay.worker.kinds.train.handler import TrainHandler
from forebay.worker.parent.drift_sweep import DriftSweep
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.sweep_loop import SweepLoop
from forebay.worker.shared_page import SharedPage

SWEEP_S = 0.1
_PAUSE = threading.Event()  # never set
WHOLE_S = 60.0


class InProcessWorker:
    """Runs jobs by `ledger`, with `runtime` in the place of all models, if there is one; `jobs` tells what there is to run."""

    def __init__(
        self, settings: Settings, session: Session, ledger: Ledger, jobs: JobStore, *, runtime: Any = None, launcher: Any = None
    ) -> None:  # fmt: skip
        blobs, ceilings = BlobStore(settings.blobs), MemoryCeilings(CeilingStore(ledger, "cpu"))
        cache = ModelCache(
            2**30, Artifacts(blobs, settings.home / "artifacts").fetch, "cpu", settings.allowed_python_models
        )
        if runtime is not None:
            cache = ModelCache(2**30, lambda _: None, "cpu", runtimes=lambda *_: runtime)
        context = ChildContext(
            settings,
            ledger,
            blobs,
            session.watcher._redis,
            SharedPage(),
            ChildMetrics(),
            ceilings,
            cache,
        )
        context.__dict__["dispatcher"] = session.dispatcher
        stubs: Any = {JobKind.TRAIN: _Made(lambda context: TrainHandler(context, launcher or _Launcher()))}
        if runtime is not None:
            stubs[JobKind.EVALUATE] = _Made(_Evaluator)
        self._known, self._ledger, self._jobs, self._swept, self._lease_s = (
            jobs,
            ledger,
            context.jobs,
            0.0,
            settings.lease_s,
        )
        self._runner = Runner(context, HANDLERS | stubs)
        self.doomed: str | None = None  # the batch whose first shard kills two processes
        self._attempts = Attempts(context.jobs, context.announcer, context.page, context.metrics, settings)
        self.metrics, self._drift = WorkerMetrics(), DriftSweep(ledger, settings)
        parent: Any = SimpleNamespace(store=JobStore(ledger), metrics=self.metrics)
        nobody: Any = None
        self._loop = SweepLoop(parent, nobody, nobody)

    def claim_and_return(self, id: str) -> None:
        """A claim that comes to nothing, one of a child that dies, and a lease that is renewed."""
        retry = self._attempts.retry_while_unavailable
        for _ in range(2):
            [job] = self._attempts.claim([id])
            assert retry(partial(self._jobs.renew, [id], "w", self._lease_s)) == {id}
            self._attempts.release(job)
        self._claim_and_die(id)

    def _claim_and_die(self, id: str) -> None:
        self._attempts.claim([id])
        died = partial(self._jobs.free_crashed, [id], "w", "it died")
        freed, ended = self._attempts.retry_while_unavailable(died)
        assert ([job.id for job in freed], ended) == ([id], [])

    def run_until(self, over: Callable[[], bool]) -> None:
        until = time.monotonic() + WHOLE_S
        while not over():
            assert time.monotonic() < until, [
                (str(job.kind), str(job.state), job.attempt, job.error, job.progress)
                for job in self._known.queries.find(state=[JobState.QUEUED, JobState.RUNNING])
            ]
            if time.monotonic() > self._swept + SWEEP_S:
                self._sweep()
                self._swept = time.monotonic()
            self._work()

    def _sweep(self) -> None:
        sweeps = self._jobs.sweeps
        for step in (
            sweeps.free_lapsed, sweeps.expire, sweeps.take_due, partial(ParentJobs(self._ledger).requeue_stalled, 0.3),
            partial(WorkerRegistry(self._ledger).heartbeat, "w", "here", "cpu", ("cpu",), 0.0), self._loop._write_served,
            self._drift.sweep,
        ):  # fmt: skip
            with suppress(LedgerUnavailable):
                step()

    def _work(self) -> None:
        waiting = self._known.queries.find(state=[JobState.QUEUED], limit=1000)
        ids = sorted(job.id for job in waiting if job.not_before is None)
        doomed = [job.id for job in waiting if self.doomed is not None and job.parent_id == self.doomed]
        if doomed:
            self.doomed = None
            self._claim_and_die(doomed[0])
            self._claim_and_die(doomed[0])
        if ids:
            with suppress(ForebayError):
                self._runner.run(ids)
            self.metrics.add_served(self._runner.report()[1])
        else:
            _PAUSE.wait(0.02)

    def close(self) -> None:
        self._ledger.close()


class _Made:
    """In the place of a HandlerSpec: makes the handler by a call."""

    def __init__(self, make: Callable[[ChildContext], Any]) -> None:
        self.make = make


class _Launcher:
    """Starts trainers that have told everything at once, and are there for a moment."""

    grace_s = 1.0

    def start(self, job: ClaimedJob, request: TrainRequest, folder: Path, rendezvous: Any = None) -> "_Trainer":
        return _Trainer(folder)


class _Trainer:
    def __init__(self, folder: Path) -> None:
        self._until = time.monotonic() + 0.45
        (folder / CHECKPOINT_FOLDER).mkdir()
        (folder / ARTIFACT_FOLDER).mkdir()
        (folder / ARTIFACT_FOLDER / "weights").write_text("w")
        (folder / CHECKPOINT_FOLDER / "step=1.ckpt").write_text("1")
        field = {"x": {"dtype": "float32", "shape": []}}
        metrics = {"accuracy": 0.5}
        told = [
            DataSummary({"train": 8, "test": 2}, "ab" * 32, ("x",), ("no", "yes")),
            Point(1, 1, TRAIN, {"loss": 1.0}, 100.0, 1.0, 2), Saved(1, 1, f"{CHECKPOINT_FOLDER}/step=1.ckpt"),
        ]  # fmt: skip
        self._events = folder / EVENTS_FILE
        self._events.write_bytes(b"".join(encode(event) + b"\n" for event in told))
        self._last = [Point(2, 1, TRAIN, {"loss": 0.5}, 100.0, 0.0, 2), Point(2, 1, TEST, metrics),
                      Trained(metrics, "recipe", field, {"y": field["x"]}, {"recipe": "stand-in"}, 1, 2)]  # fmt: skip

    @property
    def status(self) -> int | None:
        if time.monotonic() < self._until:
            return None
        with self._events.open("ab") as file:
            file.writelines(encode(event) + b"\n" for event in self._last)
        self._last = []
        return 0

    def stop(self) -> None: ...

    def kill(self, why: str) -> None: ...

    def close(self) -> None: ...

    def evidence(self) -> str:
        return "it told everything"


class _Evaluator:
    """Finishes an evaluation that has counted nothing."""

    def __init__(self, context: ChildContext) -> None:
        self._store = TrainingStore(context.ledger)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        for job in claimed:
            attempts.run(job, partial(self._finish, job, attempts))

    def _finish(self, job: ClaimedJob, attempts: Attempts) -> Fate:
        found = Evaluation(job.id, "m", 1, "rows", "ab" * 32, 2, {"accuracy": 1.0}, None, None, 0.1)
        finish = partial(self._store.finish_evaluation, job, found, b"")
        return attempts.succeeded([attempts.retry_while_unavailable(finish)])
