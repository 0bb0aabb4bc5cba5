"""Windows assembled from time buckets: what is read again and what is kept, rates, and percentiles of weighted samples."""

import tracemalloc
from array import array
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.job import JobKind, JobState
from forebay.dashboard.reads.trends import SETTLED_S, WINDOWS, Trends, percentiles
from forebay.storage.jobs.overview import EndedJobs, TimeBucket

HOUR = WINDOWS["hour"]


class Ledger:
    """Answers like storage.jobs.overview.Overview; a minute has 60 good jobs, 6 bad ones and one that was canceled."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.asked: list[float] = []
        self.ledger: Any = SimpleNamespace(now=lambda: self.now)

    def bucket(self, start: float, end: float) -> TimeBucket:
        self.asked.append(start)
        ended = tuple(
            EndedJobs(state, "digits", 1, "cpu", count)
            for state, count in ((JobState.SUCCEEDED, 60), (JobState.FAILED, 6), (JobState.CANCELED, 1))
        )
        times = {JobKind.PREDICT: (1.0, 0.5, 3.0, 0.25), JobKind.SHARD: (5.0, 60.0), JobKind.TRAIN: (0.0, 900.0)}
        return TimeBucket(start, end, ended, {kind: array("d", each) for kind, each in times.items()})


def read(trends: Trends, ledger: Any, **more: Any) -> Any:
    return trends.read(ledger, HOUR, **more)


def test_a_past_bucket_is_read_once_and_the_present_one_always() -> None:
    trends, ledger = Trends(), Ledger(600_000.0 + SETTLED_S + 1)
    read(trends, ledger)
    assert len(ledger.asked) == len(set(ledger.asked)) == 60
    ledger.asked.clear()
    ledger.now += 2
    read(trends, ledger)
    assert ledger.asked == [600_000.0]
    ledger.asked.clear()
    ledger.now += 60
    read(trends, ledger)
    assert ledger.asked == [600_060.0, 600_000.0]


def test_what_may_still_be_committed_late_is_read_again() -> None:
    trends, ledger = Trends(), Ledger(600_000.0 + SETTLED_S / 2)
    read(trends, ledger)
    ledger.asked.clear()
    read(trends, ledger)
    assert ledger.asked == [600_000.0, 599_940.0]


def test_a_slow_ledger_is_asked_for_the_newest_first_and_the_rest_later() -> None:
    trends, ledger = Trends(), Ledger(600_040.0)
    first = read(trends, ledger, budget_s=0)
    assert ledger.asked == [600_000.0]
    assert not first.complete
    assert first.succeeded[:-1] == [None] * 59
    assert read(trends, ledger).complete


def test_rates_totals_and_times_are_those_of_the_jobs() -> None:
    trend = read(Trends(), Ledger(600_030.0))
    assert len(trend.starts) == 60
    assert trend.starts == sorted(trend.starts)
    assert trend.succeeded[0] == 1.0
    assert trend.succeeded[-1] == 2.0  # half a minute has passed
    assert trend.failed[0] == pytest.approx(0.1)
    assert trend.totals == {JobState.SUCCEEDED: 3600, JobState.FAILED: 360, JobState.CANCELED: 60}
    assert trend.by_model["digits", 1][JobState.FAILED] == 360
    assert trend.recent_by_queue["cpu"] == pytest.approx(5 * 66 / 270)
    assert trend.overall["Predictions"]["wait"] == (1.0, 3.0, 3.0)
    assert trend.overall["Predictions"]["total"] == (1.5, 3.25, 3.25)
    assert trend.overall["Shards of batches"]["run"] == (60.0, 60.0, 60.0)
    assert trend.overall["Training and other jobs"]["run"] == (900.0, 900.0, 900.0)
    assert trend.series()["run"][0][0] == 0.25


class FullLedger(Ledger):
    """The same with as many sampled jobs as a bucket may have."""

    def bucket(self, start: float, end: float) -> TimeBucket:
        few = super().bucket(start, end)
        return replace(few, times={JobKind.PREDICT: array("d", np.random.default_rng(int(start)).random(1000))})


def test_an_hour_and_a_day_of_samples_take_little_memory() -> None:
    trends, ledger = Trends(), FullLedger(600_000.0)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for window in WINDOWS.values():
            trends.read(ledger, window)  # type: ignore[arg-type]
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 500_000 < after - before < 2_000_000


@given(
    st.lists(st.tuples(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), st.integers(1, 5)), min_size=1, max_size=9)
)
def test_percentiles_are_those_of_all_jobs_that_the_samples_stand_for(samples: list[tuple[list[float], int]]) -> None:
    buckets = [
        TimeBucket(
            0.0,
            60.0,
            (EndedJobs(JobState.SUCCEEDED, "digits", 1, "cpu", weight * len(waits)),),
            {JobKind.PREDICT: array("d", [seconds for wait in waits for seconds in (wait, 0.5)])},
        )
        for waits, weight in samples
    ]
    all_waits = np.concatenate([np.repeat(waits, weight) for waits, weight in samples])
    expected = np.percentile(all_waits, (50, 95, 99), method="inverted_cdf")
    assert percentiles(buckets)["Predictions"]["wait"] == tuple(expected)
    assert percentiles(buckets)["Predictions"]["run"] == (0.5, 0.5, 0.5)
