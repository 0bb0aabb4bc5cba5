"""What the ledger keeps of attempts that did not end their job, on SQLite and PostgreSQL."""

from collections.abc import Sequence

import pytest
from sqlalchemy import text

from forebay.contract.history import history
from forebay.contract.job import JobError, JobKind, at, new_ids
from forebay.storage.jobs.records import Finished, NewJob, Postponed
from forebay.storage.jobs.store import JobStore
from support.waiting import FakeClock

LEASE = 30.0


def add(store: JobStore, count: int = 1) -> list[str]:
    return store.add([NewJob(id, JobKind.PREDICT, "digits", 1, "cpu", input=b"in") for id in new_ids(count)])


def claim(store: JobStore, ids: Sequence[str], worker: str) -> list[Finished]:
    return [Finished(job.id, job.attempt, b"out") for job in store.claim(ids, worker, LEASE)]


def told(store: JobStore, id: str) -> list[str]:
    return [f"{e.event} {e.worker or '-'}" for e in history(store.queries.get(id), store.queries.past_attempts(id))]


def rows(store: JobStore) -> int:
    with store.ledger.read() as connection:
        return int(connection.execute(text("SELECT count(*) FROM job_attempts")).scalar_one())


def test_jobs_that_run_once_and_end_leave_nothing_behind(store: JobStore) -> None:
    ids = add(store, 20)
    outcomes = claim(store, ids, "w1")
    bad = [Finished(o.id, o.attempt, error=JobError("ValueError", "bad")) for o in outcomes[:10]]
    store.finish([*bad, *outcomes[10:]])
    assert rows(store) == 0
    assert told(store, ids[0]) == ["queued -", "claimed w1", "failed w1"]


def test_a_crash_is_kept_with_its_worker_its_times_and_its_reason(store: JobStore, clock: FakeClock) -> None:
    (id, other) = add(store, 2)
    began = clock()
    claim(store, [id, other], "w1")
    clock.forward(7)
    store.free_crashed([id], "w1", "signal 9 (SIGKILL)")
    (attempt,) = store.queries.past_attempts(id)
    assert (attempt.attempt, attempt.worker, attempt.ended, attempt.reason) == (1, "w1", "lost", "signal 9 (SIGKILL)")
    assert (attempt.started_at, attempt.ended_at) == (at(began), at(began + 7))
    assert store.queries.past_attempts(other) == []


def test_a_lapsed_lease_a_late_result_and_a_retry_are_all_told(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store)
    clock.forward(1)
    late = claim(store, [id], "w1")
    clock.forward(LEASE + 1)
    store.sweeps.free_lapsed()
    clock.forward(1)
    (second,) = claim(store, [id], "w2")
    clock.forward(1)
    assert store.finish(late) == []
    store.keep_refused({o.id: o.attempt for o in late}, "w1")
    clock.forward(1)
    store.finish([Finished(id, second.attempt, error=JobError("ValueError", "bad"))])
    clock.forward(1)
    store.retry(id)
    clock.forward(1)
    store.finish(claim(store, [id], "w3"))
    assert told(store, id) == [
        "queued -", "claimed w1", "lost w1", "queued -", "claimed w2", "refused w1", "failed w2", "retried -",
        "claimed w3", "succeeded w3",
    ]  # fmt: skip
    numbers = [
        e.attempt for e in history(store.queries.get(id), store.queries.past_attempts(id)) if e.event == "claimed"
    ]
    assert numbers == [1, 2, 3]


def test_an_attempt_that_was_given_back_is_told(store: JobStore) -> None:
    (id,) = add(store)
    claim(store, [id], "w1")
    store.release([id], "w1")
    assert [(a.ended, a.worker) for a in store.queries.past_attempts(id)] == [("released", "w1")]


def test_an_attempt_that_met_a_transient_error_is_told_with_it(store: JobStore) -> None:
    (id,) = add(store)
    (attempt,) = claim(store, [id], "w1")
    store.postpone([Postponed(id, attempt.attempt, 5.0, "the blob store is away")])
    (past,) = store.queries.past_attempts(id)
    assert (past.ended, past.worker, past.reason) == ("postponed", "w1", "the blob store is away")


def test_many_that_failed_and_are_retried_at_once_keep_how_they_failed(store: JobStore) -> None:
    ids = add(store, 3)
    store.finish([Finished(o.id, o.attempt, error=JobError("ValueError", "bad")) for o in claim(store, ids, "w1")])
    store.retry_failed()
    assert [[a.reason for a in store.queries.past_attempts(id)] for id in ids] == [["ValueError: bad"]] * 3


def test_a_job_whose_last_attempt_was_lost_tells_it_from_its_row(store: JobStore, clock: FakeClock) -> None:
    (id,) = store.add([NewJob(new_ids(1)[0], JobKind.PREDICT, "digits", 1, "cpu", max_attempts=1, input=b"in")])
    claim(store, [id], "w1")
    store.free_crashed([id], "w1", "signal 11")
    assert told(store, id)[1:] == ["claimed w1", "failed w1"]
    assert (
        history(store.queries.get(id), store.queries.past_attempts(id))[-1].message
        == "WorkerLost: attempt 1 of 1: signal 11"
    )


@pytest.mark.parametrize("times", [3])
def test_a_job_that_is_canceled_and_retried_again_and_again_keeps_no_more_than_one_line_of_it(
    store: JobStore, times: int
) -> None:
    (id,) = add(store)
    for _ in range(times):
        store.cancel([id])
        store.retry(id)
    assert [a.ended for a in store.queries.past_attempts(id)] == ["canceled"]


def test_the_past_goes_with_the_job(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store)
    claim(store, [id], "w1")
    store.free_crashed([id], "w1", "signal 9")
    store.cancel([id])
    clock.forward(100)
    assert rows(store) == 1
    assert store.sweeps.purge(50) == 1
    assert rows(store) == 0


def test_a_late_result_of_a_job_that_is_gone_is_not_kept(store: JobStore) -> None:
    store.keep_refused({new_ids(1)[0]: 1}, "w1")
    assert rows(store) == 0
