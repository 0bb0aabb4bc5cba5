"""The sender: alone at once, in company together, each job exactly once, and no error for a Redis that is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from forebay.contract.errors import BrokerUnavailable, LedgerUnavailable
from forebay.contract.wire.messages import JobMessage, RoutedJob
from forebay.producer.sender import Parting, Sender
from support.waiting import wait_until


class FakeDispatcher:
    """Notes what is sent, from which thread; `gate` closed, a send hangs as one over a slow network does."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sent: list[tuple[JobMessage, ...]] = []
        self.threads: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._error = error

    def send(self, batch: Sequence[JobMessage]) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        self.threads.append(threading.current_thread().name)
        self.sent.append(tuple(batch))
        if self._error is not None:
            raise self._error

    @property
    def ids(self) -> list[str]:
        return [id for batch in self.sent for message in batch for id in message.args.ids]


class FakeStore:
    def __init__(self, error: Exception | None = None) -> None:
        self.unsent: list[str] = []
        self._error = error

    def mark_unsent(self, ids: Sequence[str]) -> None:
        if self._error is not None:
            raise self._error
        self.unsent += ids


def sender(dispatcher: FakeDispatcher, store: FakeStore | None = None) -> Sender:
    return Sender(store or FakeStore(), dispatcher)  # type: ignore[arg-type] # what it needs of them


def parting(*ids: str, **change: Any) -> Parting:
    routed_jobs = [RoutedJob(id, "digits", 1, "cpu", 5) for id in ids]
    return Parting.of(routed_jobs, **{"batch_size": 64, "hold_s": 0.0} | change)


def test_the_first_submit_after_a_pause_is_sent_by_its_own_thread_before_send_returns() -> None:
    dispatcher = FakeDispatcher()
    sender(dispatcher).send(parting("a", "b"))
    assert dispatcher.ids == ["a", "b"]
    assert dispatcher.threads == [threading.current_thread().name]


def test_what_comes_while_a_message_is_on_its_way_goes_out_together_in_one_message() -> None:
    dispatcher = FakeDispatcher()
    dispatcher.gate.clear()
    tested = sender(dispatcher)
    first = threading.Thread(target=tested.send, args=(parting("a"),))
    first.start()
    assert dispatcher.entered.wait(10)
    for id in "bcd":
        tested.send(parting(id))  # returns at once: the jobs are durable, and the thread has them
    dispatcher.gate.set()
    first.join(10)
    tested.close()
    assert [[m.args.ids for m in batch] for batch in dispatcher.sent] == [[["a"]], [["b", "c", "d"]]]


def test_jobs_that_are_to_be_held_do_not_share_a_message_with_those_that_are_not() -> None:
    dispatcher = FakeDispatcher()
    tested = sender(dispatcher)
    tested.send(parting("a"))
    tested.send(parting("b"))
    tested.send(parting("c", hold_s=0.5))
    tested.close()
    holds = {id: message.args.batch_wait for batch in dispatcher.sent for message in batch for id in message.args.ids}
    assert [holds["a"], holds["b"], holds["c"] is not None] == [None, None, True]


def test_many_threads_send_every_job_exactly_once() -> None:
    dispatcher = FakeDispatcher()
    tested = sender(dispatcher)

    def submit(thread: int) -> None:
        for i in range(200):
            tested.send(parting(f"{thread}-{i}"))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    tested.close()
    assert sorted(dispatcher.ids) == sorted(f"{n}-{i}" for n in range(8) for i in range(200))
    assert len(dispatcher.sent) < 1600


def test_the_gathering_thread_ends_by_itself_and_keeps_no_program_from_ending() -> None:
    dispatcher = FakeDispatcher()
    tested = sender(dispatcher)
    tested.send(parting("a"))
    tested.send(parting("b"))
    [thread] = [t for t in threading.enumerate() if t.name == "forebay-send"]
    assert not thread.daemon
    wait_until(lambda: not thread.is_alive(), description="the thread has ended")
    assert dispatcher.ids == ["a", "b"]
    tested.send(parting("c"))
    assert dispatcher.ids == ["a", "b", "c"]


def test_jobs_that_redis_did_not_take_are_left_to_the_sweeper() -> None:
    store = FakeStore()
    tested = sender(FakeDispatcher(BrokerUnavailable("connection refused")), store)
    tested.send(parting("a"))
    tested.send(parting("b"))
    tested.close()
    assert store.unsent == ["a", "b"]


def test_a_ledger_that_is_away_as_well_is_no_error_of_a_submit_that_is_durable() -> None:
    tested = sender(FakeDispatcher(BrokerUnavailable("refused")), FakeStore(LedgerUnavailable("gone")))
    tested.send(parting("a"))
    tested.close()


def test_an_error_nobody_foresaw_does_not_end_the_sending_of_later_jobs() -> None:
    dispatcher, store = FakeDispatcher(RuntimeError("a bug")), FakeStore()
    tested = sender(dispatcher, store)
    for id in "abc":
        tested.send(parting(id))
    tested.close()
    assert sorted(store.unsent) == sorted(dispatcher.ids) == ["a", "b", "c"]


def test_a_submit_of_several_messages_asks_a_worker_to_wait_a_moment_for_the_others() -> None:
    several = parting(*(f"{n:032x}" for n in range(600)), batch_size=32)
    assert several.size == 32
    assert several.hold is not None
    assert several.hold.rows == 128
    assert several.hold.seconds < 0.01
    few = parting(*(f"{n:032x}" for n in range(40)), batch_size=32)
    assert few.hold is not None
    assert few.hold.rows == 40, "more than there are would never come"
    assert parting(*(f"{n:032x}" for n in range(32)), batch_size=32).hold is None
    held = parting(*(f"{n:032x}" for n in range(600)), batch_size=32, hold_s=0.5)
    assert held.hold is not None
    assert (held.hold.seconds, held.hold.rows) == (0.5, 32)
