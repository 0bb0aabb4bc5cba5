"""Tune jobs, which are only started here, and the training jobs that are trials of one."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from forebay.contract.errors import ForebayError
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.tuning.records import TrialPlace
from forebay.storage.tuning.store import TuneStore
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.kinds.parents import start_parent
from forebay.worker.kinds.tune.coordinator import TuneCoordinator
from forebay.worker.kinds.tune.pruning import TrialJudge

log = structlog.get_logger()


class TuneHandler:
    """Starts the tunes that a child has claimed."""

    def __init__(self, context: ChildContext) -> None:
        self._coordinator = TuneCoordinator(context, TuneStore(context.ledger))

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Start these tunes, or take them up again."""
        for job in claimed:
            start_parent(job, attempts, self._coordinator.start)


class Trials:
    """What a child that runs a training job has to do for the tune whose trial it is."""

    def __init__(self, context: ChildContext) -> None:
        self.store = TuneStore(context.ledger)
        self._coordinator = TuneCoordinator(context, self.store)

    def judge(self, trial: TrialPlace, metric: str) -> TrialJudge | None:
        """What tells whether the trial is to end early; None where none is."""
        pruner = self._coordinator.request(trial.tune).pruner
        return None if pruner is None else TrialJudge(self.store.queries, trial, pruner, metric)

    def ended(self, job: str) -> None:
        """A training job has ended: see to its tune, if it is a trial. A sweep does it where this fails."""
        try:
            trial = self.store.queries.place(job)
            if trial is not None:
                self._coordinator.advance(trial.tune)
        except (ForebayError, OSError, ImportError) as error:  # Optuna may be missing here
            log.warning("tune_not_advanced", job=job, error=f"{type(error).__name__}: {error}")
