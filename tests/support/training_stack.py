"""A stack whose workers train for real: a small data set, the jobs that learn it, and the processes that do."""

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.contract.job import JobInfo, JobKind, JobState, new_ids
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import EVENTS_FILE, Point, Saved, TrainRequest, decode_event
from forebay.contract.wire import codec
from forebay.contract.wire.celery_app import make_app
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import NewJob
from forebay.storage.training.store import TrainingStore
from support.waiting import wait_until
from support.worker_stack import Worker, WorkerStack

ROWS = 4000
STEPS = 88  # of an epoch: 2,800 rows of training in batches of 32
LONG_S = 300  # a busy machine is no reason to fail
TORCHRUN = "torch.distributed.run"


class TrainingStack(WorkerStack):
    """Ledger, queue, a data set of two classes, and workers that train."""

    def __init__(self, folder: Path, broker: str, database: str | None = None, **more: str) -> None:
        super().__init__(folder, broker, database, **more)
        self.runs_of = TrainingStore(self.ledger)
        self.data = folder / "rows.parquet"
        made = np.random.default_rng(0)
        x = made.standard_normal((ROWS, 8)).astype(np.float32)
        truth = x @ made.standard_normal(8) + 0.3 * made.standard_normal(ROWS) > 0
        columns = {f"x{i}": x[:, i] for i in range(8)} | {"label": np.where(truth, "yes", "no")}
        pq.write_table(pa.table(columns), self.data)
        self._dispatcher = Dispatcher(make_app(self.settings))

    def trainer(self, name: str = "t1", **more: str) -> Worker:
        """A worker that serves the queue `train`."""
        return self.worker(name, "train", **more)

    def train(self, epochs: int = 3, every: int = 600, max_attempts: int = 3, **more: Any) -> str:
        """A training job, sent; `every` so many steps it writes a checkpoint."""
        [id] = new_ids(1)
        request = TrainRequest(
            "classifier", (InputFile(str(self.data), self.data.stat().st_size),), "parquet", target="label", seed=3,
            params={"epochs": epochs}, checkpoint_steps=every, checkpoint_minutes=None, checkpoint_keep=2, **more,
        )  # fmt: skip
        job = NewJob(id, JobKind.TRAIN, "sides", 0, "train", max_attempts=max_attempts, input=encode(request))
        self.store.add([job])
        self._dispatcher.send_jobs([RoutedJob(id, job.model, 0, job.queue, job.priority, exclusive=True)])
        return id

    def result(self, id: str) -> dict[str, Any]:
        """What a job that has succeeded gave."""
        [outcome] = self.store.queries.outcomes([id])
        assert outcome.result is not None, outcome.error
        made: dict[str, Any] = codec.decode(outcome.result)
        return made

    def trainers(self) -> list[psutil.Process]:
        """The processes that train in this stack, torchrun itself left out."""
        return [p for p in self.family() if TORCHRUN not in p.info["cmdline"]]

    def family(self) -> list[psutil.Process]:
        """These, and torchrun."""
        folder = str(self.settings.home / "training")
        found = psutil.process_iter(["cmdline", "status"])
        ours = [p for p in found if any(word.startswith(folder) for word in p.info["cmdline"] or [])]
        return [p for p in ours if p.info["status"] != psutil.STATUS_ZOMBIE]

    def nodes(self, id: str) -> list[JobInfo]:
        """The node jobs of a run, the newest first."""
        return self.store.queries.find(kind=JobKind.NODE, parent_id=id)

    def events(self, id: str) -> list[Any]:
        """What the trainer of a running job has told so far."""
        for file in (self.settings.home / "training").glob(f"{id}-*/{EVENTS_FILE}"):
            return [event for line in file.read_bytes().splitlines() if (event := decode_event(line)) is not None]
        return []

    def step(self, id: str) -> int:
        """The last step that the trainer has told of."""
        return max((e.step for e in self.events(id) if isinstance(e, Point | Saved)), default=0)

    def saved(self, id: str) -> int:
        """The step of the last checkpoint that the trainer has written."""
        return max((e.step for e in self.events(id) if isinstance(e, Saved)), default=0)

    def stored(self, id: str) -> int:
        """The step of the last checkpoint that is in the ledger."""
        return max((c.step for c in self.runs_of.queries.checkpoints(id)), default=0)

    def resumed(self) -> list[int]:
        """From which steps attempts have gone on, in order of time."""
        lines = [line for worker in self.workers for line in worker.said().splitlines() if "training_resumed" in line]
        return [int(line.split("step=")[1].split()[0]) for line in sorted(lines)]

    def await_end(self, id: str, state: JobState = JobState.SUCCEEDED) -> None:
        """Wait for the job's end, which must be this one."""
        wait_until(lambda: self.store.queries.get(id).state.final, f"job {id} has ended", LONG_S)
        info = self.store.queries.get(id)
        assert info.state is state, info.error

    def await_step(self, id: str, steps: int = 1) -> None:
        """Wait until its trainer has gone so far."""
        wait_until(lambda: self.step(id) >= steps, f"job {id} has gone {steps} steps", LONG_S)

    def kill_worker(self, worker: Worker) -> None:
        """End a worker process as the kernel would; no trainer of it may go on."""
        family = self.family()
        worker.process.kill()
        worker.process.wait(120)
        _, left = psutil.wait_procs(family, timeout=60)
        assert left == []

    def close(self) -> None:
        """Stop everything; the trainers must end by themselves."""
        self._dispatcher.close()
        super().close()
