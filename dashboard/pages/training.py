"""The Training page: training runs, newest first, each with how far it is and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.contract.job import JobInfo, JobKind
from forebay.dashboard.pages.kind import KindPage
from forebay.dashboard.reads.curves import Best, best
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.training.records import Run

FEW_POINTS = 100  # of a run that goes on, for the best so far


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training job; `run` and `best` are None until it has begun, and has measured something."""

    job: JobInfo
    run: Run | None
    best: Best | None


class TrainingPage(KindPage):
    """`/training`."""

    tab = "training"
    kind = JobKind.TRAIN

    def rows(self, ears: ConsumerHealth, jobs: Sequence[JobInfo]) -> list[TrainingRow]:
        """Each training job, with its run."""
        runs = ears.training.about([job.id for job in jobs])
        return [_row(ears, job, runs.get(job.id)) for job in jobs]


def _row(ears: ConsumerHealth, job: JobInfo, run: Run | None) -> TrainingRow:
    if run is None:
        return TrainingRow(job, None, None)
    curve = [] if run.metrics else ears.training.thinned(run.id, FEW_POINTS)
    return TrainingRow(job, run, best(run, curve))
