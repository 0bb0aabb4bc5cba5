"""Turns and batches: nothing lost, doubled or reordered, no bound exceeded."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.worker.execution.batcher import Waiting, cut

Row = tuple[int, str, str | None]  # a serial number, a key, and whom it stays alone with

ROWS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, None, "p", "q"])), max_size=80).map(
    lambda rows: [(i, key, alone) for i, (key, alone) in enumerate(rows)]
)


def batches(rows: list[Row], size: int) -> list[list[Row]]:
    return list(cut(rows, size, key=lambda row: row[1], alone=lambda row: row[2]))


@given(ROWS, st.integers(1, 12))
def test_every_row_is_in_one_batch_in_order_within_its_key(rows: list[Row], size: int) -> None:
    got = [row for batch in batches(rows, size) for row in batch]
    assert sorted(got) == rows
    for key in {row[1:] for row in rows}:
        assert [row for row in got if row[1:] == key] == [row for row in rows if row[1:] == key]


@given(ROWS, st.integers(1, 12))
def test_a_batch_has_one_key_one_company_and_at_most_its_size(rows: list[Row], size: int) -> None:
    for batch in batches(rows, size):
        assert 1 <= len(batch) <= size
        assert len({row[1:] for row in batch}) == 1


@given(ROWS, st.integers(1, 12))
def test_no_two_batches_could_have_been_one(rows: list[Row], size: int) -> None:
    short = [batch[0][1:] for batch in batches(rows, size) if len(batch) < size]
    assert len(set(short)) == len(short)


def test_rows_that_were_tried_before_meet_none_but_their_own() -> None:
    rows: list[Row] = [(0, "a", None), (1, "a", "p"), (2, "a", None), (3, "a", "q"), (4, "a", "p")]
    assert [[row[0] for row in batch] for batch in batches(rows, 8)] == [[0, 2], [1, 4], [3]]


class Turns(RuleBasedStateMachine):
    """Waiting against a plain list of (key, item, size) and the line in which the keys stand."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: Waiting[int] = Waiting()
        self.items: list[tuple[str, int, int]] = []
        self.line: list[str] = []
        self.serial = 0

    @rule(key=st.sampled_from("abcd"), size=st.integers(1, 9))
    def put(self, key: str, size: int) -> None:
        self.serial += 1
        self.waiting.put(key, self.serial, size)
        self.items.append((key, self.serial, size))
        if key not in self.line:
            self.line.append(key)

    @precondition(lambda self: self.items)
    @rule(limit=st.integers(1, 20))
    def take(self, limit: int) -> None:
        key = self.line.pop(0)
        mine = [item for item in self.items if item[0] == key]
        got = self.waiting.take(limit)
        taken, left = mine[: len(got)], mine[len(got) :]
        assert got == [item[1] for item in taken], "the oldest of the key whose turn it is"
        size = sum(item[2] for item in taken)
        assert len(got) == 1 or size <= limit
        assert not left or size + left[0][2] > limit, "one more would have fitted"
        self.items = [item for item in self.items if item not in taken]
        if left:
            self.line.append(key)

    @rule()
    def clear(self) -> None:
        assert sorted(self.waiting.clear()) == sorted(item[1] for item in self.items)
        self.items, self.line = [], []

    @invariant()
    def counts_what_waits(self) -> None:
        assert len(self.waiting) == len(self.items)


TestTurns = Turns.TestCase


def test_a_busy_key_keeps_another_one_waiting_for_one_turn_only() -> None:
    waiting: Waiting[Any] = Waiting()
    for i in range(100):
        waiting.put("busy", i, 1)
    waiting.put("rare", "r", 1)
    assert waiting.take(10) == list(range(10))
    assert waiting.take(10) == ["r"]
    assert waiting.take(10) == list(range(10, 20))


def test_an_item_larger_than_the_limit_goes_alone() -> None:
    waiting: Waiting[str] = Waiting()
    waiting.put("k", "huge", 500)
    waiting.put("k", "small", 1)
    assert [waiting.take(100), waiting.take(100)] == [["huge"], ["small"]]


@pytest.mark.parametrize("limit", [1, 1000])
def test_nothing_is_taken_when_nothing_waits(limit: int) -> None:
    assert Waiting[int]().take(limit) == []
