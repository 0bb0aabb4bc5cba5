"""A small run of nearly everything that writes to the ledger: predictions, batches whose shards split, are cut, stop and fail,
a training run, an evaluation, retries, cancels, an expired job, versions and aliases; client and worker in one process, without
Celery. What became of it is audited row by row.

The ledger of client and worker is one whose commits a test may lose. What the audit reads comes from another connection.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chaos.evidence import RETRIED, install_write_trigger
from forebay.contract.errors import LedgerUnavailable, OutcomeUnknown, Transient
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import (
    TRAIN,
    TrainRequest,
)
from forebay.contract.settings import Settings
from forebay.contract.signature import Signature
from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.requests.audit import audit
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.registry import ModelRegistry
from forebay.storage.training.queries import TrainingQueries
from support.commit_faults import FaultyDatabase
from support.fault_proxy import never
from support.in_process_worker import InProcessWorker

T = TypeVar("T")

ROWS = 640
ROW_S = 0.001  # a batch takes long enough for its shards to be split
BAD, PASSING, STOPPING = -1.0, 7777.0, 8888.0
FEW = 40  # rows of the batches that do not end as they were to
LEASE_S = 1.5


class DisturbedRun(ABC):
    """One run; `run` it, then `audit` it. `close` it in the end."""

    def __init__(self, folder: Path, faulty: FaultyDatabase, database: str, broker: str, **worker: Any) -> None:
        """`database` is the address at which the ledger of `faulty` never loses anything; its tables are there."""
        self.faulty, self.folder = faulty, folder
        given = {"HOME": str(folder), "BROKER": broker, "DATABASE": faulty.url, "LEASE_S": str(LEASE_S), "WORKER_NAME": "w",
                 "MAX_INLINE_BYTES": "300", "OUTAGE_TIMEOUT_S": "20", "ALLOWED_PYTHON_MODELS": "support.*"}  # fmt: skip
        self.settings = Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})
        self.client = Client(self.settings)
        faulty.watch(self.client.session.ledger)
        self.truth = Ledger(database)
        install_write_trigger(self.truth)
        self.jobs = JobStore(self.truth)
        self.splits = 0
        ledger = faulty.watch(Ledger(faulty.url, settle_s=10.0))
        self.worker = InProcessWorker(self.settings, self.client.session, ledger, self.jobs, **worker)

    @abstractmethod
    def run(self) -> None:
        """Everything, with commits lost as the database is told to."""

    @abstractmethod
    def audit(self) -> None:
        """Hold everything against what it was made from."""

    def insist(self, action: Callable[[], T], look: Callable[[], Any]) -> T:
        """Do it until the ledger takes it; who is refused must find with a `look` that nothing was done."""
        before = look()
        while True:
            try:
                return action()
            except OutcomeUnknown:
                raise
            except LedgerUnavailable:
                assert look() == before, "it was refused, and yet it was done"

    def audit_ends(self) -> Counter[str]:
        """Each job has ended once, and once more for each retry; how often each was retried."""
        with self.truth.read() as connection:
            ends = dict(connection.exec_driver_sql("SELECT id, count(*) FROM chaos_final_writes GROUP BY id").all())
            retried = Counter(row.job_id for row in connection.exec_driver_sql(RETRIED))
        often = {id: count for id, count in ends.items() if count != 1 + 2 * retried[id]}
        assert not often, [(self.jobs.queries.get(id), ends[id], retried[id], self._writes(id)) for id in often]
        return retried

    def _writes(self, id: str) -> list[Any]:
        with self.truth.read() as connection:
            return [
                tuple(row) for row in connection.exec_driver_sql("SELECT * FROM chaos_final_writes") if row.id == id
            ]

    def _versions(self, name: str) -> list[int]:
        return [model.version for model in ModelRegistry(self.truth).versions() if model.name == name]

    def _count(self) -> int:
        return len(self.jobs.queries.find(limit=1000))

    def _state(self, id: str) -> JobState:
        return self.jobs.queries.get(id).state

    def _open(self) -> bool:
        return bool(self.jobs.queries.find(state=[JobState.QUEUED, JobState.RUNNING]))

    def close(self) -> None:
        self.faulty.lose(never)
        self.worker.close()
        self.client.close()
        self.truth.close()


class SmallRun(DisturbedRun):
    """The small run, of a model that is this object."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given, runtime=self)
        self.mended = self._passed = self._stopped = False

    def load(self, *_: Any) -> "SmallRun":
        return self

    def predict(self, rows: Sequence[Any]) -> list[float]:
        """2x; but some rows fail until they are mended, one at first, and at one its batch is canceled."""
        threading.Event().wait(ROW_S * len(rows))
        if STOPPING in rows and not self._stopped:
            self._stopped = True
            self.insist(self.stopped.cancel, lambda: self._state(self.stopped.id))
        if BAD in rows and not self.mended:
            raise ValueError("a row that is bad for now")
        if PASSING in rows and not self._passed:
            self._passed = True
            raise Transient("not now")
        return [2 * float(row) for row in rows]

    def run(self) -> None:
        """Everything, with commits lost as the database is told to."""
        registry = self.client.session.registry
        model = ModelVersion("m", 0, "python", "", "none", 0, Signature(), max_batch_size=2)
        self.insist(lambda: registry.register(model), lambda: self._versions("m"))
        self.insist(lambda: registry.set_alias("m", "champion", 1), lambda: None)
        self._register_and_delete(registry, model)
        inputs = [1.0, 2.0, 3.0, BAD, PASSING, BAD]
        self.predictions = self.insist(lambda: self.client.predict_many("m", inputs), self._count)
        keyed = partial(self.client.predict, "m", 9.0, idempotency_key="nine")
        self.predictions.append(self.insist(keyed, self._count))
        assert self.insist(keyed, self._count).id == self.predictions[-1].id
        self.canceled = self.insist(lambda: self.client.predict("m", 11.0), self._count)
        self.insist(self.canceled.cancel, lambda: self._state(self.canceled.id))
        self.expired = self.insist(lambda: self.client.predict("m", 12.0, deadline=0.001), self._count)
        rows = np.arange(ROWS, dtype=np.float64)
        self.batch = self.insist(partial(self._submit_batch, "x", rows, ROWS), self._count)
        bad, stopping = rows[:FEW].copy(), rows[:FEW].copy()
        bad[FEW // 4], stopping[FEW // 2] = BAD, STOPPING
        self.failing = self.insist(partial(self._submit_batch, "failing", bad, FEW // 2, max_errors=0), self._count)
        self.stopped = self.insist(partial(self._submit_batch, "stopped", stopping, FEW // 4), self._count)
        self.worker.doomed = self.failing.id
        [self.training, self.evaluation] = self._add_training()
        self.worker.claim_and_return(self.predictions[0].id)
        self.worker.run_until(lambda: not self._open())
        self.mended = True
        failed = self.predictions[3]
        assert self._state(failed.id) is JobState.FAILED
        self.insist(failed.retry, lambda: self._state(failed.id))
        self.insist(self.stopped.retry, lambda: self._state(self.stopped.id))
        self.insist(partial(self.client.retry_failed, "m"), lambda: self._state(self.predictions[5].id))
        self.worker.run_until(lambda: not self._open())
        self.faulty.lose(never)

    def _register_and_delete(self, registry: ModelRegistry, model: ModelVersion) -> None:
        spare = replace(model, name="spare")
        self.insist(lambda: registry.register(spare), lambda: self._versions("spare"))
        self.insist(lambda: registry.set_alias("spare", "old", 1), lambda: None)
        named = ModelRef("spare", alias="old")
        self.insist(lambda: registry.drop_alias("spare", "old"), lambda: ModelRegistry(self.truth).resolve(named))
        self.insist(lambda: registry.delete("spare/1"), lambda: self._versions("spare"))
        assert self._versions("spare") == []

    def audit(self) -> None:
        """Hold everything against what it was made from."""
        states = {job.id: self._state(job.id) for job in self.predictions}
        assert set(states.values()) == {JobState.SUCCEEDED}, states
        wanted = [2.0, 4.0, 6.0, 2 * BAD, 2 * PASSING, 2 * BAD, 18.0]
        assert [job.result(5) for job in self.predictions] == wanted
        assert self._state(self.canceled.id) is JobState.CANCELED
        assert self._state(self.training) is JobState.SUCCEEDED, self.jobs.queries.get(self.training).error
        assert self._state(self.evaluation) is JobState.SUCCEEDED, self.jobs.queries.get(self.evaluation).error
        assert self.expired.result(5) == 24.0, "it had expired, and was retried"
        assert self._state(self.failing.id) is JobState.FAILED
        assert audit(self.client.session, self.failing.id)["faults"] == []
        self._audit_batch(self.batch, "x")
        self._audit_batch(self.stopped, "stopped", {FEW // 2: STOPPING}, FEW)
        with self.truth.read() as connection:
            self.splits = connection.exec_driver_sql("SELECT count(*) FROM shards WHERE planned IS NULL").scalar_one()
        runs = TrainingQueries(self.truth)
        assert self._versions("trained") == [1], "registered once"
        assert [point.step for point in runs.curve(self.training) if point.split == TRAIN][-1] == 2
        for checkpoint in runs.checkpoints(self.training):
            self.client.session.blobs.get(checkpoint.blob)
        assert len(runs.evaluations("m", 1)) == 1
        retried = self.audit_ends()
        again = [self.predictions[3], self.predictions[5], self.expired, self.failing, self.stopped]
        assert {id: count for id, count in retried.items() if id in {job.id for job in again}} == {
            job.id: 1 for job in again
        }

    def _audit_batch(self, job: Job, name: str, others: Mapping[int, float] = {}, count: int = ROWS) -> None:
        info = self.jobs.queries.get(job.id)
        assert info.state is JobState.SUCCEEDED, info.error
        assert audit(self.client.session, job.id)["faults"] == []
        rows: list[tuple[int, float]] = []
        for path in sorted((self.folder / f"{name}-out").glob("part-*.parquet")):
            table = pq.read_table(path).to_pydict()
            rows += zip(table["row"], table["output"], strict=True)
        assert sorted(rows) == [(i, 2.0 * others.get(i, i)) for i in range(count)]

    def _submit_batch(self, name: str, rows: NDArray[np.float64], shard_rows: int, **limits: Any) -> Job:
        np.save(self.folder / f"{name}.npy", rows)
        return self.client.batch(
            "m", self.folder / f"{name}.npy", self.folder / f"{name}-out", columns="array", shard_rows=shard_rows, **limits
        )  # fmt: skip

    def _add_training(self) -> list[str]:
        ids = new_ids(2)
        request = TrainRequest(
            "stand-in", (), "parquet", metric="accuracy", alias="best", checkpoint_steps=1, checkpoint_minutes=None,
            checkpoint_keep=1,
        )  # fmt: skip
        kinds = (JobKind.TRAIN, "trained", 0, "train"), (JobKind.EVALUATE, "m", 1, "cpu")
        jobs = [NewJob(id, *kind, max_attempts=9, input=encode(request)) for id, kind in zip(ids, kinds, strict=True)]
        self.insist(lambda: self.client.session.jobs.add(jobs), self._count)
        return ids


def run_and_audit(
    folder: Path, faulty: FaultyDatabase, database: str, broker: str, make: Callable[..., DisturbedRun] = SmallRun
) -> int:
    """One run with whatever `faulty` is told to lose, and its audit; how often shards were split."""
    with closing(make(folder, faulty, database, broker)) as run:
        run.run()
        run.audit()
        return run.splits
