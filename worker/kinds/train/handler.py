"""Training jobs, one at a time."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.summary import Fate, Summary
from forebay.worker.kinds.train.launch import Launcher
from forebay.worker.kinds.train.outcomes import DROPPED, LEFT, Outcomes
from forebay.worker.kinds.train.slot import TrainingSlot


class TrainHandler:
    """Runs the training jobs of one child."""

    def __init__(self, context: ChildContext) -> None:
        settings = context.settings
        self._slot = TrainingSlot(
            settings, jobs=context.jobs, payloads=context.payloads, blobs=context.blobs,
            outcomes=Outcomes(context.jobs, context.announcer, settings.worker_name, settings.outage_timeout_s),
            launcher=Launcher(settings), dispatcher=context.dispatcher, page=context.page, metrics=context.metrics,
        )  # fmt: skip

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Run one of them. Each may take days, so any further ones, which only a forged message brings, go back."""
        first, *others = claimed
        attempts.release_all(others)
        what = self._slot.run(first)
        fate = {DROPPED: Fate.LOST, LEFT: Fate.RELEASED}.get(what) or Fate(what)
        attempts.add(Summary.of({first.id: fate}))
