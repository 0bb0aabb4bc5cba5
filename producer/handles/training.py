"""TrainingJob: the handle on a training job."""

from __future__ import annotations

from typing import Any

from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.producer.handles.job import Job
from forebay.storage.training.records import Checkpoint, Run


class TrainingJob(Job):
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
        return self._session.registry.get(ModelRef(made["model"], made["version"]))

    def _wait_with_progress(self, timeout: float | None) -> bool:
        from forebay.producer.waiting.training_progress import watch_training

        return watch_training(self, timeout)
