"""How many jobs may wait in a queue, on SQLite and PostgreSQL: refused beyond, all or nothing, at next to no cost."""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import event

from forebay.contract.errors import QueueFull
from forebay.contract.job import JobError, JobKind, new_ids
from forebay.contract.queues import QueueSpec, Resources
from forebay.producer.quota import KEEP_S, SHARE, QueueQuota
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore
from support.waiting import FakeClock


def jobs(count: int, queue: str = "cpu", **more: Any) -> list[NewJob]:
    return [NewJob(id, JobKind.PREDICT, "m", 1, queue, **more) for id in new_ids(count)]


def quota(store: JobStore, maximum: int | None, clock: Any = None) -> QueueQuota:
    queues = {name: QueueSpec(name, Resources(), max_queue_size=maximum) for name in ("cpu", "gpu")}
    return QueueQuota(store, queues, clock or FakeClock())


class Statements:
    """Counts what is asked of a ledger."""

    def __init__(self, store: JobStore) -> None:
        self.count = 0
        event.listen(store.ledger.engine, "before_cursor_execute", self._note)

    def _note(self, *_: Any) -> None:
        self.count += 1


def test_a_submit_fits_up_to_the_maximum_and_is_refused_whole_beyond_it(store: JobStore) -> None:
    store.add(jobs(3), max_queue_size=5)
    with pytest.raises(
        QueueFull, match="takes at most 5 waiting jobs and holds 3: there is no room for 3 more"
    ) as full:
        store.add(jobs(3), max_queue_size=5)
    assert (full.value.queue, full.value.depth, full.value.maximum, full.value.retry_after_s) == ("cpu", 3, 5, None)
    assert store.queries.depths()["cpu"][0] == 3
    store.add(jobs(2), max_queue_size=5)
    store.add(jobs(5, "gpu"), max_queue_size=5)  # every queue has its own
    with pytest.raises(QueueFull, match="no room for 1 more"):
        store.add(jobs(1), max_queue_size=5)


def test_more_than_the_maximum_at_once_never_fits_and_says_so(store: JobStore) -> None:
    with pytest.raises(QueueFull, match="6 jobs at once never fit: submit at most 5 at a time") as full:
        store.add(jobs(6), max_queue_size=5)
    assert full.value.retry_after_s is None


def test_running_jobs_leave_room_and_retried_ones_are_not_refused(store: JobStore) -> None:
    first = jobs(2)
    store.add(first, max_queue_size=2)
    claimed = store.claim([job.id for job in first], "w", 30)
    store.add(jobs(2), max_queue_size=2)
    store.finish([Finished(job.id, job.attempt, error=JobError("E", "no")) for job in claimed])
    assert len(store.retry_failed()[0]) == 2
    with pytest.raises(QueueFull) as full:
        store.add(jobs(1), max_queue_size=2)
    assert full.value.depth == 4


def test_a_job_that_exists_already_is_given_back_by_a_full_queue(store: JobStore) -> None:
    (known,) = store.add(jobs(1, idempotency_key="k", request_hash="h"), max_queue_size=1)
    again = jobs(1, idempotency_key="k", request_hash="h")
    assert store.add(again, max_queue_size=1) == [known]
    assert quota(store, SHARE).take("cpu", 1, keyed=True) is None
    store.add(jobs(SHARE))
    assert quota(store, SHARE).take("cpu", 1, keyed=True) == SHARE


def test_the_estimate_is_by_the_pace_at_which_the_queues_jobs_end(store: JobStore, clock: FakeClock) -> None:
    ids = store.add(jobs(20))
    other = store.add(jobs(10, "gpu"))
    for start in range(0, 20, 2):
        clock.forward(1)
        for claimed in (store.claim(ids[start : start + 2], "w", 30), store.claim(other[start // 2 :][:1], "w", 30)):
            store.finish([Finished(job.id, job.attempt, b"") for job in claimed])
    clock.forward(1)
    assert store.queries.completion_rate("cpu") == 2.0  # 20 jobs in the 10 s since the first ended
    assert store.queries.completion_rate("gpu") == 1.0
    assert store.queries.completion_rate("other") == 0.0
    store.add(jobs(10))
    with pytest.raises(QueueFull, match=r"try again in about 2\.5 s") as full:
        store.add(jobs(5), max_queue_size=10)
    assert full.value.retry_after_s == 2.5
    clock.forward(61)
    with pytest.raises(QueueFull, match="is a worker there") as full:
        store.add(jobs(5), max_queue_size=10)
    assert full.value.retry_after_s is None


def test_canceling_makes_room_but_tells_nothing_about_the_pace(store: JobStore) -> None:
    store.cancel(store.add(jobs(5), max_queue_size=5))
    assert store.queries.completion_rate("cpu") == 0.0
    store.add(jobs(5), max_queue_size=5)


def test_however_many_submit_at_once_the_maximum_holds(store: JobStore) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> int:
        barrier.wait(120)
        added = 0
        for _ in range(10):
            try:
                added += len(store.add(jobs(3), max_queue_size=50))
            except QueueFull:
                continue
        return added

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(submit, range(8))) == store.queries.depths()["cpu"][0] == 48


def test_a_queue_without_a_maximum_is_never_asked_about(store: JobStore) -> None:
    asked = Statements(store)
    assert [quota(store, None).take("cpu", 10_000) for _ in range(100)] == [None] * 100
    assert asked.count == 0


def test_the_ledger_is_asked_once_for_a_hundredth_of_the_maximum(store: JobStore) -> None:
    mine = quota(store, 100 * SHARE)
    asked = Statements(store)
    assert [mine.take("cpu", 1) for _ in range(250)] == [None] * 250
    assert asked.count == 3


def test_a_share_is_given_up_after_a_while(store: JobStore) -> None:
    clock = FakeClock()
    mine = quota(store, 10 * SHARE, clock)
    asked = Statements(store)
    mine.take("cpu", 1)
    clock.forward(KEEP_S - 1)
    mine.take("cpu", 1)
    assert asked.count == 1
    clock.forward(1)
    mine.take("cpu", 1)
    assert asked.count == 2


def test_a_client_overshoots_by_no_more_than_its_share(store: JobStore) -> None:
    maximum = 3 * SHARE
    store.add(jobs(maximum - 4))
    clients = [quota(store, maximum) for _ in range(3)]
    added = 0
    for _ in range(10):
        for client in clients:
            try:
                limit = client.take("cpu", 1)
                added += len(store.add(jobs(1), max_queue_size=limit))
            except QueueFull:
                continue
    assert 4 <= added <= 4 + 2 * (maximum // SHARE)


def test_many_jobs_and_small_queues_are_counted_as_they_are_added(store: JobStore) -> None:
    assert quota(store, SHARE - 1).take("cpu", 1) == SHARE - 1
    assert quota(store, 10 * SHARE).take("cpu", 11) == 10 * SHARE
    store.add(jobs(10))
    with pytest.raises(QueueFull):
        quota(store, SHARE).take("cpu", SHARE)
