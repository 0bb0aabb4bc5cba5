"""The messages that wait in a parent: keys take turns, nothing is lost or reordered, no bound exceeded."""

from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.contract.wire.messages import TaskArgs
from forebay.worker.parent.celery.buffer import MessageBuffer, ReceivedMessage


def message(key: str, serial: object, size: int, priority: int = 5) -> ReceivedMessage:
    """A message of model `key` with so many ids."""
    return ReceivedMessage(SimpleNamespace(id=serial), TaskArgs(key, 1, ["id"] * size, False), priority)


def take(buffer: MessageBuffer, limit: int) -> list[object]:
    """The serials of what is taken."""
    return [taken.request.id for taken in buffer.take(limit)]


class Turns(RuleBasedStateMachine):
    """A buffer against a plain list of (key, item, size) and the line in which the keys stand."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = MessageBuffer()
        self.items: list[tuple[str, int, int]] = []
        self.line: list[str] = []
        self.serial = 0

    @rule(key=st.sampled_from("abcd"), size=st.integers(1, 9))
    def put(self, key: str, size: int) -> None:
        self.serial += 1
        self.waiting.put(message(key, self.serial, size))
        self.items.append((key, self.serial, size))
        if key not in self.line:
            self.line.append(key)

    @precondition(lambda self: self.items)
    @rule(limit=st.integers(1, 20))
    def take(self, limit: int) -> None:
        key = self.line.pop(0)
        mine = [item for item in self.items if item[0] == key]
        got = take(self.waiting, limit)
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
        assert sorted(m.request.id for m in self.waiting.clear()) == sorted(item[1] for item in self.items)
        self.items, self.line = [], []

    @invariant()
    def counts_what_waits(self) -> None:
        assert len(self.waiting) == len(self.items)
        assert self.waiting.ready == bool(self.items)


TestTurns = Turns.TestCase


def test_a_busy_key_keeps_another_one_waiting_for_one_turn_only() -> None:
    waiting = MessageBuffer()
    for i in range(100):
        waiting.put(message("busy", i, 1))
    waiting.put(message("rare", "r", 1))
    assert take(waiting, 10) == list(range(10))
    assert take(waiting, 10) == ["r"]
    assert take(waiting, 10) == list(range(10, 20))


def test_an_item_larger_than_the_limit_goes_alone() -> None:
    waiting = MessageBuffer()
    waiting.put(message("k", "huge", 200))
    waiting.put(message("k", "small", 1))
    assert [take(waiting, 100), take(waiting, 100)] == [["huge"], ["small"]]


@pytest.mark.parametrize("limit", [1, 1000])
def test_nothing_is_taken_when_nothing_waits(limit: int) -> None:
    assert MessageBuffer().take(limit) == []


def test_the_most_urgent_are_taken_first_and_held_ones_once_they_are_released() -> None:
    waiting = MessageBuffer()
    waiting.put(message("late", 1, 1, priority=9))
    waiting.hold(message("held", 2, 1, priority=0))
    waiting.put(message("soon", 3, 1, priority=3))
    assert (take(waiting, 10), len(waiting)) == ([3], 2)
    waiting.release("no such key")
    waiting.release(("held", 1))
    assert [take(waiting, 10), take(waiting, 10), take(waiting, 10)] == [[2], [1], []]
    assert (len(waiting), waiting.ready) == (0, False)
