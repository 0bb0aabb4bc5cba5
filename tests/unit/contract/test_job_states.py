"""The state machine of a job, pair by pair, and the ids that sort by time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import IllegalTransition
from forebay.contract.job import FINAL, TRANSITIONS, IdGenerator, JobState, Transition, after
from forebay.contract.references import check_job_id

Q, R, S = JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED
F, C, E = JobState.FAILED, JobState.CANCELED, JobState.EXPIRED

# Written out a second time on purpose: a change of the machine must be made in two places.
ALLOWED = {
    (Q, Transition.CLAIM): R,
    (R, Transition.SUCCEED): S,
    (R, Transition.FAIL): F,
    (R, Transition.RELEASE): Q,
    (Q, Transition.CANCEL): C,
    (R, Transition.CANCEL): C,
    (Q, Transition.EXPIRE): E,
    (R, Transition.EXPIRE): E,
    (F, Transition.RETRY): Q,
    (E, Transition.RETRY): Q,
    (C, Transition.RETRY): Q,
}


@pytest.mark.parametrize("transition", Transition)
@pytest.mark.parametrize("state", JobState)
def test_a_transition_leads_where_the_table_says_or_is_refused(state: JobState, transition: Transition) -> None:
    target = ALLOWED.get((state, transition))
    if target is not None:
        assert after(state, transition) is target
        return
    with pytest.raises(IllegalTransition) as caught:
        after(state, transition)
    assert state in str(caught.value)
    assert transition in str(caught.value)
    assert all(source in str(caught.value) for source in TRANSITIONS[transition][0])


def test_the_final_states_are_those_that_only_a_user_can_leave() -> None:
    left_without_a_user = {source for source, transition in ALLOWED if transition is not Transition.RETRY}
    assert frozenset(JobState) - left_without_a_user == FINAL == {state for state in JobState if state.final}


def test_a_success_is_never_left() -> None:
    assert all(S not in sources for sources, _ in TRANSITIONS.values())


@given(st.lists(st.tuples(st.integers(0, 2**42), st.integers(1, 40)), min_size=1, max_size=20))
def test_ids_of_one_maker_strictly_increase_even_when_the_clock_goes_back(calls: list[tuple[int, int]]) -> None:
    now = [0.0]
    maker = IdGenerator(lambda: now[0])
    ids: list[str] = []
    for milliseconds, count in calls:
        now[0] = milliseconds / 1000
        ids += maker.many(count)
    assert ids == sorted(set(ids))
    assert [check_job_id(id) for id in ids] == ids


@given(st.integers(0, 2**42), st.integers(1, 10_000_000))
def test_ids_of_two_makers_sort_by_time(milliseconds: int, later: int) -> None:
    # A millisecond has room for 4096 ids, and one is asked for: the next millisecond is always larger.
    first = IdGenerator(lambda: milliseconds / 1000).many(1)
    second = IdGenerator(lambda: (milliseconds + 1 + later) / 1000).many(1)
    assert first < second


def test_an_id_is_a_uuid_of_version_7() -> None:
    id = IdGenerator(lambda: 1_700_000_000.0).many(1)[0]
    assert int(id[:12], 16) == 1_700_000_000_000
    assert id[12] == "7"
    assert id[16] in "89ab"


def test_more_ids_than_a_millisecond_holds_borrow_from_the_next() -> None:
    ids = IdGenerator(lambda: 1.0).many(10_000)
    assert ids == sorted(set(ids))
    assert int(ids[-1][:12], 16) == 1000 + 9_999 // 4096


def test_no_ids_are_no_ids() -> None:
    assert IdGenerator().many(0) == []
