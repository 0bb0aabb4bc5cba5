"""How messages reach a child: an idle one gets what waits at once, a busy one lets it gather; and how many are prefetched."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import bootsteps
from celery.exceptions import TaskRevokedError

from forebay.contract.metrics.statistics import Statistics
from forebay.contract.wire.messages import BatchWait, TaskArgs
from forebay.worker.parent.celery.buffer import ReceivedMessage
from forebay.worker.parent.celery.feeder import (
    PREFETCH_MAX,
    PREFETCH_MIN,
    PREFETCH_START,
    Feeder,
    InFlight,
    PrefetchEstimate,
)
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.task_report import TaskReport

IDS = [f"{i:032x}" for i in range(1, 100)]


class FakeRequest:
    """A Celery request that records its callbacks."""

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
        self.jobs[number]["callback"](TaskReport("words", seconds, failed, (), 1, Statistics()))


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

    def on_task_request(self, task: Any) -> None:
        self.asking.append(task)
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


class Parent:
    """A feeder with its consumer and pool, which notes what is reported."""

    def __init__(self) -> None:
        self.pool = FakePool()
        self.consumer = FakeConsumer(self.pool)
        self.feeder = Feeder(self, InFlight(), WorkerMetrics())
        self.lost: list[tuple[list[str], str, int]] = []
        self.returned: list[list[str]] = []
        self.feeder.attach(self.consumer)
        self.count = 0

    def child_lost(self, ids: list[str], reason: str, pid: int) -> None:
        self.lost.append((ids, reason, pid))

    def jobs_returned(self, ids: list[str]) -> None:
        self.returned.append(ids)

    def put(
        self, ids: list[str], model: str = "m", wait: BatchWait | None = None, exclusive: bool = False, version: int = 1
    ) -> FakeRequest:
        self.count += 1
        request = FakeRequest(f"message {self.count}")
        self.feeder.put(ReceivedMessage(request, TaskArgs(model, version, ids, exclusive, wait), 5))
        return request

    def end(self, number: int, **how: Any) -> None:
        self.pool.end(number, **how)
        self.consumer.free += 1
        self.consumer.give()


@pytest.fixture
def parent() -> Parent:
    return Parent()


def handed(parent: Parent) -> list[list[str]]:
    return [job["ids"] for job in parent.pool.jobs]


def test_an_idle_child_gets_what_waits_at_once(parent: Parent) -> None:
    parent.put(IDS[:1])
    assert handed(parent) == [IDS[:1]]


def test_a_child_that_is_given_a_training_job_has_its_worker_tell_of_it_before_it_ends(parent: Parent) -> None:
    parent.put(IDS[:1], "iris", exclusive=True, version=0)
    assert parent.feeder.metrics.snapshot().counters["training_attempts_total"]["iris", "failed"] == 0


def test_a_busy_child_lets_messages_of_a_model_gather(parent: Parent) -> None:
    parent.put(IDS[:1])
    parent.put(IDS[1:3])
    parent.put(IDS[3:5])
    parent.put(IDS[5:6], model="other")
    parent.end(0)
    parent.end(1)
    assert handed(parent) == [IDS[:1], IDS[1:5], IDS[5:6]]


def test_an_exclusive_message_shares_with_nobody(parent: Parent) -> None:
    parent.put(IDS[:1])
    parent.put(IDS[1:2])
    parent.put(IDS[2:3], exclusive=True)
    parent.put(IDS[3:4])
    for number in range(3):
        parent.end(number)
    assert handed(parent) == [IDS[:1], [IDS[1], IDS[3]], IDS[2:3]]


def test_a_held_message_waits_until_a_batch_is_full(parent: Parent) -> None:
    parent.put(IDS[:2], wait=BatchWait(5.0, 4))
    assert handed(parent) == []
    parent.put(IDS[2:4], wait=BatchWait(5.0, 4))
    assert handed(parent) == [IDS[:4]]


def test_a_held_message_waits_no_longer_than_its_hold(parent: Parent) -> None:
    parent.put(IDS[:2], wait=BatchWait(5.0, 4))
    ((seconds, action, args),) = parent.consumer.timers
    assert seconds == 5.0
    action(*args)
    assert handed(parent) == [IDS[:2]]
    action(*args)  # and a timer that comes late does no harm
    assert handed(parent) == [IDS[:2]]


def test_a_reconnect_lets_go_of_what_was_held_for_its_timer_is_gone(parent: Parent) -> None:
    parent.put(IDS[:2], wait=BatchWait(5.0, 4))
    parent.feeder.attach(parent.consumer)
    assert handed(parent) == [IDS[:2]]


def test_nothing_is_handed_over_once_the_worker_shuts_down(parent: Parent) -> None:
    parent.put(IDS[:1])
    parent.put(IDS[1:2])
    parent.consumer.blueprint.state = bootsteps.CLOSE
    parent.end(0)
    assert handed(parent) == [IDS[:1]]


def test_every_message_of_a_task_is_told_how_it_ended(parent: Parent) -> None:
    first = parent.put(IDS[:1])
    others = [parent.put(IDS[1:2]), parent.put(IDS[2:3])]
    parent.end(0)
    parent.end(1, failed=True)
    assert first.told == ["accepted", "succeeded"]
    assert [r.told for r in others] == [["accepted", "failed"]] * 2


def test_the_leases_to_renew_are_those_of_what_a_child_works_on(parent: Parent) -> None:
    parent.put(IDS[:2])
    parent.put(IDS[2:3])
    assert parent.feeder.in_flight.ids() == IDS[:2]
    parent.end(0)
    assert parent.feeder.in_flight.ids() == IDS[2:3]


def test_slow_jobs_make_the_parent_hold_fewer_messages(parent: Parent) -> None:
    parent.put(IDS[:8])
    parent.end(0, seconds=20.0)
    assert parent.consumer.qos.value == 1
    parent.consumer.qos = None  # type: ignore[assignment] # while there is no connection
    parent.put(IDS[8:9])
    parent.end(1)


def test_jobs_that_a_child_gave_back_and_those_that_died_with_one_are_reported(parent: Parent) -> None:
    parent.put(IDS[:2])
    parent.pool.jobs[0]["callback"](TaskReport("summary", 0.1, False, tuple(IDS[1:2]), 1, Statistics()))
    assert parent.returned == [IDS[1:2]]
    parent.consumer.free += 1
    parent.put(IDS[2:3])
    parent.pool.jobs[1]["error_callback"](SimpleNamespace(exception=ValueError("signal 9")))
    assert parent.lost == [(IDS[2:3], "signal 9", 1)]
    assert parent.feeder.in_flight.ids() == []


def test_before_anything_was_measured_a_parent_holds_a_few_messages() -> None:
    assert PrefetchEstimate().messages() == PREFETCH_START


def test_quick_jobs_are_held_up_to_a_bound() -> None:
    estimate = PrefetchEstimate()
    estimate.add(jobs=1024, messages=16, seconds=0.05)
    assert estimate.messages() == PREFETCH_MAX


def test_slow_jobs_are_left_for_other_workers() -> None:
    estimate = PrefetchEstimate()
    estimate.add(jobs=8, messages=1, seconds=8.0)
    assert estimate.messages() == PREFETCH_MIN


def test_a_quarter_of_a_second_of_work_is_held_for_each_child() -> None:
    for children in (1, 4):
        estimate = PrefetchEstimate(children)
        estimate.add(jobs=32, messages=1, seconds=0.05)
        assert estimate.messages() == 5 * children


def test_the_estimate_follows_when_jobs_become_slower() -> None:
    estimate = PrefetchEstimate()
    estimate.add(jobs=1024, messages=16, seconds=0.05)
    for _ in range(30):
        estimate.add(jobs=32, messages=1, seconds=3.2)
    assert estimate.messages() == PREFETCH_MIN


def test_an_empty_task_says_nothing() -> None:
    estimate = PrefetchEstimate()
    estimate.add(jobs=0, messages=1, seconds=5.0)
    assert estimate.messages() == PREFETCH_START
