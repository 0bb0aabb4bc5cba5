"""EvaluationJob: the handle on an evaluation."""

from __future__ import annotations

from forebay.producer.handles.job import Job
from forebay.storage.training.records import Evaluation, evaluation_of


class EvaluationJob(Job):
    """A submitted evaluation."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> Evaluation:
        """What the version was found to be worth; waits and raises like `Job.result`."""
        return evaluation_of(self._value(timeout))
