"""What goes into and comes out of TuneStore."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from forebay.contract.job import JobError, JobState
from forebay.contract.requests.tuning import best_first

PRUNED = "pruned"


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial of a tune, which is the training job `job`. `state` is the job's, or `pruned`.

    `value` is the best that was measured on the validation split, of one that was pruned what it had when it was. `steps` were
    done, of those `planned`; None before its trainer knows.
    """

    number: int
    job: str
    state: str
    params: Mapping[str, Any]
    value: float | None
    steps: int
    planned: int | None
    error: JobError | None
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in (JobState.QUEUED, JobState.RUNNING)

    @property
    def seconds(self) -> float | None:
        """How long it took; None before its end."""
        if self.started_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Tune:
    """A tune as those who plan for it see it. `attempt` fences its end."""

    id: str
    model: str
    queue: str
    priority: int
    max_attempts: int
    state: JobState
    attempt: int
    deadline_at: float | None


@dataclass(frozen=True, slots=True)
class TrialPlace:
    """Which trial a training job is: its number, of which tune, how that stands, and whether it has been pruned."""

    tune: str
    number: int
    tune_state: JobState
    pruned: bool


def best_trial(metric: str, trials: Sequence[Trial]) -> Trial | None:
    """The one with the best value of those that have succeeded; of equal ones the earlier."""
    by_number = {t.number: t for t in trials if t.state == JobState.SUCCEEDED and t.value is not None}
    ranked = best_first(metric, ((t.value or 0.0, number) for number, t in by_number.items()))
    return by_number[ranked[0][1]] if ranked else None


def counts_text(trials: Sequence[Trial]) -> str:
    """How many trials are in each state: `12 succeeded, 7 pruned, 1 failed`."""
    counts = Counter(str(trial.state) for trial in trials)
    order = [
        JobState.SUCCEEDED,
        PRUNED,
        JobState.FAILED,
        JobState.CANCELED,
        JobState.EXPIRED,
        JobState.RUNNING,
        JobState.QUEUED,
    ]
    return ", ".join(f"{counts[state]} {state}" for state in map(str, order) if counts[state])
