"""Counts of many parts add up to those of the whole, survive JSON, and stay bounded whatever is counted."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.metrics.declared import METRICS
from forebay.contract.metrics.statistics import MAX_SERIES, Statistics

MODELS = st.sampled_from([("digits", "1"), ("digits", "2"), ("minilm", "1")])
SEEN = st.one_of(
    st.tuples(st.just("count"), st.just("out_of_memory_total"), MODELS, st.integers(0, 5)),
    st.tuples(st.just("observe"), st.just("batch_rows"), MODELS, st.integers(0, 4096)),
    st.tuples(st.just("observe"), st.just("forward_seconds"), MODELS, st.integers(0, 1000)),
)


def counted(seen: list[tuple[str, str, tuple[str, str], int]]) -> Statistics:
    statistics = Statistics()
    for what, name, labels, value in seen:
        if what == "count":
            statistics.count(name, *labels, by=value)
        else:
            statistics.observe(name, value, *labels)
    return statistics


@given(st.lists(st.lists(SEEN, max_size=20), max_size=5))
def test_the_parts_add_up_to_the_whole(parts: list[list[Any]]) -> None:
    total = Statistics()
    for part in parts:
        total.add(counted(part))
    assert total == counted([one for part in parts for one in part])


@given(st.lists(SEEN, max_size=30))
def test_what_is_written_as_json_is_read_back(seen: list[Any]) -> None:
    statistics = counted(seen)
    statistics.set("model_bytes", 40, "digits", "1")
    assert Statistics.from_dict(json.loads(json.dumps(statistics.as_dict()))) == statistics


@given(st.lists(st.integers(0, 5000), min_size=1))
def test_a_histogram_counts_every_value_once_in_the_bucket_it_belongs_to(values: list[int]) -> None:
    statistics = Statistics()
    for value in values:
        statistics.observe("batch_rows", value, "digits", "1")
    histogram = statistics.histograms["batch_rows"]["digits", "1"]
    assert (histogram.count, histogram.total) == (len(values), sum(values))
    below = 0
    for bound, count in zip(METRICS["batch_rows"].buckets, histogram.counts, strict=False):
        below += count
        assert below == sum(value <= bound for value in values)


def test_a_weighted_value_counts_as_often_as_it_says() -> None:
    statistics = Statistics()
    statistics.observe("job_run_seconds", 0.5, "digits", "1", "predict", times=256)
    histogram = statistics.histograms["job_run_seconds"]["digits", "1", "predict"]
    assert (histogram.count, histogram.total) == (256, 128.0)


@given(st.lists(st.floats(0, 1e6)))
def test_many_values_at_once_count_as_one_by_one(values: list[float]) -> None:
    one, all_ = Statistics(), Statistics()
    all_.observe_all("job_wait_seconds", values, "digits", "1", "predict")
    for value in values:
        one.observe("job_wait_seconds", value, "digits", "1", "predict")
    if values:
        series = [s.histograms["job_wait_seconds"]["digits", "1", "predict"] for s in (one, all_)]
        assert series[0].counts == series[1].counts
        assert series[0].total == pytest.approx(series[1].total)


def test_series_are_bounded_and_nothing_is_lost_beyond() -> None:
    statistics = Statistics()
    for i in range(1000):
        statistics.count("out_of_memory_total", f"model-{i}", "1")
        statistics.observe("batch_rows", 1, f"model-{i}", "1")
    assert len(statistics.counters["out_of_memory_total"]) == MAX_SERIES + 1
    assert statistics.total("out_of_memory_total") == 1000
    assert statistics.total("out_of_memory_total", "other") == 1000 - MAX_SERIES
    assert sum(h.count for h in statistics.histograms["batch_rows"].values()) == 1000


def test_totals_are_by_the_labels_asked_for() -> None:
    statistics = Statistics()
    statistics.count("jobs_finished_total", "digits", "1", "predict", "failed", by=3)
    statistics.count("jobs_finished_total", "digits", "2", "predict", "succeeded", by=5)
    assert statistics.total("jobs_finished_total") == 8
    assert statistics.total("jobs_finished_total", "digits", None, None, "failed") == 3
    assert statistics.total("jobs_finished_total", "none") == statistics.total("never_counted") == 0


@pytest.mark.parametrize(
    "given",
    [
        {}, {"counters": None}, {"counters": []}, {"counters": {"unknown_total": [["a", 1]]}},
        {"counters": {"out_of_memory_total": [["digits", 1]]}}, {"counters": {"out_of_memory_total": "x"}},
        {"counters": {"out_of_memory_total": [["digits", "1", "many"]]}}, {"counters": {"batch_rows": [["a", "1", 3]]}},
        {"histograms": {"batch_rows": [["digits", "1", [1, 2]]]}}, {"gauges": {"model_bytes": [5]}},
    ],
)  # fmt: skip
def test_what_another_version_wrote_and_this_one_does_not_know_is_left_out(given: dict[str, Any]) -> None:
    assert not Statistics.from_dict(given)
