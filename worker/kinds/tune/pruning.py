"""Whether a trial that falls behind the others is worth going on with, by what each measured on its way.

All are compared where they had done the same share of their steps, in the first half: an end later than that saves little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.requests.training import VALIDATION, Point, better
from forebay.contract.requests.tuning import best_first
from forebay.storage.tuning.queries import TuneQueries
from forebay.storage.tuning.records import TrialPlace

log = structlog.get_logger()

SHARES = {"median": (1 / 8, 1 / 4, 3 / 8, 1 / 2), "halving": (1 / 9, 1 / 3)}
OTHERS = 4  # that must have come so far, or nothing is known
KEPT = 3  # of so many, halving keeps the best one


class TrialJudge:
    """Judges one attempt of one trial, from point to point. `pruned` is at which step it ends, and the value it had."""

    def __init__(self, queries: TuneQueries, place: TrialPlace, pruner: str, metric: str) -> None:
        self._queries, self._place, self._pruner, self._metric = queries, place, pruner, metric
        self._shares = list(SHARES[pruner])
        self.pruned: tuple[int, float] | None = None

    def __call__(self, point: Point) -> bool:
        """Whether the trial is to end here. While the ledger is away it goes on."""
        value = point.values.get(self._metric)
        if point.split != VALIDATION or value is None or not point.steps:
            return False
        while self._shares and point.step >= self._shares[0] * point.steps:
            try:
                others = self._queries.values_at(self._place.tune, self._shares[0], self._metric)
            except LedgerUnavailable as error:
                log.warning("trial_not_judged", tune=self._place.tune, trial=self._place.number, error=str(error))
                return False
            self._shares.pop(0)
            others.pop(self._place.number, None)
            if falls_behind(self._pruner, self._metric, value, list(others.values())):
                self.pruned = point.step, value
                return True
        return False


def falls_behind(pruner: str, metric: str, value: float, others: Sequence[float]) -> bool:
    """Whether a trial with this value is to end: it is worse than the others' median, or not among the best third of all."""
    if len(others) < OTHERS:
        return False
    if pruner == "median":
        return better(metric, median(others), value)
    kept = math.ceil((len(others) + 1) / KEPT)
    last_kept, _ = best_first(metric, [(other, 0) for other in (*others, value)])[kept - 1]
    return better(metric, last_kept, value)
