"""The sender: alone at once, in company together, each job exactly once, and no error for a Redis that is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from forebay.contract.errors import BrokerUnavailable, LedgerUnavailable
from forebay.contract.job import JobKind
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field, Signature
from forebay.contract.wire.messages import JobMessage, RoutedJob
from forebay.producer.handles.job import Job
from forebay.producer.sender import PendingSend, Sender
from forebay.producer.submit import Submission
from support.jobs import new
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
        assert self.gate.wait(120)
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


def pending(*ids: str, **change: Any) -> PendingSend:
    routed_jobs = [RoutedJob(id, "digits", 1, "cpu", 5) for id in ids]
    return PendingSend.of(routed_jobs, **{"batch_size": 64, "wait_s": 0.0} | change)


def test_nothing_is_gathered_while_the_workers_wait_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forebay.producer.sender.GATHER_S", 3600.0)
    dispatcher = FakeDispatcher()
    ours = sender(dispatcher)
    for id in ("a", "b", "c"):
        ours.send(pending(id))
        ours.note_ended([id])
    assert dispatcher.ids == ["a", "b", "c"]
    assert set(dispatcher.threads) == {threading.current_thread().name}


def test_the_first_submit_after_a_pause_is_sent_by_its_own_thread_before_send_returns() -> None:
    dispatcher = FakeDispatcher()
    sender(dispatcher).send(pending("a", "b"))
    assert dispatcher.ids == ["a", "b"]
    assert dispatcher.threads == [threading.current_thread().name]


def test_what_comes_while_a_message_is_on_its_way_goes_out_together_in_one_message() -> None:
    dispatcher = FakeDispatcher()
    dispatcher.gate.clear()
    tested = sender(dispatcher)
    first = threading.Thread(target=tested.send, args=(pending("a"),))
    first.start()
    assert dispatcher.entered.wait(120)
    for id in "bcd":
        tested.send(pending(id))  # returns at once: the jobs are durable, and the thread has them
    dispatcher.gate.set()
    first.join(120)
    tested.close()
    assert [[m.args.ids for m in batch] for batch in dispatcher.sent] == [[["a"]], [["b", "c", "d"]]]


def test_jobs_that_are_to_be_held_do_not_share_a_message_with_those_that_are_not() -> None:
    dispatcher = FakeDispatcher()
    tested = sender(dispatcher)
    tested.send(pending("a"))
    tested.send(pending("b"))
    tested.send(pending("c", wait_s=0.5))
    tested.close()
    holds = {id: message.args.batch_wait for batch in dispatcher.sent for message in batch for id in message.args.ids}
    assert [holds["a"], holds["b"], holds["c"] is not None] == [None, None, True]


def test_many_threads_send_every_job_exactly_once() -> None:
    dispatcher = FakeDispatcher()
    tested = sender(dispatcher)

    def submit(thread: int) -> None:
        for i in range(200):
            tested.send(pending(f"{thread}-{i}"))

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    tested.close()
    assert sorted(dispatcher.ids) == sorted(f"{n}-{i}" for n in range(8) for i in range(200))
    assert len(dispatcher.sent) < 1600


def test_the_gathering_thread_ends_by_itself_and_keeps_no_program_from_ending() -> None:
    dispatcher = FakeDispatcher()
    tested = sender(dispatcher)
    tested.send(pending("a"))
    tested.send(pending("b"))
    [thread] = [t for t in threading.enumerate() if t.name == "forebay-send"]
    assert not thread.daemon
    wait_until(lambda: not thread.is_alive(), description="the thread has ended")
    assert dispatcher.ids == ["a", "b"]
    tested.send(pending("c"))
    assert dispatcher.ids == ["a", "b", "c"]


def test_jobs_that_redis_did_not_take_are_left_to_the_sweeper() -> None:
    store = FakeStore()
    tested = sender(FakeDispatcher(BrokerUnavailable("connection refused")), store)
    tested.send(pending("a"))
    tested.send(pending("b"))
    tested.close()
    assert store.unsent == ["a", "b"]


def test_a_ledger_that_is_away_as_well_is_no_error_of_a_submit_that_is_durable() -> None:
    tested = sender(FakeDispatcher(BrokerUnavailable("refused")), FakeStore(LedgerUnavailable("gone")))
    tested.send(pending("a"))
    tested.close()


def test_an_error_nobody_foresaw_does_not_end_the_sending_of_later_jobs() -> None:
    dispatcher, store = FakeDispatcher(RuntimeError("a bug")), FakeStore()
    tested = sender(dispatcher, store)
    for id in "abc":
        tested.send(pending(id))
    tested.close()
    assert sorted(store.unsent) == sorted(dispatcher.ids) == ["a", "b", "c"]


def test_a_submit_of_several_messages_asks_a_worker_to_wait_a_moment_for_the_others() -> None:
    several = pending(*(f"{n:032x}" for n in range(600)), batch_size=32)
    assert several.ids_per_message == 32
    assert several.wait is not None
    assert several.wait.rows == 128
    assert several.wait.seconds < 0.01
    few = pending(*(f"{n:032x}" for n in range(40)), batch_size=32)
    assert few.wait is not None
    assert few.wait.rows == 40, "more than there are would never come"
    assert pending(*(f"{n:032x}" for n in range(32)), batch_size=32).wait is None
    held = pending(*(f"{n:032x}" for n in range(600)), batch_size=32, wait_s=0.5)
    assert held.wait is not None
    assert (held.wait.seconds, held.wait.rows) == (0.5, 32)


@pytest.mark.parametrize("dtype", ["str", "int64"])
def test_long_texts_are_sent_before_short_ones_but_by_no_more_than_a_thousand(dtype: str) -> None:
    model = ModelVersion("m", 1, "onnx", "", "none", 0, Signature((Field("text", dtype),)))
    options: Any = SimpleNamespace(model=model, queue="cpu", priority=5, kind=JobKind.PREDICT)
    lengths = [5, 9, 5, *[2] * 1021, 7, 8]
    jobs = [new(input=b"x" * length) for length in lengths]
    size = {job.id: length for job, length in zip(jobs, lengths, strict=True)}
    sent = [job.id for job in Submission(Job, options, jobs, None).routed_jobs(size)]
    first_in_first_out = [job.id for job in jobs]
    assert sorted(sent) == sorted(first_in_first_out)
    if dtype == "str":
        assert [size[id] for id in sent] == [9, 5, 5, *[2] * 1021, 8, 7]
        assert sent[1:3] == [jobs[0].id, jobs[2].id], "equals stay in their order"
    else:
        assert sent == first_in_first_out
