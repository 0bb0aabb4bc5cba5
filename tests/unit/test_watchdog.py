"""When a worker counts as deaf, when it may judge the leases of others, and how long it waits for the ledger."""

import pytest
from fakeredis import FakeRedis

from forebay.contract.errors import LedgerOutdated, LedgerUnavailable
from forebay.worker.execution.retrying import retry_while_unavailable
from forebay.worker.parent.celery.watchdog import EXIT_STATUS, Watchdog
from forebay.worker.parent.housekeeper import Steadiness
from support.waiting import FakeClock


class FakeEars:
    """A feeder that is idle until told otherwise."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.idle, self.heard, self.heard_at, self.reconnects = clock, True, 0, clock(), 0

    def hear(self) -> None:
        self.heard, self.heard_at = self.heard + 1, self.clock()

    def reconnect(self) -> None:
        self.reconnects += 1
        self.heard_at = self.clock()


class Kennel:
    def __init__(self) -> None:
        self.clock = FakeClock(0.0)
        self.ears, self.redis, self.exits = FakeEars(self.clock), FakeRedis(), list[int]()
        self.dog = Watchdog(self.ears, self.redis, ["cpu"], 10, exit=self.exits.append, clock=self.clock)

    def look(self, seconds: float) -> None:
        """Let time pass and look every 5 seconds."""
        for _ in range(int(seconds / 5)):
            self.clock.forward(5)
            self.dog.look()


@pytest.fixture
def kennel() -> Kennel:
    return Kennel()


def test_an_idle_worker_with_empty_queues_is_not_deaf(kennel: Kennel) -> None:
    kennel.look(1000)
    assert (kennel.ears.reconnects, kennel.exits) == (0, [])


def test_a_busy_worker_is_not_deaf(kennel: Kennel) -> None:
    kennel.redis.lpush("cpu:9", "message")
    kennel.ears.idle = False
    kennel.look(1000)
    assert (kennel.ears.reconnects, kennel.exits) == (0, [])


def test_a_worker_that_hears_now_and_then_is_not_deaf(kennel: Kennel) -> None:
    kennel.redis.lpush("cpu", "message")
    for _ in range(10):
        kennel.look(15)
        kennel.ears.hear()
    assert (kennel.ears.reconnects, kennel.exits) == (0, [])


def test_a_deaf_worker_reconnects_then_exits(kennel: Kennel) -> None:
    kennel.redis.lpush("cpu:6", "message")
    kennel.look(25)
    assert (kennel.ears.reconnects, kennel.exits) == (1, [])
    kennel.look(25)
    assert (kennel.ears.reconnects, kennel.exits) == (1, [EXIT_STATUS])


def test_one_that_heard_again_after_a_reconnect_gets_another(kennel: Kennel) -> None:
    kennel.redis.lpush("cpu", "message")
    kennel.look(25)
    kennel.ears.hear()
    kennel.look(25)
    assert (kennel.ears.reconnects, kennel.exits) == (2, [])


def test_a_worker_judges_leases_only_while_its_own_beats_go_through() -> None:
    steadiness = Steadiness(heartbeat_s=10)
    assert not steadiness.holds(0)
    steadiness.beaten(0, 0)
    steadiness.beaten(10, 11)
    assert steadiness.holds(20)
    assert not steadiness.holds(40), "beats are missing"
    steadiness.beaten(60, 61)
    assert not steadiness.holds(62), "the others may not have renewed yet"
    steadiness.beaten(71, 71)
    assert steadiness.holds(81)


def test_a_beat_that_took_long_counts_as_an_outage_too() -> None:
    steadiness = Steadiness(heartbeat_s=10)
    steadiness.beaten(0, 0)
    steadiness.beaten(5, 20)
    assert not steadiness.holds(21)
    assert steadiness.holds(40)


def test_a_ledger_that_comes_back_is_waited_for() -> None:
    answers = iter([LedgerUnavailable("away"), LedgerUnavailable("away"), "here"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry_while_unavailable(ask, 30) == "here"


@pytest.mark.parametrize("error", [LedgerOutdated("old tables"), ValueError("a fault of ours")])
def test_what_does_not_come_back_is_not_waited_for(error: Exception) -> None:
    asked = []

    def ask() -> None:
        asked.append(1)
        raise error

    with pytest.raises(type(error)):
        retry_while_unavailable(ask, 30)
    assert len(asked) == 1


def test_patience_ends_with_the_ledgers_own_error() -> None:
    def ask() -> None:
        raise LedgerUnavailable("away for good")

    with pytest.raises(LedgerUnavailable, match="for good"):
        retry_while_unavailable(ask, 0.01)
