"""When a consumer counts as stalled, when it may judge the leases of others, and how long it waits for the ledger."""

import pytest
from fakeredis import FakeRedis

from forebay.contract.errors import LedgerOutdated, LedgerUnavailable
from forebay.worker.execution.retrying import retry_while_unavailable
from forebay.worker.parent.celery.watchdog import EXIT_STATUS, Watchdog
from forebay.worker.parent.heartbeat import HeartbeatHistory
from support.waiting import FakeClock


class FakeFeeder:
    """A feeder that is idle until told otherwise."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.idle, self.received, self.last_received, self.reconnects = clock, True, 0, clock(), 0

    def receive(self) -> None:
        self.received, self.last_received = self.received + 1, self.clock()

    def reconnect(self) -> None:
        self.reconnects += 1
        self.last_received = self.clock()


class Setup:
    def __init__(self) -> None:
        self.clock = FakeClock(0.0)
        self.feeder, self.redis, self.exits = FakeFeeder(self.clock), FakeRedis(), list[int]()
        self.watchdog = Watchdog(self.feeder, self.redis, ["cpu"], 10, exit=self.exits.append, clock=self.clock)

    def watch(self, seconds: float) -> None:
        """Let time pass and check every 5 seconds."""
        for _ in range(int(seconds / 5)):
            self.clock.forward(5)
            self.watchdog.check()


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_an_idle_worker_with_empty_queues_is_not_stalled(setup: Setup) -> None:
    setup.watch(1000)
    assert (setup.feeder.reconnects, setup.exits) == (0, [])


def test_a_busy_worker_is_not_stalled(setup: Setup) -> None:
    setup.redis.lpush("cpu:9", "message")
    setup.feeder.idle = False
    setup.watch(1000)
    assert (setup.feeder.reconnects, setup.exits) == (0, [])


def test_a_worker_that_receives_now_and_then_is_not_stalled(setup: Setup) -> None:
    setup.redis.lpush("cpu", "message")
    for _ in range(10):
        setup.watch(15)
        setup.feeder.receive()
    assert (setup.feeder.reconnects, setup.exits) == (0, [])


def test_a_stalled_worker_reconnects_then_exits(setup: Setup) -> None:
    setup.redis.lpush("cpu:6", "message")
    setup.watch(25)
    assert (setup.feeder.reconnects, setup.exits) == (1, [])
    setup.watch(25)
    assert (setup.feeder.reconnects, setup.exits) == (1, [EXIT_STATUS])


def test_one_that_received_again_after_a_reconnect_gets_another(setup: Setup) -> None:
    setup.redis.lpush("cpu", "message")
    setup.watch(25)
    setup.feeder.receive()
    setup.watch(25)
    assert (setup.feeder.reconnects, setup.exits) == (2, [])


def test_a_worker_judges_leases_only_while_its_own_beats_go_through() -> None:
    history = HeartbeatHistory(heartbeat_s=10)
    assert not history.is_steady(0)
    history.add(0, 0)
    history.add(10, 11)
    assert history.is_steady(20)
    assert not history.is_steady(40), "beats are missing"
    history.add(60, 61)
    assert not history.is_steady(62), "the others may not have renewed yet"
    history.add(71, 71)
    assert history.is_steady(81)


def test_a_beat_that_took_long_counts_as_an_outage_too() -> None:
    history = HeartbeatHistory(heartbeat_s=10)
    history.add(0, 0)
    history.add(5, 20)
    assert not history.is_steady(21)
    assert history.is_steady(40)


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
