"""The wait after a transient error: longer each time, up to a cap, and never the same for all."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import EndpointUnavailable, Transient
from forebay.contract.job import JobKind
from forebay.storage.jobs.records import ClaimedJob, Finished, Postponed
from forebay.worker.execution.attempts import outcome_of_error
from forebay.worker.execution.backoff import CAP_S, delay_s, longest_s

ATTEMPTS = st.integers(1, 40_000)


def test_the_longest_wait_doubles_from_a_second_to_five_minutes() -> None:
    assert [longest_s(attempt) for attempt in range(1, 12)] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


@given(ATTEMPTS, ATTEMPTS)
def test_a_later_attempt_never_waits_for_less_at_most(one: int, other: int) -> None:
    assert (longest_s(one) <= longest_s(other)) or one > other
    assert longest_s(one) <= CAP_S


@given(ATTEMPTS, st.floats(0, 1))
def test_the_wait_is_drawn_from_all_of_it(attempt: int, drawn: float) -> None:
    assert 0 <= delay_s(attempt, lambda: drawn) == drawn * longest_s(attempt)


def test_two_jobs_that_failed_together_do_not_come_back_together() -> None:
    assert len({delay_s(5) for _ in range(100)}) == 100


LAST = ClaimedJob("j", JobKind.PREDICT, "m", 1, "cpu", 3, 3, None, 1, b"", None, tries=3)


def test_an_error_that_costs_no_attempt_postpones_a_job_s_last_one_for_at_least_as_long_as_it_says() -> None:
    made = outcome_of_error(LAST, EndpointUnavailable("busy", wait_s=99, counted=False), passing=True)
    assert isinstance(made, Postponed)
    assert (made.delay_s, made.counted) == (99, False)
    assert isinstance(outcome_of_error(LAST, Transient("away"), passing=True), Finished)
