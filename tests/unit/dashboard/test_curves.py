"""Charts of what was measured: every value in its line at its step, and the best one found in the right direction."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.job import JobState
from forebay.contract.requests.training import METRICS, TEST, TRAIN, VALIDATION
from forebay.dashboard.pages.compare import split_by_difference
from forebay.dashboard.pages.run import eta_s, flatten
from forebay.dashboard.reads.curves import (
    MAX_CHARTS,
    BestValue,
    best,
    best_of,
    comparison_charts,
    last_and_best,
    lower_is_better,
    run_charts,
)
from forebay.storage.training.records import Measured, Run

START = datetime(2026, 11, 22, tzinfo=UTC)
RUN = Run(
    "0" * 32,
    "m",
    "r",
    JobState.RUNNING,
    {"metric": None},
    0,
    100,
    None,
    None,
    None,
    None,
    None,
    None,
    START,
    START,
    None,
)

names = st.sampled_from(["loss", "accuracy", "mae", "own"])
numbers = st.floats(-1e6, 1e6) | st.none()
points = st.builds(
    lambda split, step, values, speed: Measured(split, step, step // 10, START, values, speed),
    st.sampled_from([TRAIN, VALIDATION]), st.integers(0, 50), st.dictionaries(names, numbers), st.none() | st.floats(0, 1e6),
)  # fmt: skip
curves = st.lists(points, max_size=40, unique_by=lambda point: (point.split, point.step))


def point(split: str, step: int, at_s: float = 0.0, **values: float) -> Measured:
    return Measured(split, step, 0, START + timedelta(seconds=at_s), values, None)


@given(curves)
def test_each_value_stands_in_the_line_of_its_split_at_its_step(curve: list[Measured]) -> None:
    found = {
        (chart.title, label, step): value
        for chart in run_charts(curve)
        for label, values in chart.lines
        for step, value in zip(chart.steps, values, strict=True)
        if value is not None
    }
    measured = {(n, p.split, p.step): v for p in curve for n, v in p.values.items() if v is not None}
    speeds = {("rows/s", TRAIN, p.step): p.rows_per_s for p in curve if p.split == TRAIN and p.rows_per_s is not None}
    assert found == measured | speeds


@given(st.lists(curves, min_size=2, max_size=6))
def test_compared_runs_keep_their_style_in_every_chart(several: list[list[Measured]]) -> None:
    named = dict(zip("ABCDEF", several, strict=False))
    charts = comparison_charts(named)
    assert len(charts) <= MAX_CHARTS
    for chart in charts:
        assert chart.lines
        assert ["ABCDEF"[style] for style in chart.styles] == [label for label, _ in chart.lines]
        assert chart.steps == sorted(set(chart.steps))
        assert all(len(values) == len(chart.steps) for _, values in chart.lines)


@given(
    st.dictionaries(st.integers(0, 99), st.floats(-1e6, 1e6), min_size=1),
    st.sampled_from([*METRICS, "own", "own_loss"]),
)
def test_the_best_value_is_the_least_or_the_most(values: dict[int, float], metric: str) -> None:
    step, value = best_of(values, metric)
    assert value == (min if lower_is_better(metric) else max)(values.values())
    assert step == min(at for at, other in values.items() if other == value)


def test_a_run_is_worth_its_held_out_metric_once_it_has_ended_and_its_validation_before() -> None:
    curve = [
        point(TRAIN, 1, loss=0.1),
        point(VALIDATION, 2, loss=0.5, accuracy=0.7),
        point(VALIDATION, 4, accuracy=0.6),
    ]
    assert best(RUN, []) is None
    assert best(RUN, curve[:1]) == BestValue("loss", 0.1, TRAIN, 1)
    assert best(RUN, curve) == BestValue("accuracy", 0.7, VALIDATION, 2)
    assert best(replace(RUN, request={"metric": "loss"}), curve) == BestValue("loss", 0.5, VALIDATION, 2)
    assert best(replace(RUN, metrics={"accuracy": 0.65, "f1": 0.6}), curve) == BestValue("accuracy", 0.65, TEST, None)
    assert best(replace(RUN, metrics={"accuracy": None, "f1": 0.6}), curve) == BestValue("f1", 0.6, TEST, None)


def test_the_figures_tell_the_last_and_the_best_of_each_split() -> None:
    curve = [
        point(VALIDATION, 1, loss=0.5),
        point(VALIDATION, 2, loss=0.3),
        point(VALIDATION, 3, loss=0.4),
        point(TRAIN, 3, loss=0.2),
    ]
    assert last_and_best(curve) == [
        ("loss", {TRAIN: (3, 0.2), VALIDATION: (3, 0.4)}, {TRAIN: (3, 0.2), VALIDATION: (2, 0.3)})
    ]


def test_the_time_left_goes_by_the_pace_of_the_last_points() -> None:
    curve = [point(TRAIN, 10, 0.0, loss=1.0), point(TRAIN, 30, 10.0, loss=0.9)]
    assert eta_s(RUN, curve) == 35.0
    assert eta_s(replace(RUN, steps=None), curve) is None
    assert eta_s(RUN, curve[:1]) is None
    assert eta_s(replace(RUN, state=JobState.SUCCEEDED), curve) is None


def test_parameters_are_named_with_dots_and_those_that_differ_are_told_apart() -> None:
    given = {"recipe": "r", "params": {"lr": 0.1, "layers": [8, 8]}, "alias": None, "features": ()}
    assert list(flatten(given)) == [("recipe", "r"), ("params.lr", 0.1), ("params.layers", [8, 8])]
    deep: dict[str, object] = {}
    for _ in range(900):
        deep = {"a": deep or 1}
    [(name, _)] = flatten(deep)
    assert name == "a.a.a.a.a"
    differ, same = split_by_difference([("a", [1, 1]), ("b", [1, None]), ("c", ["x", "y"]), ("d", [None, None])])
    assert (differ, same) == ([("b", [1, None]), ("c", ["x", "y"])], [("a", [1, 1]), ("d", [None, None])])
