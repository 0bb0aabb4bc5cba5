"""The messages that wait in a parent: keys take turns, nothing is lost or reordered, no bound exceeded."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.worker.parent.celery.buffer import RoundRobinQueue


class Turns(RuleBasedStateMachine):
    """A queue against a plain list of (key, item, size) and the line in which the keys stand."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: RoundRobinQueue[int] = RoundRobinQueue()
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
    waiting: RoundRobinQueue[Any] = RoundRobinQueue()
    for i in range(100):
        waiting.put("busy", i, 1)
    waiting.put("rare", "r", 1)
    assert waiting.take(10) == list(range(10))
    assert waiting.take(10) == ["r"]
    assert waiting.take(10) == list(range(10, 20))


def test_an_item_larger_than_the_limit_goes_alone() -> None:
    waiting: RoundRobinQueue[str] = RoundRobinQueue()
    waiting.put("k", "huge", 500)
    waiting.put("k", "small", 1)
    assert [waiting.take(100), waiting.take(100)] == [["huge"], ["small"]]


@pytest.mark.parametrize("limit", [1, 1000])
def test_nothing_is_taken_when_nothing_waits(limit: int) -> None:
    assert RoundRobinQueue[int]().take(limit) == []
