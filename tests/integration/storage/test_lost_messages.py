"""A message that is lost from a queue that is never empty: it is sent again, and no other is."""

from typing import Any

from fakeredis import FakeRedis

from forebay.contract.job import JobKind, new_ids
from forebay.contract.settings import Settings
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.sweeps import JobSweeps
from forebay.storage.ledger.connection import Ledger
from forebay.worker.announcer import Announcer
from forebay.worker.parent.sweeper import Sweeper
from support.waiting import FakeClock


def add(store: JobStore, count: int, **fields: Any) -> list[str]:
    given = {"kind": JobKind.PREDICT, "model": "m", "version": 1, "queue": "cpu", "input": b""} | fields
    return store.add([NewJob(id=id, **given) for id in new_ids(count)])


def taken(ledger: Ledger, queue: str = "cpu") -> list[str]:
    return [routed_job.id for routed_job in JobSweeps(ledger).take_lost(queue, after_s=100, margin_s=10)]


def test_who_was_overtaken_long_ago_is_sent_again_and_once(ledger: Ledger, store: JobStore, clock: FakeClock) -> None:
    lost = add(store, 2)
    clock.forward(20)
    later = add(store, 3)
    store.claim(later[:1], "w1", 1000)
    clock.forward(70)
    assert taken(ledger) == [], "not long enough"
    clock.forward(20)
    assert taken(ledger) == lost
    assert taken(ledger) == []
    clock.forward(1000)
    assert taken(ledger) == [], "it was sent after what runs"


def test_what_merely_waits_its_turn_is_left_alone(ledger: Ledger, store: JobStore, clock: FakeClock) -> None:
    running, waiting = add(store, 1), add(store, 5)
    add(store, 5, priority=9)  # less urgent: whoever runs at another priority has not lost_messages them
    add(store, 5, queue="gpu")
    store.claim(running, "w1", 1000)
    clock.forward(1000)
    late = add(store, 1, priority=2)
    store.claim(late, "w1", 1000)
    assert taken(ledger) == []
    assert taken(ledger, "gpu") == []
    assert len(store.queries.queued(waiting)) == 5


def test_only_so_many_are_looked_at_and_sent_at_once(ledger: Ledger, store: JobStore, clock: FakeClock) -> None:
    lost = add(store, 30)
    clock.forward(200)
    store.claim(add(store, 1), "w1", 1000)
    clock.forward(200)
    sweeps = JobSweeps(ledger)
    assert [t.id for t in sweeps.take_lost("cpu", 100, 10, limit=20)] == lost[:20]
    assert [t.id for t in sweeps.take_lost("cpu", 100, 10, limit=20)] == lost[20:]


class NotingDispatcher:
    """Sends nowhere and notes it."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send_jobs(self, routed_jobs: list[RoutedJob]) -> None:
        self.sent += [routed_job.id for routed_job in routed_jobs]


def test_a_sweep_sends_them_while_redis_holds_other_messages(store: JobStore, clock: FakeClock) -> None:
    settings = Settings.load({"FOREBAY_BROKER": "redis://localhost/0", "FOREBAY_RESEND_S": "10"})
    broker, dispatcher = FakeRedis(), NotingDispatcher()
    broker.lpush("cpu", "the message of another job")
    sweeper = Sweeper(store, dispatcher, Announcer(broker), broker, settings)  # type: ignore[arg-type]
    lost = add(store, 1)
    clock.forward(20)
    store.claim(add(store, 1), "w1", 1000)
    clock.forward(50)
    assert (sweeper.sweep().resent, dispatcher.sent) == (0, [])
    clock.forward(50)
    assert (sweeper.sweep().resent, dispatcher.sent) == (1, lost)
