"""What a job's lines say, from its row and the attempts that the row has forgotten."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.history import history
from forebay.contract.job import Attempt, JobError, JobInfo, JobKind, JobState, Progress

START = datetime(2026, 1, 1, tzinfo=UTC)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def job(state: JobState, started: float | None = None, finished: float | None = None, attempt: int = 0) -> JobInfo:
    error = JobError("ValueError", "bad row") if state is JobState.FAILED else None
    return JobInfo(
        "0" * 32, JobKind.PREDICT, state, "digits", 1, "cpu", 5, attempt, 3, "w2@h" if started else None, START,
        None if started is None else after(started), None if finished is None else after(finished), None,
        Progress(), error,
    )  # fmt: skip


def said(job: JobInfo, *attempts: Attempt) -> list[tuple[str, int | None, str | None]]:
    return [(event.event, event.attempt, event.worker) for event in history(job, attempts)]


def test_a_job_that_ran_once_is_told_from_its_row_alone() -> None:
    assert said(job(JobState.SUCCEEDED, 1, 2, attempt=1)) == [
        ("queued", None, None), ("claimed", 1, "w2@h"), ("succeeded", 1, "w2@h"),
    ]  # fmt: skip
    assert said(job(JobState.QUEUED)) == [("queued", None, None)]
    assert said(job(JobState.CANCELED, finished=3)) == [("queued", None, None), ("canceled", None, None)]


def test_an_attempt_that_was_lost_is_told_with_its_reason_before_the_next_one() -> None:
    lost = Attempt(1, "w1@h", after(1), after(5), "lost", "signal 9 (SIGKILL)")
    events = history(job(JobState.FAILED, 6, 7, attempt=2), [lost])
    assert [(e.event, e.attempt, e.worker, e.message) for e in events] == [
        ("queued", None, None, "digits/1 on queue cpu"),
        ("claimed", 1, "w1@h", ""),
        ("lost", 1, "w1@h", "signal 9 (SIGKILL)"),
        ("queued", None, None, "waiting for its next attempt"),
        ("claimed", 2, "w2@h", ""),
        ("failed", 2, "w2@h", "ValueError: bad row"),
    ]


def test_attempts_are_numbered_over_a_retry() -> None:
    failed = Attempt(1, "w1@h", after(1), after(2), "failed", "ValueError: bad row")
    assert said(job(JobState.RUNNING, 3, attempt=1), failed)[-3:] == [
        ("failed", 1, "w1@h"), ("retried", None, None), ("claimed", 2, "w2@h"),
    ]  # fmt: skip


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["lost", "released", "refused", "failed"]), st.integers(0, 9))
    )
)
def test_lines_come_in_the_order_of_time_whatever_came_late(seen: list[tuple[int, str, int]]) -> None:
    attempts = [Attempt(n, "w1@h", after(at), after(at + 1), ended, "") for n, ended, at in seen]
    times = [event.at for event in history(job(JobState.SUCCEEDED, 20, 21, attempt=1), attempts)]
    assert times == sorted(times)
    assert len(times) >= 3 + 2 * len(attempts)


def test_a_training_job_has_no_version_yet_and_none_is_shown() -> None:
    training = replace(job(JobState.QUEUED), kind=JobKind.TRAIN, version=0)
    assert training.ref == "digits"
    assert history(training, [])[0].message == "digits on queue cpu"
    assert job(JobState.QUEUED).ref == "digits/1"
