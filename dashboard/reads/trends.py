"""Throughput and latency over the last hour and day, put together from stretches of the ledger.

A stretch that lies in the past does not change any more, so each is read once and kept: a dashboard that stays open asks
the ledger for the last minute only. Percentiles come from a bounded sample of each stretch, weighted by its jobs.
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

from forebay.contract.job import JobState
from forebay.storage.jobs.overview import Overview, TimeBucket

SETTLED_S = 30.0  # a finish may be committed this long after the time it is dated with
RECENT_STRETCHES = 5
PERCENTILES = (50, 95, 99)
Version = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Window:
    """How far back one looks, the length of each point, and for how long an answer will do; all in seconds."""

    name: str
    title: str
    length_s: float
    step_s: float
    fresh_s: float


WINDOWS = {
    "hour": Window("hour", "last hour", 3600, 60, 2),
    "day": Window("day", "last 24 hours", 86400, 1800, 10),
}

Percentiles = tuple[float, ...]  # as PERCENTILES, in seconds; empty where nothing ran


@dataclass(frozen=True, slots=True)
class Trend:
    """One window. Series have a value per point, None where nothing ran; rates are jobs per second, times seconds.

    `complete` is False while stretches are still unread, because the ledger was slow.
    """

    window: Window
    starts: list[float]
    succeeded: list[float | None]
    failed: list[float | None]
    times: Mapping[str, list[Percentiles]]
    totals: Mapping[JobState, int]
    overall: Mapping[str, Percentiles]
    by_model: Mapping[Version, Mapping[JobState, int]]
    recent_by_queue: Mapping[str, float]
    complete: bool

    def series(self) -> dict[str, Any]:
        """The points as JSON for the charts."""
        lines = {
            name: [[point[i] if point else None for point in points] for i in range(len(PERCENTILES))]
            for name, points in self.times.items()
        }
        return {"starts": self.starts, "succeeded": self.succeeded, "failed": self.failed, **lines}


class Trends:
    """Reads windows and keeps their stretches. Thread-safe."""

    def __init__(self) -> None:
        self._kept: dict[tuple[float, float], TimeBucket] = {}
        self._lock = threading.Lock()

    def read(self, overview: Overview, window: Window, budget_s: float = 2.0) -> Trend:
        """The window that ends now; the newest stretches first, and about `budget_s` seconds of work."""
        now, until = overview.ledger.now(), time.monotonic() + budget_s
        step = window.step_s
        last = now // step * step
        starts = [last - i * step for i in range(round(window.length_s / step))]
        found: dict[float, TimeBucket] = {}
        for start in starts:
            stretch = self._kept.get((start, step))
            if stretch is None and (time.monotonic() < until or not found):
                stretch = overview.stretch(start, min(start + step, now))
                if start + step < now - SETTLED_S:
                    self._keep(stretch, step)
            if stretch is not None:
                found[start] = stretch
        self._forget(step, starts[-1])
        return _trend(window, starts[::-1], found, now)

    def _keep(self, stretch: TimeBucket, step: float) -> None:
        with self._lock:
            self._kept[stretch.start, step] = stretch

    def _forget(self, step: float, before: float) -> None:
        with self._lock:
            for key in [key for key in self._kept if key[1] == step and key[0] < before]:
                del self._kept[key]


def _trend(window: Window, starts: Sequence[float], found: Mapping[float, TimeBucket], now: float) -> Trend:
    totals: Counter[JobState] = Counter()
    by_model: dict[Version, Counter[JobState]] = {}
    for stretch in found.values():
        for ended in stretch.ended:
            totals[ended.state] += ended.count
            by_model.setdefault((ended.model, ended.version), Counter())[ended.state] += ended.count
    points = [found.get(start) for start in starts]
    return Trend(
        window,
        list(starts),
        [_rate(point, JobState.SUCCEEDED) for point in points],
        [_rate(point, JobState.FAILED) for point in points],
        {name: [_percentiles([point], name) for point in points] for name in ("wait", "run", "total")},
        totals,
        {name: _percentiles(found.values(), name) for name in ("wait", "run", "total")},
        by_model,
        _recent(points, now),
        len(found) == len(starts),
    )


def _rate(stretch: TimeBucket | None, state: JobState) -> float | None:
    if stretch is None:
        return None
    return sum(e.count for e in stretch.ended if e.state is state) / max(1.0, stretch.end - stretch.start)


def _recent(points: Sequence[TimeBucket | None], now: float) -> dict[str, float]:
    """Jobs that ran per second and queue, over the last few stretches: what a backlog's end is reckoned from."""
    last = [point for point in points[-RECENT_STRETCHES:] if point is not None]
    seconds = max(1.0, now - min((point.start for point in last), default=now))
    ran: Counter[str] = Counter()
    for point in last:
        for ended in point.ended:
            if ended.state in (JobState.SUCCEEDED, JobState.FAILED):
                ran[ended.queue] += ended.count
    return {queue: count / seconds for queue, count in ran.items()}


def _percentiles(stretches: Iterable[TimeBucket | None], name: str) -> Percentiles:
    """Of `wait`, `run` or their `total`; each sampled job stands for as many as its stretch has for each it gave."""
    values: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    for stretch in stretches:
        if stretch is None or not stretch.times:
            continue
        times = np.asarray(stretch.times)  # (jobs, 2): wait, run
        values.append({"wait": times[:, 0], "run": times[:, 1], "total": times.sum(1)}[name])
        ran = sum(e.count for e in stretch.ended if e.state in (JobState.SUCCEEDED, JobState.FAILED))
        weights.append(np.full(len(times), max(1.0, ran / len(times))))
    return weighted_percentiles(np.concatenate(values), np.concatenate(weights)) if values else ()


def weighted_percentiles(values: NDArray[np.float64], weights: NDArray[np.float64]) -> Percentiles:
    """The smallest values that this share of the weight does not exceed (the inverted distribution function)."""
    order = np.argsort(values)
    share = np.cumsum(weights[order]) / weights.sum()
    places = np.searchsorted(share, np.asarray(PERCENTILES) / 100 - 1e-12).clip(max=len(values) - 1)
    return tuple(float(value) for value in values[order][places])
