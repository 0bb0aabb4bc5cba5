"""Throughput and latency over the last hour and day, assembled from time buckets of the ledger.

A bucket in the past no longer changes, so each is read once and kept: a dashboard that stays open reads only the last
minute. Percentiles come from a bounded sample of each bucket, weighted by the jobs it stands for.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.job import JobKind, JobState
from forebay.storage.jobs.overview import Overview, TimeBucket

SETTLED_S = 30.0  # a job may be committed this long after its finish time
RECENT_BUCKETS = 5
QUANTILES = (0.5, 0.95, 0.99)
TIMES = ("wait", "run", "total")
PREDICTIONS, OTHERS = "Predictions", "Training and other jobs"
KINDS = {
    JobKind.PREDICT: PREDICTIONS,
    JobKind.SHARD: "Shards of batches",
}  # a second and an hour make no percentile together
RAN = (JobState.SUCCEEDED, JobState.FAILED)

NOTHING: Mapping[str, Percentiles] = dict.fromkeys(TIMES, ())

Version = tuple[str, int]
Percentiles = tuple[float, ...]  # as QUANTILES, in seconds; empty where nothing ran


@dataclass(frozen=True, slots=True)
class Window:
    """How far back a page looks, the length of each point, and how old the data may be; all in seconds."""

    name: str
    title: str
    length_s: float
    step_s: float
    max_age_s: float


WINDOWS = {
    "hour": Window("hour", "last hour", 3600, 60, 2),
    "day": Window("day", "last 24 hours", 86400, 1800, 10),
}


@dataclass(frozen=True, slots=True)
class Trend:
    """One window. Series have a value per point, None where nothing ran; rates are jobs per second, times are seconds.

    `times`, of predictions alone, are by TIMES; `overall` by kind of job, then by TIMES. `complete` is False
    while buckets are still unread, because the ledger was slow.
    """

    starts: list[float]
    succeeded: list[float | None]
    failed: list[float | None]
    times: Mapping[str, list[Percentiles]]
    totals: Mapping[JobState, int]
    overall: Mapping[str, Mapping[str, Percentiles]]
    by_model: Mapping[Version, Mapping[JobState, int]]
    recent_by_queue: Mapping[str, float]
    complete: bool

    def series(self) -> dict[str, Any]:
        """The points as JSON for the charts."""
        lines = {
            name: [[point[i] if point else None for point in points] for i in range(len(QUANTILES))]
            for name, points in self.times.items()
        }
        return {"starts": self.starts, "succeeded": self.succeeded, "failed": self.failed, **lines}


class Trends:
    """Reads windows and keeps their buckets. Thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[tuple[float, float], TimeBucket] = {}
        self._lock = threading.Lock()

    def read(self, overview: Overview, window: Window, budget_s: float = 2.0) -> Trend:
        """The window that ends now; the newest buckets first, for about `budget_s` seconds."""
        now, until = overview.ledger.now(), time.monotonic() + budget_s
        step = window.step_s
        last = now // step * step
        starts = [last - i * step for i in range(round(window.length_s / step))]
        found: dict[float, TimeBucket] = {}
        for start in starts:
            bucket = self._kept.get((start, step))
            if bucket is None and (time.monotonic() < until or not found):
                bucket = overview.bucket(start, min(start + step, now))
                if start + step < now - SETTLED_S:
                    with self._lock:
                        self._kept[start, step] = bucket
            if bucket is not None:
                found[start] = bucket
        with self._lock:
            self._kept = {key: bucket for key, bucket in self._kept.items() if key[1] != step or key[0] >= starts[-1]}
        return _trend(starts[::-1], found, now)


def _trend(starts: Sequence[float], found: Mapping[float, TimeBucket], now: float) -> Trend:
    totals: Counter[JobState] = Counter()
    by_model: dict[Version, Counter[JobState]] = {}
    for bucket in found.values():
        for ended in bucket.ended:
            totals[ended.state] += ended.count
            by_model.setdefault((ended.model, ended.version), Counter())[ended.state] += ended.count
    points = [found.get(start) for start in starts]
    times = [percentiles([point] if point else []).get(PREDICTIONS, NOTHING) for point in points]
    return Trend(
        starts=list(starts),
        succeeded=[_rate(point, JobState.SUCCEEDED) for point in points],
        failed=[_rate(point, JobState.FAILED) for point in points],
        times={name: [point[name] for point in times] for name in TIMES},
        totals=totals,
        overall=percentiles(found.values()),
        by_model=by_model,
        recent_by_queue=_recent(points, now),
        complete=len(found) == len(starts),
    )


def _rate(bucket: TimeBucket | None, state: JobState) -> float | None:
    if bucket is None:
        return None
    return sum(ended.count for ended in bucket.ended if ended.state is state) / max(1.0, bucket.end - bucket.start)


def _recent(points: Sequence[TimeBucket | None], now: float) -> dict[str, float]:
    """Jobs that ran per second and queue over the last few buckets: the rate at which a backlog shrinks."""
    last = [point for point in points[-RECENT_BUCKETS:] if point is not None]
    seconds = max(1.0, now - min((point.start for point in last), default=now))
    ran: Counter[str] = Counter()
    for point in last:
        for ended in point.ended:
            if ended.state in RAN:
                ran[ended.queue] += ended.count
    return {queue: count / seconds for queue, count in ran.items()}


def percentiles(buckets: Iterable[TimeBucket]) -> dict[str, dict[str, Percentiles]]:
    """By kind of job, then by TIMES; each sampled job weighs as many jobs as its bucket has for each one sampled."""
    samples: dict[str, list[NDArray[np.float64]]] = {}
    for bucket in buckets:
        ran = sum(ended.count for ended in bucket.ended if ended.state in RAN)
        sampled = sum(map(len, bucket.times.values())) / 2
        for kind, times in bucket.times.items():
            wait, run = np.asarray(times).reshape(-1, 2).T
            weights = np.full(len(wait), max(1.0, ran / sampled))
            samples.setdefault(KINDS.get(kind, OTHERS), []).append(np.column_stack((wait, run, wait + run, weights)))
    return {kind: _quantiles(np.concatenate(samples[kind])) for kind in (*KINDS.values(), OTHERS) if kind in samples}


def _quantiles(samples: NDArray[np.float64]) -> dict[str, Percentiles]:
    found = np.quantile(samples[:, :3], QUANTILES, axis=0, weights=samples[:, 3], method="inverted_cdf")
    return {name: tuple(found[:, i].tolist()) for i, name in enumerate(TIMES)}
