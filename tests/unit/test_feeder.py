"""What waits in the parent: an idle child gets it at once, a hold keeps it back, a busy child lets it gather."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import bootsteps
from celery.exceptions import TaskRevokedError

from forebay.contract.wire.messages import BatchWait
from forebay.worker.parent.celery.feeder import Feeder, Parcel

IDS = [f"{i:032x}" for i in range(1, 100)]


class FakeRequest:
    """A Celery request that notes what it is told."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.told: list[str] = []

    def revoked(self) -> bool:
        return False

    def on_accepted(self, *_: Any) -> None:
        self.told.append("accepted")

    def on_success(self, *_: Any) -> None:
        self.told.append("succeeded")

    def on_failure(self, *_: Any, **__: Any) -> None:
        self.told.append("failed")


class FakePool:
    """A pool that keeps what it was given, and ends it when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[dict[str, Any]] = []

    def apply_async(self, target: Any, args: tuple[str, int, list[str]], **callbacks: Any) -> object:
        callbacks["accept_callback"](1, 0.0)
        self.jobs.append({"ids": args[2], **callbacks})
        return object()

    def end(self, number: int, seconds: float = 0.1, failed: bool = False) -> None:
        self.jobs[number]["callback"](((failed, "words", seconds, []), {}))


class FakeConsumer:
    """A consumer with one slot, a timer that the test fires, and a prefetch count."""

    class Blueprint:
        state = bootsteps.RUN

    class Qos:
        value = 4

    def __init__(self, pool: FakePool) -> None:
        self.blueprint, self.qos, self.timer = self.Blueprint(), self.Qos(), self
        self.pool, self.free, self.asking = pool, 1, []
        self.timers: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []

    def on_task_request(self, hand_over: Any) -> None:
        self.asking.append(hand_over)
        self.give()

    def give(self) -> None:
        while self.free and self.asking:
            self.free -= 1
            try:
                self.asking.pop(0).execute_using_pool(self.pool)
            except TaskRevokedError:
                self.free += 1

    def call_after(self, seconds: float, action: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.timers.append((seconds, action, args))


class WorkerStack:
    def __init__(self) -> None:
        self.pool = FakePool()
        self.consumer = FakeConsumer(self.pool)
        self.feeder = Feeder(lambda ids, reason, pid: None)
        self.feeder.attach(self.consumer)
        self.count = 0

    def put(self, ids: list[str], model: str = "m", hold: BatchWait | None = None, solo: bool = False) -> FakeRequest:
        self.count += 1
        request = FakeRequest(f"message {self.count}")
        self.feeder.put(Parcel(request, model, 1, ids, 5, solo), hold)
        return request

    def end(self, number: int, **how: Any) -> None:
        self.pool.end(number, **how)
        self.consumer.free += 1
        self.consumer.give()


@pytest.fixture
def stack() -> WorkerStack:
    return WorkerStack()


def handed(stack: WorkerStack) -> list[list[str]]:
    return [job["ids"] for job in stack.pool.jobs]


def test_an_idle_child_gets_what_waits_at_once(stack: WorkerStack) -> None:
    stack.put(IDS[:1])
    assert handed(stack) == [IDS[:1]]


def test_a_busy_child_lets_envelopes_of_a_model_gather(stack: WorkerStack) -> None:
    stack.put(IDS[:1])
    stack.put(IDS[1:3])
    stack.put(IDS[3:5])
    stack.put(IDS[5:6], model="other")
    stack.end(0)
    stack.end(1)
    assert handed(stack) == [IDS[:1], IDS[1:5], IDS[5:6]]


def test_a_solo_envelope_shares_with_nobody(stack: WorkerStack) -> None:
    stack.put(IDS[:1])
    stack.put(IDS[1:2])
    stack.put(IDS[2:3], solo=True)
    stack.put(IDS[3:4])
    for number in range(3):
        stack.end(number)
    assert handed(stack) == [IDS[:1], [IDS[1], IDS[3]], IDS[2:3]]


def test_a_held_envelope_waits_until_a_batch_is_full(stack: WorkerStack) -> None:
    stack.put(IDS[:2], hold=BatchWait(5.0, 4))
    assert handed(stack) == []
    stack.put(IDS[2:4], hold=BatchWait(5.0, 4))
    assert handed(stack) == [IDS[:4]]


def test_a_held_envelope_waits_no_longer_than_its_hold(stack: WorkerStack) -> None:
    stack.put(IDS[:2], hold=BatchWait(5.0, 4))
    ((seconds, action, args),) = stack.consumer.timers
    assert seconds == 5.0
    action(*args)
    assert handed(stack) == [IDS[:2]]
    action(*args)  # and a timer that comes late does no harm
    assert handed(stack) == [IDS[:2]]


def test_a_reconnect_lets_go_of_what_was_held_for_its_timer_is_gone(stack: WorkerStack) -> None:
    stack.put(IDS[:2], hold=BatchWait(5.0, 4))
    stack.feeder.attach(stack.consumer)
    assert handed(stack) == [IDS[:2]]


def test_nothing_is_handed_over_once_the_worker_shuts_down(stack: WorkerStack) -> None:
    stack.put(IDS[:1])
    stack.put(IDS[1:2])
    stack.consumer.blueprint.state = bootsteps.CLOSE
    stack.end(0)
    assert handed(stack) == [IDS[:1]]


def test_every_message_of_a_hand_over_is_told_how_it_ended(stack: WorkerStack) -> None:
    first = stack.put(IDS[:1])
    others = [stack.put(IDS[1:2]), stack.put(IDS[2:3])]
    stack.end(0)
    stack.end(1, failed=True)
    assert first.told == ["accepted", "succeeded"]
    assert [r.told for r in others] == [["accepted", "failed"]] * 2


def test_the_leases_to_renew_are_those_of_what_a_child_works_on(stack: WorkerStack) -> None:
    stack.put(IDS[:2])
    stack.put(IDS[2:3])
    assert stack.feeder.in_flight.ids() == IDS[:2]
    stack.end(0)
    assert stack.feeder.in_flight.ids() == IDS[2:3]


def test_slow_jobs_make_the_parent_hold_fewer_messages(stack: WorkerStack) -> None:
    stack.put(IDS[:8])
    stack.end(0, seconds=20.0)
    assert stack.consumer.qos.value == 1
    stack.consumer.qos = None  # type: ignore[assignment] # while there is no connection
    stack.put(IDS[8:9])
    stack.end(1)
