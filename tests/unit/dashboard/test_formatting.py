"""Numbers and times with their units."""

import math
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.dashboard.pages import formatting as fmt


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"), (0, "0 ms"), (0.0004, "0.4 ms"), (0.0123, "12 ms"), (0.9999, "1.0 s"), (3.44, "3.4 s"),
        (59.96, "1 min"), (125, "2 min 5 s"), (3599.9, "1 h"), (11_040, "3 h 4 min"), (86_399, "1 d"),
        (183_600, "2 d 3 h"), (400 * 86_400, "400 d"),
    ],
)  # fmt: skip
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert fmt.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (-3, "0 s"), (0.4, "0 s"), (1.2, "1 s"), (59.7, "1 min"), (60, "1 min")]
)
def test_ages_are_whole(seconds: float | None, text: str) -> None:
    assert fmt.age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0.4 s"), (41.7, "42 s"), (752, "13 min"), (12_500, "3.5 h"), (400_000, "5 d")]
)
def test_estimates_are_no_more_exact_than_they_are(seconds: float, text: str) -> None:
    assert fmt.estimate(seconds) == text


@given(st.floats(0, 1e9))
def test_every_duration_has_a_unit(seconds: float) -> None:
    assert fmt.duration(seconds).rpartition(" ")[2] in ("ms", "s", "min", "h", "d")


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (None, "–"), (0, "0 jobs/s"), (2827.4, "2,827 jobs/s"), (1.25, "1.2 jobs/s"), (0.5, "30 jobs/min"),
        (0.01, "36 jobs/h"), (1e-5, "0.9 jobs/d"),
    ],
)  # fmt: skip
def test_rates_are_given_per_the_time_that_reads_best(rate: float | None, text: str) -> None:
    assert fmt.rate(rate) == text


def test_counts_that_stopped_at_a_limit_say_so() -> None:
    assert [fmt.count(9_999, 10_000), fmt.count(10_000, 10_000), fmt.count(None)] == ["9,999", "10,000+", "–"]
    assert [fmt.jobs(1), fmt.jobs(0), fmt.jobs(None)] == ["1 job", "0 jobs", "– jobs"]


def test_a_small_share_is_not_called_nothing() -> None:
    assert [fmt.percent(*pair) for pair in ((0, 0), (0, 9), (1, 9000), (1, 8))] == ["–", "0.0 %", "< 0.1 %", "12.5 %"]


def test_timestamps_are_utc() -> None:
    noon = datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2)))
    assert fmt.timestamp(noon) == "2026-11-22 10:00:00 UTC"
    assert fmt.timestamp(None) == "–"
    assert fmt.iso(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000+00:00"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (3.35e8, "335 M"), (12_400_000.0, "12.4 M"), (1e6, "1 M"), (999_900.0, "1 M"), (-2.5e9, "-2.5 G"), (7e12, "7 T"),
        (999_000_000.0, "999 M"), (12_345.6, "12,346"), (1234.5, "1234.5"), (0.0, "0"), (1e-6, "1e-06"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_large_numbers_are_written_for_people(given: float, text: str) -> None:
    assert fmt.number(given) == text


def test_a_value_is_rounded_and_a_long_list_is_cut() -> None:
    assert fmt.value(0.123456789) == "0.123457"
    assert fmt.value([1, 2.5, "a"]) == "1, 2.5, a"
    assert fmt.value(None) == fmt.UNKNOWN
    assert fmt.value(list(range(1030))).endswith("18, 19 and 1,010 more")
