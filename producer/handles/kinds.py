"""The handles of jobs that have more to tell than their result, and the table that knows which kind has which."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from forebay.contract.errors import ModelNotFound
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef, check_job_id
from forebay.contract.requests.batch import BatchProgress, BatchRequest
from forebay.contract.requests.manifest import Manifest
from forebay.contract.requests.recipes import default_metric
from forebay.contract.requests.request import decode
from forebay.contract.requests.tuning import TuneRequest
from forebay.contract.requests.versions.benchmark import Benchmark
from forebay.producer.handles.job import Job
from forebay.producer.session import Session, load_payload
from forebay.storage.batches.views import BatchErrors, BatchViews
from forebay.storage.jobs.views import JobViews
from forebay.storage.training.records import Checkpoint, Evaluation, Run, evaluation_of
from forebay.storage.tuning.records import Trial, best_trial

PAYLOAD_LIMIT = 1 << 30  # bytes; the request of a batch with a great many files is in the blob store


class BatchJob(Job):
    """A submitted batch."""

    __slots__ = ()

    @property
    def request(self) -> BatchRequest:
        """What was asked for: input files, columns, output folder, limits."""
        session = self._session
        details = JobViews(session.ledger).details(self.id, PAYLOAD_LIMIT)
        return decode(
            load_payload(session, f"the request of batch {self.id}", details.input, details.input_ref), BatchRequest
        )

    @property
    def progress(self) -> BatchProgress:
        """How far it is: rows, shards, rows/s, the time that is left."""
        return self._session.batches.queries.progress(self.id)

    @property
    def errors(self) -> BatchErrors:
        """Why rows of finished shards failed, and whole shards: kinds of errors, each with a few samples."""
        return BatchViews(self._session.ledger).errors(self.id)

    def result(self, timeout: float | None = None) -> Manifest:
        """The manifest of the output, with the counts of its rows; waits and raises like `Job.result`."""
        return msgspec.convert(self._value(timeout), Manifest)

    def _wait_with_progress(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.progress import watch_batch

        return watch_batch(self, timeout)


class VersionJob(Job):
    """A submitted job that makes a model version."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> ModelVersion:
        """The version that was made; waits and raises like `Job.result`."""
        made = self._value(timeout)
        return self._session.registry.get(ModelRef(made["model"], made["version"]))


class TrainingJob(VersionJob):
    """A submitted training job."""

    __slots__ = ()

    @property
    def run(self) -> Run:
        """Its run so far: request, data, steps, and in the end metrics and verdict; JobNotFound before it has begun."""
        return self._session.training.run(self.id)

    @property
    def checkpoints(self) -> list[Checkpoint]:
        """The saved states, the newest first: where a later attempt, or a retry, goes on."""
        return self._session.training.checkpoints(self.id)

    def metrics(self, after: int = -1) -> list[dict[str, Any]]:
        """What was measured after step `after`, in the order of the steps: `step`, `epoch`, `split` (train, validation or test),
        `at`, `rows_per_s`, and the metrics by name, such as `loss`. A list of rows is what pandas, polars and csv take.
        """
        return [
            {"step": m.step, "epoch": m.epoch, "split": m.split, "at": m.at, "rows_per_s": m.rows_per_s, **m.values}
            for m in self._session.training.curve(self.id, after=after)
        ]

    def result(self, timeout: float | None = None) -> ModelVersion:
        """The version that was made; waits and raises like `Job.result`."""
        made = self._value(timeout)
        if "tune" in made:
            raise ModelNotFound(
                f"job {self.id} is trial {made['trial']} of the tune {made['tune']}, whose best trial alone becomes a version"
            )
        return super().result(timeout)

    def _wait_with_progress(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.training_progress import watch_training

        return watch_training(self, timeout)


class TuningJob(Job):
    """A submitted tune."""

    __slots__ = ()

    @property
    def request(self) -> TuneRequest:
        """What was asked for: the training, the space, how many trials."""
        session, about = self._session, f"the request of tune {self.id}"
        return decode(load_payload(session, about, *session.tunes.request(self.id)), TuneRequest)

    @property
    def trials(self) -> list[Trial]:
        """Its trials so far, in the order in which they were begun."""
        return self._session.tunes.trials(self.id)

    @property
    def best(self) -> Trial | None:
        """The trial with the best value of those that have succeeded; None before the first has."""
        train = self.request.train
        return best_trial(train.metric or default_metric(train.recipe, train.params), self.trials)

    def result(self, timeout: float | None = None) -> ModelVersion:
        """The version that the best trial made; waits and raises like `Job.result`."""
        made = self._value(timeout)
        return self._session.registry.get(ModelRef(made["model"], made["version"]))

    def _wait_with_progress(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.progress import watch_steps

        return watch_steps(self, timeout, "trials")


class EvaluationJob(Job):
    """A submitted evaluation."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> Evaluation:
        """What the version was found to be worth; waits and raises like `Job.result`."""
        return evaluation_of(self._value(timeout))


class BenchmarkJob(Job):
    """A submitted benchmark."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> Benchmark:
        """What was measured; waits and raises like `Job.result`."""
        return msgspec.convert(self._value(timeout), Benchmark)


HANDLES: dict[JobKind, type[Job]] = {
    JobKind.BATCH: BatchJob,
    JobKind.TRAIN: TrainingJob,
    JobKind.EVALUATE: EvaluationJob,
    JobKind.BENCHMARK: BenchmarkJob,
    JobKind.TUNE: TuningJob,
    JobKind.CONVERT: VersionJob,
    JobKind.COMPRESS: VersionJob,
}  # all others: Job


def open_handle(session: Session, id: str) -> Job:
    """The handle of an existing job, of its kind; JobNotFound when there is none of this id."""
    known = session.watcher.find(check_job_id(id))
    if known is not None:
        return cast(Job, known)
    kind, client = session.jobs.queries.owner(id)
    [job] = session.watcher.register([HANDLES.get(kind, Job)(session, id, client if client != session.id else "")])
    session.watcher.refresh([id])
    return job
