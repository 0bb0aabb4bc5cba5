"""Training runs that no trainer makes: they go the way runs go, through TrainingStore, as a test or a picture wants them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from msgspec import to_builtins

from forebay.contract.job import JobError, JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import DataSummary, Lineage, Point, Trained, TrainRequest
from forebay.contract.signature import Signature
from forebay.contract.wire import codec
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.training.records import Evaluation, evaluation_value
from forebay.storage.training.store import TrainingStore

STEPS = 200
DATA = DataSummary(
    {"train": 105, "validation": 15, "test": 30}, "5d" * 32, ("sepal", "petal"), ("setosa", "versicolor", "virginica"),
    dropped=2,
)  # fmt: skip
CONFUSION = [[10, 0, 0], [0, 9, 1], [0, 1, 9]]


class MadeRun:
    """A training job that a worker has begun."""

    def __init__(
        self, ledger: Ledger, params: Mapping[str, Any], *, model: str = "iris", data: DataSummary = DATA, **more: Any
    ) -> None:
        [self.id] = new_ids(1)
        self.jobs, self.store = JobStore(ledger), TrainingStore(ledger)
        self.request = TrainRequest(
            "classifier", (InputFile("data/iris.parquet", 4821),), "parquet", target="species", params=params,
            metric="accuracy", alias="champion",
        )  # fmt: skip
        self.data, self.model = data, model
        self.jobs.add([NewJob(self.id, JobKind.TRAIN, model, 0, "train", input=encode(self.request), **more)])
        [self.job] = self.jobs.claim([self.id], "train@birch", 30)
        self.store.start(self.job, self.request)
        self.store.set_data(self.job, data)

    def train(self, until: int, *, every: int = 10, rate: float = 0.03, tick: Callable[[], object] = bool) -> None:
        """Measure and save on the way to a step; the loss falls at this rate. `tick` lets time pass before each point."""
        for step in range(every, until + 1, every):
            tick()
            loss = 1.1 * math.exp(-rate * step) + 0.05
            epoch = step // 20
            points = [Point(step, epoch, "train", {"loss": loss, "lr": 0.01}, rows_per_s=8000.0 + step, steps=STEPS)]
            if step % 20 == 0:
                accuracy = 1 - 0.6 * math.exp(-rate * step)
                points.append(Point(step, epoch, "validation", {"loss": loss * 1.1 + 0.02, "accuracy": accuracy}))
            self.store.add_metrics(self.job, points, f"epoch {epoch}")
            if step % 50 == 0:
                self.store.add_checkpoint(self.job, step, epoch, f"sha256:{step:064x}", 12_345 + step, keep=3)

    def finish(
        self, accuracy: float, *, parent: str | None = None, confusion: Sequence[Sequence[int]] | None = CONFUSION
    ) -> ModelVersion:
        """Register the version that came out."""
        metrics = {"accuracy": accuracy, "loss": round(1 - accuracy, 6), "f1": round(accuracy - 0.004, 6)}
        request, data = self.request, self.data
        lineage = Lineage(
            self.id, request.recipe, request.params, tuple(file.path for file in request.files), data.sha256, data.rows,
            request.seed, "1.0", parent,
        )  # fmt: skip
        version = ModelVersion(
            self.model, 0, "recipe", "sha256:" + "7c" * 32, "folder", 12_000, Signature.parse(None, None),
            metadata={"metrics": metrics, "lineage": to_builtins(lineage)},
        )  # fmt: skip
        trained = Trained(metrics, "recipe", {}, {}, confusion=confusion)
        made, _ = self.store.finish(
            self.job, request, version, trained, "accuracy",
            lambda model, *_: codec.encode({"model": model.name, "version": model.version}),
        )  # fmt: skip
        return made

    def fail(self, error: JobError) -> None:
        """End it with an error."""
        self.jobs.finish([Finished(self.id, self.job.attempt, error=error)])


def make_evaluation(ledger: Ledger, evaluation: Evaluation, queue: str = "cpu") -> None:
    """An evaluate job that has ended with this."""
    jobs = JobStore(ledger)
    jobs.add([NewJob(evaluation.id, JobKind.EVALUATE, evaluation.model, evaluation.version, queue)])
    [job] = jobs.claim([evaluation.id], "cpu@birch", 30)
    TrainingStore(ledger).finish_evaluation(job, evaluation, codec.encode(evaluation_value(evaluation)))
