"""A parent holds about a second of work, whatever a job costs."""

from forebay.worker.parent.celery.pace import LEAST, MOST, START, Pace


def test_before_anything_was_measured_a_parent_holds_a_few_messages() -> None:
    assert Pace().messages() == START


def test_quick_jobs_are_held_up_to_a_bound() -> None:
    pace = Pace()
    pace.note(jobs=1024, messages=16, seconds=0.05)
    assert pace.messages() == MOST


def test_slow_jobs_are_left_for_other_workers() -> None:
    pace = Pace()
    pace.note(jobs=8, messages=1, seconds=8.0)
    assert pace.messages() == LEAST


def test_a_second_of_work_is_held_for_each_child() -> None:
    for children in (1, 4):
        pace = Pace(children)
        pace.note(jobs=32, messages=1, seconds=0.2)
        assert pace.messages() == 5 * children


def test_the_pace_follows_when_jobs_become_slower() -> None:
    pace = Pace()
    pace.note(jobs=1024, messages=16, seconds=0.05)
    for _ in range(30):
        pace.note(jobs=32, messages=1, seconds=3.2)
    assert pace.messages() == LEAST


def test_an_empty_hand_over_says_nothing() -> None:
    pace = Pace()
    pace.note(jobs=0, messages=1, seconds=5.0)
    assert pace.messages() == START
