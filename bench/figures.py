"""What was measured for a workload, and the ratios that count."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

ROUND_TRIPS = "W4"
BY_HAND = ("plain Celery", "Celery, shards by hand")


@dataclass
class Figures:
    """What was measured for one workload: jobs or rows per second by contender and round; for W4 milliseconds, p50 and p99."""

    workload: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    tails: dict[str, list[float]] = field(default_factory=dict)

    def medians(self) -> dict[str, float]:
        """The median of the rounds, by contender."""
        return {name: statistics.median(values) for name, values in self.rates.items()}

    def ratio(self, name: str, to: str) -> float:
        """How many times as fast `name` is as `to`: the median of the ratios of the rounds."""
        pairs = zip(self.rates[name], self.rates[to], strict=True)
        return statistics.median(b / a if self.workload == ROUND_TRIPS else a / b for a, b in pairs)

    @property
    def by_hand(self) -> str:
        """What a user would write instead, with Celery: what the others are compared with."""
        return next(name for name in BY_HAND if name in self.rates)
