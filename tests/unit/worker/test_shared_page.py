"""The page that a parent and its child share, what is said of a dead child, and who watches a model's steps."""

import os
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.job import new_ids
from forebay.worker.last_lines import MAX_CHARACTERS, MAX_LINE, MAX_LINES, last_lines
from forebay.worker.parent.children import exit_reason
from forebay.worker.shared_page import LOAD, PREPARE, SIZE, SLOTS, Overdue, SharedPage, TimeLimitedModel
from support.waiting import FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(1000.0)


@pytest.fixture
def sides(clock: FakeClock) -> tuple[SharedPage, SharedPage]:
    """A parent's page and its child's: the same memory."""
    memory = os.memfd_create("page")
    os.ftruncate(memory, SIZE)
    return SharedPage(memory, clock), SharedPage(memory, clock)


def test_what_one_side_writes_the_other_reads(sides: tuple[SharedPage, SharedPage]) -> None:
    parent, child = sides
    assert not child.stopping
    parent.stop()
    assert child.stopping


def test_a_parent_sees_how_long_its_child_waits_for_the_ledger(
    sides: tuple[SharedPage, SharedPage], clock: FakeClock
) -> None:
    parent, child = sides
    assert parent.ledger_wait_s() == 0.0
    child.wait_for_ledger(clock())
    clock.forward(90)
    assert parent.ledger_wait_s() == 90
    child.wait_for_ledger(0.0)
    assert parent.ledger_wait_s() == 0.0


def test_a_doubt_is_seen_once(sides: tuple[SharedPage, SharedPage]) -> None:
    parent, child = sides
    assert not child.doubted()
    parent.doubt()
    parent.doubt()
    assert (child.doubted(), child.doubted()) == (True, False)


def test_a_dead_childs_board_still_tells_which_shards_it_held(sides: tuple[SharedPage, SharedPage]) -> None:
    parent, child = sides
    [one, two, three] = new_ids(3)
    for id, attempt in ((one, 1), (two, 7), (three, 1)):
        child.hold(id, attempt)
    child.let_go(two, 7)
    assert parent.held() == {one: 1, three: 1}
    child.hold(two, 8)
    assert parent.held() == {one: 1, two: 8, three: 1}
    for id, attempt in ((one, 1), (two, 8), (three, 1)):
        child.let_go(id, attempt)
    assert parent.held() == {}


def test_a_job_is_held_once_and_let_go_by_the_attempt_that_held_it(sides: tuple[SharedPage, SharedPage]) -> None:
    parent, child = sides
    ids = new_ids(SLOTS)
    for id in [ids[0], *ids]:
        child.hold(id, 2)
    assert len(parent.held()) == SLOTS
    child.let_go(ids[0], 1)
    assert parent.held()[ids[0]] == 2
    child.let_go(ids[0], 2)
    assert ids[0] not in parent.held()


def test_a_board_that_is_full_tells_what_it_can(sides: tuple[SharedPage, SharedPage]) -> None:
    parent, child = sides
    ids = new_ids(SLOTS + 1)
    for id in ids:
        child.hold(id, 1)
    assert set(parent.held()) == set(ids[:-1])
    child.let_go(ids[-1], 1)
    child.let_go(ids[0], 1)
    child.hold(ids[-1], 1)
    assert set(parent.held()) == set(ids[1:])


def test_a_step_is_overdue_once_its_time_is_over_and_until_it_ends(
    sides: tuple[SharedPage, SharedPage], clock: FakeClock
) -> None:
    parent, child = sides
    with child.limit(2.0):
        clock.forward(1.5)
        assert parent.overdue() is None
        clock.forward(1.0)
        assert parent.overdue() == Overdue("timeout_s", 2.0)
    assert parent.overdue() is None
    with pytest.raises(ValueError, match="bad"), child.limit(5.0, LOAD):
        raise ValueError("bad")
    clock.forward(100)
    assert parent.overdue() is None


def test_a_step_without_a_limit_is_never_overdue(sides: tuple[SharedPage, SharedPage], clock: FakeClock) -> None:
    parent, child = sides
    with child.limit(None):
        clock.forward(1e9)
        assert parent.overdue() is None


def test_preparing_and_running_are_watched_side_by_side(sides: tuple[SharedPage, SharedPage], clock: FakeClock) -> None:
    parent, child = sides
    model = TimeLimitedModel(
        SimpleNamespace(prepare=lambda rows: clock.forward(2) or parent.overdue(), nbytes=lambda: 7), child, 1
    )
    with child.limit(100.0):
        assert model.prepare([1]) == Overdue("timeout_s", 1)
    assert model.nbytes() == 7
    assert not hasattr(model, "postprocess")
    with child.limit(1.0, line=PREPARE), child.limit(1.0):
        pass
    assert parent.overdue() is None


def test_threads_of_a_child_do_not_end_one_anothers_steps(
    sides: tuple[SharedPage, SharedPage], clock: FakeClock
) -> None:
    parent, child = sides
    with child.limit(1.0, line=PREPARE):
        thread = threading.Thread(target=lambda: TimeLimitedModel(SimpleNamespace(predict=len), child, 1).predict([1]))
        thread.start()
        thread.join(120)
        clock.forward(2)
        assert parent.overdue() is not None


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\n"), max_size=MAX_LINE), max_size=70))
def test_the_evidence_is_bounded(lines: list[str]) -> None:
    told = last_lines(lines)
    assert len(told) <= MAX_CHARACTERS
    assert told.count("\n") < MAX_LINES


def test_a_fatal_error_is_told_from_where_it_begins() -> None:
    stack = ["Fatal Python error: Segmentation fault", "", "Current thread:", *(f"  File {i}" for i in range(50))]
    told = last_lines([*(f"line {i}" for i in range(5)), *stack]).splitlines()
    assert told[:4] == ["line 2", "line 3", "line 4", "Fatal Python error: Segmentation fault"]
    assert len(told) == MAX_LINES


CHATTER = [
    "timestamp=2026-11-30 level=info event=model_loaded model=m/1",
    "INFO:root:batch 7",
    "Epoch 3:  45%|████▌     | 9/20 [00:01<00:01,  9.1it/s]",
]


def test_what_is_told_begins_with_the_first_complaint_and_leaves_out_chatter() -> None:
    complaint = [
        "Traceback (most recent call last):",
        '  File "m.py", line 3',
        "RuntimeError: CUDA error: device-side assert",
    ]
    told = last_lines(["reading config", *CHATTER, *complaint[:2], CHATTER[0], complaint[2], CHATTER[1]])
    assert told.splitlines() == complaint


def test_of_a_process_that_complained_of_nothing_the_last_few_lines_are_told_and_no_chatter() -> None:
    assert last_lines([*(f"step {i}" for i in range(9)), *CHATTER]).splitlines() == [f"step {i}" for i in range(4, 9)]
    assert last_lines(CHATTER) == ""


def test_passwords_are_masked_line_by_line() -> None:
    assert last_lines(["redis://u:secret@h/0", "cpu@host"]) == "redis://u:***@h/0\ncpu@host"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("Worker exited prematurely: signal 9 (SIGKILL) Job: 7.", "signal 9 (SIGKILL)"),
        ("Worker exited prematurely: exitcode 70 Job: 12.", "exitcode 70"),
        ("something else", "something else"),
    ],
)
def test_celerys_words_are_cut_to_what_they_say(words: str, told: str) -> None:
    assert exit_reason(words) == told
