"""What is drawn of a training job: sparklines, the last metrics, how long the rest will take."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobInfo, JobKind, JobState, Progress
from forebay.producer.waiting.training_progress import (
    LEVELS,
    PLAIN_LEVELS,
    LearningCurve,
    TimeLeft,
    sparkline,
    watch_training,
)
from forebay.storage.training.records import Run

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FINITE = st.floats(-1e9, 1e9)


@given(st.lists(FINITE, min_size=1, max_size=200), st.integers(1, 60))
def test_a_sparkline_has_a_character_for_each_value_up_to_its_width(values: list[float], width: int) -> None:
    line = sparkline(values, width=width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(LEVELS)


@given(st.lists(FINITE, min_size=2, max_size=40, unique=True))
def test_the_smallest_value_is_lowest_and_the_largest_highest(values: list[float]) -> None:
    line = sparkline(values)
    assert line[values.index(min(values))] == LEVELS[0]
    assert line[values.index(max(values))] == LEVELS[-1]


def test_a_falling_loss_falls_and_a_flat_one_is_flat() -> None:
    assert sparkline([4, 3, 2, 1]) == "█▆▃▁"
    assert sparkline([4, 3, 2, 1], PLAIN_LEVELS) == "#+,_"
    assert sparkline([1, 1, 1]) == "▅▅▅"
    assert sparkline([]) == ""


def test_the_time_left_is_estimated_from_the_steps_that_were_seen() -> None:
    time_left = TimeLeft()
    assert time_left.estimate_s(0, 50, 100) is None
    assert time_left.estimate_s(10, 60, 100) == pytest.approx(40)
    assert time_left.estimate_s(20, 30, 100) is None  # it went back to a checkpoint
    assert time_left.estimate_s(30, 40, 100) == pytest.approx(60)


class FakeTrainingJob:
    """A job whose run and curve the test writes."""

    def __init__(self) -> None:
        self.told: Run | None = None
        self.rows: list[dict[str, Any]] = []
        self.asked: list[int] = []

    @property
    def run(self) -> Run:
        if self.told is None:
            raise JobNotFound("not begun")
        return self.told

    def metrics(self, after: int = -1) -> list[dict[str, Any]]:
        self.asked.append(after)
        return [row for row in self.rows if row["step"] > after]

    def wait(self, timeout: float | None = None) -> bool:
        return timeout is None or timeout > 0

    def info(self) -> JobInfo:
        return JobInfo(
            "0" * 32, JobKind.TRAIN, JobState.RUNNING, "digits", 0, "train", 5, 1, 10, "w@h", NOW, NOW, None, None,
            Progress(5, 10, "epoch 1"), None,
        )  # fmt: skip


def run(resumed: int = 0) -> Run:
    request = {"params": {"epochs": 4}, "metric": "accuracy"}
    return Run(
        "0" * 32, "digits", "classifier", JobState.RUNNING, request, resumed, 10, None, None, None, None, None, None,
        NOW, NOW, None,
    )  # fmt: skip


def row(step: int, split: str, **values: float | None) -> dict[str, Any]:
    return {"step": step, "epoch": step // 5 + 1, "split": split, "at": NOW, "rows_per_s": 1200.0, **values}


def test_the_curve_grows_with_the_run_and_only_what_is_new_is_read() -> None:
    job = FakeTrainingJob()
    curve = LearningCurve(job)
    curve.refresh()
    assert curve.summary() == curve.sparklines() == []
    job.told = run()
    job.rows = [row(1, "train", loss=2.0), row(2, "train", loss=1.0)]
    curve.refresh()
    assert curve.summary() == ["epoch 1 of 4", "loss 1", "1,200 rows/s"]
    job.rows += [row(5, "train", loss=0.5), row(5, "validation", loss=0.6, accuracy=0.75), row(6, "train", loss=None)]
    curve.refresh()
    assert job.asked == [-1, 1]
    assert curve.series("train", "loss") == [2.0, 1.0, 0.5]
    assert curve.summary() == ["epoch 2 of 4", "loss 0.5", "validation accuracy 0.75", "1,200 rows/s"]
    [line] = curve.sparklines()
    assert line.startswith("train loss")
    assert line.endswith("2 → 0.5")


def test_a_run_that_went_on_from_a_checkpoint_is_read_again() -> None:
    job = FakeTrainingJob()
    job.told = run()
    job.rows = [row(step, "train", loss=1.0) for step in (1, 5, 9)]
    curve = LearningCurve(job)
    curve.refresh()
    job.told, job.rows = run(resumed=1), [row(1, "train", loss=1.0), row(5, "train", loss=1.0)]
    curve.refresh()
    assert len(curve.series("train", "loss")) == 2


def test_nothing_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    job = FakeTrainingJob()
    assert watch_training(job) is True
    assert watch_training(job, 0.0) is False
    assert capsys.readouterr() == ("", "")
    assert job.asked == []


def test_on_a_terminal_bar_and_sparklines_are_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    job = FakeTrainingJob()
    job.told, job.rows = run(), [row(1, "train", loss=2.0), row(2, "train", loss=1.0)]
    assert watch_training(job, 10) is True
    drawn = capsys.readouterr().err
    for word in ("digits", "50%", "epoch 1 of 4", "loss 1", "train loss", "2 → 1"):
        assert word in drawn
