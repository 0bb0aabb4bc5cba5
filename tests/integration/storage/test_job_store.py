"""JobStore on SQLite and PostgreSQL: each transition, who may make it, and what happens when two want the same."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace
from sqlalchemy import text

from forebay.contract.errors import IllegalTransition, InvalidInput, JobNotFound
from forebay.contract.job import FINAL, JobError, JobKind, JobState, Transition, at, claimant, new_ids
from forebay.contract.settings import Settings
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs import statements as sql
from forebay.storage.jobs import sweeps
from forebay.storage.jobs.queries import QUEUED
from forebay.storage.jobs.records import Ended, Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.sweeps import PURGE
from forebay.storage.jobs.views import JobFilter, JobViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.job_tables import jobs as jobs_table
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.ledger.statement import ROWS_AT_ONCE
from support.jobs import LEASE, add, claim, failure, in_state, new
from support.waiting import FakeClock

T = TypeVar("T")


def together(count: int, work: Callable[[int], T]) -> list[T]:
    """`work(i)` in `count` threads that start as one."""
    barrier = threading.Barrier(count)

    def run(i: int) -> T:
        barrier.wait(120)
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# adding


@pytest.mark.postgres
def test_postgres_finds_named_jobs_by_their_ids_before_it_knows_how_many_wait(postgres_database: str) -> None:
    with closing(Ledger(postgres_database)) as ledger:
        upgrade(ledger)
        store = JobStore(ledger)
        ids = store.add([new() for _ in range(9000)])[:500]
        values = {"ids": ids, "worker": "w", "now": 1.0, "lease_until": 2.0}
        for statement, more in (
            (sql.CLAIM, {}), (sql.CLAIM_FROM_QUEUES, {"queues": ["cpu"]}), (sql.MARK_UNSENT, {}), (sql.OWNED, {}),
            (sql.RENEW, {}), (QUEUED, {}),
        ):  # fmt: skip
            with ledger.read() as connection:
                plan = str(connection.run(f"EXPLAIN {statement._of_single(frozenset())}", values | more).tuples)
            assert "jobs_pkey" in plan or "Seq Scan" in plan
            assert "ix_jobs" not in plan


@pytest.mark.postgres
def test_postgres_plans_what_a_single_job_needs_once_and_not_for_the_few_rows_of_that_moment(
    postgres_database: str,
) -> None:
    with closing(Ledger(postgres_database)) as ledger:
        upgrade(ledger)
        store = JobStore(ledger)
        ids = store.add(
            [new() for _ in range(12)]
        )  # the driver prepares the 6th, the server keeps the plan of the 11th
        with ledger.read() as connection:
            connection.exec_driver_sql("ANALYZE jobs")
        for id in ids:
            [claimed] = store.claim([id], "w", 30, ["cpu"])
            store.finish([Finished(id, claimed.attempt, b"")])
            assert [outcome.id for outcome in store.queries.outcomes([id])] == [id]
        with ledger.read() as connection:
            kept = connection.run(
                "SELECT name, cardinality(parameter_types) AS count FROM pg_prepared_statements WHERE generic_plans > 0",
                {},
            ).all()
            explain = [f"EXPLAIN EXECUTE {row.name} ({', '.join(['NULL'] * row.count)})" for row in kept]
            plans = [str(connection.run(query, {}).tuples) for query in explain]
    assert len(plans) == 3  # claim, finish, read
    assert all("jobs_pkey" in plan and "Seq Scan" not in plan for plan in plans), plans


def test_many_jobs_are_stored_as_each_would_be_alone(store: JobStore) -> None:
    jobs = [
        new(
            queue=f"q{i % 3}", priority=i % 10, rows=i + 1, deadline_at=None if i % 2 else 4e9 + i, input=bytes([i, 0, 255]) * i,
            metadata={"i": i} if i % 3 else {}, submitted_by=None if i % 4 else "native:kéy",
            kind=(JobKind.PREDICT, JobKind.BATCH)[i % 2],
        )
        for i in range(7)
    ]  # fmt: skip
    alike = [new() for _ in range(ROWS_AT_ONCE + 1)]
    assert store.add([*jobs, *alike]) == [job.id for job in (*jobs, *alike)]
    alone = [replace(job, id=new_ids(1)[0]) for job in jobs]
    for job in alone:
        store.add([job])

    def stored(ids: Sequence[str]) -> list[dict[str, Any]]:
        with store.ledger.read() as connection:
            rows = (
                connection.execute(jobs_table.select().where(jobs_table.c.id.in_(ids)).order_by("id")).mappings().all()
            )
        return [
            {name: value for name, value in row.items() if name not in ("id", "created_at", "sent_at")} for row in rows
        ]

    assert stored([job.id for job in jobs]) == stored([job.id for job in alone])
    assert len({str(row) for row in stored([job.id for job in alike])}) == 1
    assert sum(store.queries.counts().values()) == 2 * len(jobs) + len(alike)


def test_a_job_is_read_back_as_it_was_added(store: JobStore, clock: FakeClock) -> None:
    job = new(
        kind=JobKind.SHARD, version=7, queue="gpu", priority=2, max_attempts=5, rows=64, deadline_at=clock() + 60,
        client="c1", metadata={"team": "ä", "n": [1, {"x": None}]}, parent_id="f" * 32,
    )  # fmt: skip
    assert store.add([job]) == [job.id]
    info = store.queries.get(job.id)
    assert (info.id, info.kind, info.state, info.model, info.version, info.queue) == (
        job.id, JobKind.SHARD, JobState.QUEUED, "digits", 7, "gpu",
    )  # fmt: skip
    assert (info.priority, info.attempt, info.max_attempts, info.worker, info.parent_id) == (2, 0, 5, None, "f" * 32)
    assert (info.created_at, info.deadline_at) == (at(clock()), at(clock() + 60))
    assert (info.started_at, info.finished_at, info.error) == (None, None, None)
    assert (info.progress.done, info.progress.total, info.progress.message) == (0, 64, "")
    assert info.metadata == {"team": "ä", "n": [1, {"x": None}]}


def test_ids_come_back_in_the_order_of_the_jobs(store: JobStore) -> None:
    ids = new_ids(500)[::-1]
    assert store.add([new(id=id) for id in ids]) == ids
    assert len(store.queries.states(ids)) == 500


def test_adding_nothing_adds_nothing(store: JobStore) -> None:
    assert store.add([]) == []
    assert sum(store.queries.counts().values()) == 0


def test_when_one_job_cannot_be_added_none_is(store: JobStore) -> None:
    jobs = [new(), new(metadata={"bad": float("nan")}), new()]
    with pytest.raises(InvalidInput, match="metadata"):
        store.add(jobs)
    assert store.queries.states([job.id for job in jobs]) == {}


@pytest.mark.parametrize("bad", [float("inf"), "a\0b", "\ud800", {1, 2}, {"deep": [float("nan")]}, b"x"])
def test_metadata_that_would_make_the_ledger_unreadable_is_refused(store: JobStore, bad: Any) -> None:
    with pytest.raises(InvalidInput, match="metadata"):
        add(store, metadata={"k": bad})


def test_metadata_with_a_written_out_nul_is_no_nul(store: JobStore) -> None:
    (id,) = add(store, metadata={"k": "\\u0000"})
    assert [job.id for job in store.queries.find(metadata={"k": "\\u0000"})] == [id]


# idempotency keys


def test_a_known_key_with_the_same_request_gives_the_job_there_is(store: JobStore) -> None:
    first, again = new(idempotency_key="k", request_hash="h"), new(idempotency_key="k", request_hash="h")
    assert store.add([first]) == store.add([again]) == [first.id]
    assert store.queries.states([first.id, again.id]) == {first.id: JobState.QUEUED}


def test_a_known_key_with_another_request_is_refused_and_nothing_is_added(store: JobStore) -> None:
    first, bystander = new(idempotency_key="k", request_hash="h"), new()
    store.add([first])
    with pytest.raises(InvalidInput, match=f"'k' belongs to job {first.id}"):
        store.add([bystander, new(idempotency_key="k", request_hash="other")])
    assert store.queries.states([bystander.id]) == {}


def test_keys_new_known_doubled_and_absent_mix_in_one_call(store: JobStore) -> None:
    known = new(idempotency_key="known", request_hash="h")
    store.add([known])
    jobs = [
        new(), new(idempotency_key="known", request_hash="h"), new(idempotency_key="new", request_hash="h"),
        new(idempotency_key="new", request_hash="h"), new(),
    ]  # fmt: skip
    assert store.add(jobs) == [jobs[0].id, known.id, jobs[2].id, jobs[2].id, jobs[4].id]
    assert sum(store.queries.counts().values()) == 4


def test_a_key_used_by_many_threads_at_once_makes_one_job(store: JobStore) -> None:
    def submit(i: int) -> list[str]:
        # In another order in each thread: that must not make them wait for one another for ever.
        keys = [f"k{(i + j) % 8}" for j in range(8)]
        return store.add([new(idempotency_key=key, request_hash="h", metadata={"key": key}) for key in keys])

    answers = together(8, submit)
    assert len({id for ids in answers for id in ids}) == 8
    assert sum(store.queries.counts().values()) == 8
    key_of = {id: store.queries.get(id).metadata["key"] for id in answers[0]}
    assert all([key_of[id] for id in ids] == [f"k{(i + j) % 8}" for j in range(8)] for i, ids in enumerate(answers))


def test_a_call_may_carry_ten_thousand_keys(store: JobStore) -> None:
    def jobs() -> list[NewJob]:
        return [new(id=id, idempotency_key=f"k:{i}", request_hash="h") for i, id in enumerate(new_ids(10_000))]

    assert store.add(first := jobs()) == store.add(jobs()) == [job.id for job in first]


# claiming


def test_a_claim_takes_the_job_and_gives_what_it_takes_to_run_it(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store, rows=3, client="c1", input=b"payload", max_attempts=2)
    clock.forward(5)
    (job,) = store.claim([id], "w1", LEASE)
    assert (job.id, job.kind, job.model, job.version, job.queue) == (id, JobKind.PREDICT, "digits", 1, "cpu")
    assert (job.attempt, job.max_attempts, job.client, job.rows, job.input, job.input_ref) == (
        1,
        2,
        "c1",
        3,
        b"payload",
        None,
    )
    info = store.queries.get(id)
    assert (info.state, info.attempt, info.worker, info.started_at) == (JobState.RUNNING, 1, "w1", at(clock()))


def test_a_claim_gives_the_reference_of_a_large_input(store: JobStore) -> None:
    (id,) = add(store, input=None, input_ref="sha256:" + "a" * 64)
    (job,) = store.claim([id], "w1", LEASE)
    assert (job.input, job.input_ref) == (None, "sha256:" + "a" * 64)


def test_a_second_copy_of_a_message_claims_nothing(store: JobStore) -> None:
    ids = add(store, 3)
    assert len(store.claim(ids, "w1", LEASE)) == 3
    assert store.claim(ids, "w2", LEASE) == []
    assert store.claim(ids, "w1", LEASE) == []
    assert [store.queries.get(id).attempt for id in ids] == [1, 1, 1]


def test_claimed_jobs_come_in_the_order_of_the_message(store: JobStore) -> None:
    ids = add(store, 20)[::-1]
    assert [job.id for job in store.claim([*ids, "0" * 32], "w1", LEASE)] == ids


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.QUEUED}))
def test_only_a_queued_job_can_be_claimed(store: JobStore, state: JobState) -> None:
    id = in_state(store, state)
    before = store.queries.get(id)
    assert store.claim([id], "w9", LEASE) == []
    assert store.queries.get(id) == before


def test_a_job_past_its_deadline_is_not_claimed(store: JobStore, clock: FakeClock) -> None:
    late, early = add(store, deadline_at=clock() + 10) + add(store, deadline_at=clock() + 11)
    clock.forward(10)
    assert [job.id for job in store.claim([late, early], "w1", LEASE)] == [early]


def test_two_workers_with_the_same_ids_get_each_job_once(store: JobStore) -> None:
    ids = add(store, 200)
    got = together(4, lambda i: store.claim(ids if i % 2 else ids[::-1], f"w{i}", LEASE))
    assert Counter(job.id for jobs in got for job in jobs) == Counter(ids)
    assert {store.queries.get(job.id).worker for job in got[0]} <= {"w0"}


# leases


def test_only_the_holder_can_renew_a_lease(store: JobStore, clock: FakeClock) -> None:
    ids = add(store, 3)
    claim(store, ids[:2])
    assert store.renew(ids, "w2", LEASE) == set()
    clock.forward(LEASE - 1)
    assert store.renew([ids[0], ids[2]], "w1", LEASE) == {ids[0]}
    clock.forward(2)
    freed, failed = store.sweeps.free_lapsed()
    assert ([t.id for t in freed], failed) == ([ids[1]], [])
    assert store.renew(ids, "w1", LEASE) == {ids[0]}


def test_a_lease_that_holds_is_left_alone(store: JobStore, clock: FakeClock) -> None:
    claim(store, add(store, 2))
    clock.forward(LEASE)
    assert store.sweeps.free_lapsed() == ([], [])


def test_a_lapsed_lease_frees_a_job_with_attempts_left(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store, queue="gpu", priority=3)
    claim(store, [id])
    clock.forward(LEASE + 1)
    assert store.sweeps.free_lapsed() == ([RoutedJob(id, "digits", 1, "gpu", 3, crashes=1)], [])
    info = store.queries.get(id)
    assert (info.state, info.attempt, info.worker) == (JobState.QUEUED, 1, None)
    assert "lease lapsed" in info.progress.message
    assert [o.attempt for o in claim(store, [id], "w2")] == [2]


def test_a_lapsed_lease_without_attempts_left_fails_as_worker_lost(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store, max_attempts=2, client="c1")
    for _ in range(2):
        claim(store, [id])
        clock.forward(LEASE + 1)
        freed, failed = store.sweeps.free_lapsed()
    assert (freed, failed) == ([], [Ended(id, "c1")])
    info = store.queries.get(id)
    assert (info.state, info.attempt, info.worker, info.finished_at) == (JobState.FAILED, 2, "w1", at(clock()))
    assert info.error is not None
    assert (info.error.type, "lapsed" in info.error.message) == ("WorkerLost", True)


def test_many_sweepers_free_each_job_once(store: JobStore, clock: FakeClock) -> None:
    ids = add(store, 60) + add(store, 60, max_attempts=1)
    claim(store, ids)
    clock.forward(LEASE + 1)
    swept = together(4, lambda _: store.sweeps.free_lapsed())
    assert Counter(t.id for freed, _ in swept for t in freed) == Counter(ids[:60])
    assert Counter(e.id for _, failed in swept for e in failed) == Counter(ids[60:])


def test_a_crash_frees_and_fails_the_workers_own_jobs_only(store: JobStore) -> None:
    free, spent, other, waiting = [*add(store), *add(store, max_attempts=1), *add(store, 2)]
    claim(store, [free, spent])
    claim(store, [other], "w2")
    freed, failed = store.free_crashed([free, spent, other, waiting], "w1", "signal 9 (SIGKILL)")
    assert ([t.id for t in freed], [t.crashes for t in freed]) == ([free], [1])
    assert [e.id for e in failed] == [spent]
    assert store.queries.get(spent).error == JobError("WorkerLost", "attempt 1 of 1: signal 9 (SIGKILL)")
    assert store.queries.states([free, spent, other, waiting]) == {
        free: JobState.QUEUED, spent: JobState.FAILED, other: JobState.RUNNING, waiting: JobState.QUEUED,
    }  # fmt: skip


# finishing


def test_a_success_is_written_with_its_result(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store, rows=4, client="c1")
    (outcome,) = claim(store, [id])
    clock.forward(2)
    assert store.finish([replace(outcome, result=b"result")]) == [Ended(id, "c1")]
    info = store.queries.get(id)
    assert (info.state, info.progress.done, info.finished_at, info.error) == (JobState.SUCCEEDED, 4, at(clock()), None)
    (read,) = store.queries.outcomes([id])
    assert (read.state, read.result, read.result_ref, read.error) == (JobState.SUCCEEDED, b"result", None, None)
    assert (read.worker, read.attempt) == ("w1", 1)


def test_a_failure_is_written_with_its_error(store: JobStore) -> None:
    (id,) = add(store)
    store.finish([failure(o) for o in claim(store, [id])])
    assert store.queries.get(id).error == JobError("ValueError", "bad row")
    (read,) = store.queries.outcomes([id])
    assert (read.state, read.result, read.error) == (JobState.FAILED, None, JobError("ValueError", "bad row"))


def test_successes_and_failures_of_one_batch_are_told_apart(store: JobStore) -> None:
    ids = add(store, 6)
    outcomes = [failure(o, message=o.id) if i % 2 else o for i, o in enumerate(claim(store, ids))]
    assert {e.id for e in store.finish(outcomes)} == set(ids)
    assert store.queries.states(ids) == {
        id: JobState.FAILED if i % 2 else JobState.SUCCEEDED for i, id in enumerate(ids)
    }
    assert all(store.queries.get(id).error == JobError("ValueError", id) for id in ids[1::2])


@pytest.mark.parametrize(
    ("type", "message"), [("E", "a\0b"), ("E", "half \ud83d of a pair"), ("E" * 500, "x" * 100_000), ("\0", "")]
)
def test_an_error_of_any_text_is_written_and_spares_its_neighbours(store: JobStore, type: str, message: str) -> None:
    bad, good = add(store, 2)
    outcomes = claim(store, [bad, good])
    assert len(store.finish([failure(outcomes[0], type, message), outcomes[1]])) == 2
    error = store.queries.get(bad).error
    assert error is not None
    assert error.message == message.replace("\0", "\\x00").replace("\ud83d", "\\ud83d")
    assert error.type == type.replace("\0", "\\x00")[:200]
    assert store.queries.get(good).state is JobState.SUCCEEDED


def test_a_result_may_be_empty_or_lie_elsewhere(store: JobStore) -> None:
    ids = add(store, 2)
    empty, elsewhere = claim(store, ids)
    store.finish([replace(empty, result=b""), replace(elsewhere, result=None, result_ref="sha256:" + "b" * 64)])
    read = {o.id: (o.result, o.result_ref) for o in store.queries.outcomes(ids)}
    assert read == {ids[0]: (b"", None), ids[1]: (None, "sha256:" + "b" * 64)}


def test_a_worker_frees_renews_and_gives_back_nothing_of_another_one_with_its_name(store: JobStore) -> None:
    ours, theirs = claimant("cpu@a", "0123abcd"), claimant("cpu@a", "4567cdef")
    (id,) = add(store)
    store.claim([id], ours, LEASE)
    assert store.renew([id], theirs, LEASE) == set()
    assert store.free_crashed([id], theirs, "gone") == ([], [])
    assert store.release([id], theirs) == []
    store.cancel([id])
    assert (store.queries.cancel_requested(theirs), store.queries.cancel_requested(ours)) == (set(), {id})
    assert store.queries.get(id).worker == "cpu@a"
    assert [job.id for job in store.queries.find(worker="cpu@a")] == [id]
    assert store.queries.find(worker="cpu") == store.queries.find(worker="cpu@a#") == []
    assert [row.id for row in JobViews(store.ledger).page(JobFilter(worker="cpu@a")).jobs] == [id]


def test_a_job_is_finished_once(store: JobStore) -> None:
    (id,) = add(store)
    (outcome,) = claim(store, [id])
    assert len(store.finish([outcome])) == 1
    assert store.finish([replace(outcome, result=b"again")]) == []
    assert store.finish([failure(outcome)]) == []
    assert [o.result for o in store.queries.outcomes([id])] == [b"out"]


def test_the_same_outcome_from_two_threads_is_written_once(store: JobStore) -> None:
    outcomes = claim(store, add(store, 50))
    written = together(
        4, lambda i: store.finish([replace(o, result=b"%d" % i) for o in outcomes[:: 1 if i % 2 else -1]])
    )
    assert Counter(e.id for ended in written for e in ended) == Counter(o.id for o in outcomes)


def test_a_zombies_write_is_refused(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store)
    (zombie,) = claim(store, [id], "w1")
    clock.forward(LEASE + 1)
    store.sweeps.free_lapsed()
    assert store.finish([zombie]) == []  # while the job waits again
    (holder,) = claim(store, [id], "w2")
    assert store.finish([replace(zombie, result=b"late")]) == []  # while another runs it
    assert store.finish([failure(zombie)]) == []
    assert store.renew([id], "w1", LEASE) == set()
    assert store.release([id], "w1") == []
    assert store.free_crashed([id], "w1", "gone") == ([], [])
    assert store.finish([holder]) == [Ended(id, None)]
    assert store.finish([zombie]) == []  # and afterwards
    assert [o.result for o in store.queries.outcomes([id])] == [b"out"]


def test_a_zombies_write_is_refused_after_a_retry_too(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store, max_attempts=1)
    (zombie,) = claim(store, [id], "w1")
    clock.forward(LEASE + 1)
    store.sweeps.free_lapsed()
    store.retry(id)
    (holder,) = claim(store, [id], "w2")
    assert store.finish([replace(zombie, result=b"late")]) == []
    assert store.finish([holder]) == [Ended(id, None)]
    assert [o.result for o in store.queries.outcomes([id])] == [b"out"]


def test_a_zombies_write_is_refused_after_a_release_too(store: JobStore) -> None:
    (id,) = add(store)
    (zombie,) = claim(store, [id], "w1")
    store.release([id], "w1")
    (holder,) = claim(store, [id], "w1")
    assert store.finish([replace(zombie, result=b"late")]) == []
    assert store.finish([holder]) == [Ended(id, None)]


# giving back


def test_a_released_job_waits_again_with_its_attempt_uncounted(store: JobStore) -> None:
    ids = add(store, 3, max_attempts=1)
    claim(store, ids[:2])
    claim(store, ids[2:], "w2")
    assert store.release(ids, "w1") == [RoutedJob(id, "digits", 1, "cpu", 5, crashes=0) for id in ids[:2]]
    info = store.queries.get(ids[0])
    assert (info.state, info.attempt, info.worker, info.started_at) == (JobState.QUEUED, 0, None, None)
    assert store.queries.get(ids[2]).state is JobState.RUNNING
    claim(store, ids[:1])
    assert store.queries.get(ids[0]).attempt == 1
    assert [e.id for e in store.free_crashed(ids[:1], "w1", "gone")[1]] == ids[:1], "its one attempt is used up now"


# deadlines, cancel, retry


def test_a_queued_job_expires_when_its_deadline_comes(store: JobStore, clock: FakeClock) -> None:
    (late,), (later,), (never,) = (add(store, deadline_at=d, client="c") for d in (clock() + 1, clock() + 2, None))
    (running,) = add(store, deadline_at=clock() + 1)
    claim(store, [running])
    clock.forward(1)
    assert store.sweeps.expire() == [Ended(late, "c")]
    assert store.sweeps.expire() == []
    states = store.queries.states([late, later, never, running])
    assert [states[id] for id in (late, later, never, running)] == [
        JobState.EXPIRED, JobState.QUEUED, JobState.QUEUED, JobState.RUNNING,
    ]  # fmt: skip
    assert store.queries.get(late).finished_at == at(clock())


@pytest.mark.parametrize("state", JobState)
def test_a_user_cancels_what_is_queued_and_nothing_else(store: JobStore, state: JobState) -> None:
    id = in_state(store, state)
    canceled = [e.id for e in store.cancel([id])]
    assert canceled == ([id] if state is JobState.QUEUED else [])
    assert store.queries.get(id).state is (JobState.CANCELED if canceled else state)


@pytest.mark.parametrize("state", JobState)
def test_a_user_retries_what_ended_badly_and_nothing_else(store: JobStore, state: JobState) -> None:
    id = in_state(store, state)
    if state not in {JobState.FAILED, JobState.CANCELED, JobState.EXPIRED}:
        with pytest.raises(IllegalTransition, match=f"cannot {Transition.RETRY} a job that is {state}"):
            store.retry(id)
        assert store.queries.get(id).state is state
        return
    assert store.retry(id) == RoutedJob(id, "digits", 1, "cpu", 5, crashes=0)
    info = store.queries.get(id)
    assert (info.state, info.attempt, info.error, info.worker) == (JobState.QUEUED, 0, None, None)
    assert (info.started_at, info.finished_at, info.deadline_at) == (None, None, None)
    assert store.queries.outcomes([id]) == []


def test_a_retried_job_has_all_its_attempts_again_however_often(store: JobStore) -> None:
    (id,) = add(store, max_attempts=2)
    for _ in range(4):
        for attempt in (1, 2):
            claim(store, [id])
            assert store.queries.get(id).attempt == attempt
            freed, failed = store.free_crashed([id], "w1", "gone")
        assert (freed, [e.id for e in failed]) == ([], [id])
        store.retry(id)
    assert (store.queries.get(id).attempt, store.queries.get(id).max_attempts) == (0, 2)


def test_a_job_that_is_not_there_cannot_be_read_or_retried(store: JobStore) -> None:
    for use in (store.queries.get, store.retry):
        with pytest.raises(JobNotFound, match="0000"):
            use("0" * 32)


def test_two_users_retry_all_that_failed_and_each_job_is_queued_once(store: JobStore) -> None:
    ids = add(store, 40)
    store.finish([failure(o) for o in claim(store, ids)])

    def retry_all(_: int) -> list[str]:
        retried, after_id = [], ""
        while after_id is not None:
            routed_jobs, after_id = store.retry_failed(after_id=after_id, limit=7)
            retried += [routed_job.id for routed_job in routed_jobs]
        return retried

    assert sorted(id for retried in together(2, retry_all) for id in retried) == ids
    assert store.queries.counts()[JobState.QUEUED] == 40


def test_a_second_request_to_cancel_a_running_job_changes_nothing(store: JobStore, clock: FakeClock) -> None:
    (id,) = add(store)
    claim(store, [id])
    first = clock()
    assert store.cancel([id]) == []
    clock.forward(5)
    assert store.cancel([id]) == []
    assert store.queries.get(id).cancel_requested_at == at(first)
    assert store.queries.cancel_requested("w1") == {id}
    assert store.queries.cancel_requested("w2") == set()


def test_two_users_retry_a_job_once(store: JobStore) -> None:
    id = in_state(store, JobState.FAILED)

    def retry(_: int) -> str:
        try:
            return store.retry(id).id
        except IllegalTransition:
            return "refused"

    assert sorted(together(4, retry)) == sorted([id, "refused", "refused", "refused"])


# messages that were lost


def test_jobs_sent_long_ago_are_taken_for_sending_once(store: JobStore, clock: FakeClock) -> None:
    old, other = add(store, 3), add(store, 1, queue="gpu")
    clock.forward(20)
    add(store, 2)
    assert store.sweeps.take_unsent("cpu", 20) == []
    clock.forward(1)
    assert sorted(store.queries.queues_with_unsent(20)) == ["cpu", "gpu"]
    assert [t.id for t in store.sweeps.take_unsent("cpu", 20)] == old
    assert store.sweeps.take_unsent("cpu", 20) == []
    assert store.queries.queues_with_unsent(20) == ["gpu"]
    assert [t.id for t in store.sweeps.take_unsent("gpu", 20)] == other


def test_the_most_urgent_and_oldest_are_sent_first(store: JobStore, clock: FakeClock) -> None:
    later, urgent = add(store, 3, priority=5), add(store, 2, priority=0)
    clock.forward(1)
    assert [t.id for t in store.sweeps.take_unsent("cpu", 0.5, limit=3)] == sorted([*urgent, later[0]])
    assert [t.id for t in store.sweeps.take_unsent("cpu", 0.5, limit=3)] == later[1:]


def test_many_sweepers_take_each_unsent_job_once(store: JobStore, clock: FakeClock) -> None:
    ids = add(store, 200)
    clock.forward(60)
    taken = together(
        4, lambda _: [*store.sweeps.take_unsent("cpu", 10, limit=70), *store.sweeps.take_unsent("cpu", 10)]
    )
    assert Counter(t.id for routed_jobs in taken for t in routed_jobs) == Counter(ids)


def test_a_message_that_did_not_go_out_is_sent_by_the_next_sweep(store: JobStore) -> None:
    ids = add(store, 2)
    claim(store, ids[1:])
    assert store.sweeps.take_unsent("cpu", 3600) == []
    store.mark_unsent(ids)
    assert [t.id for t in store.sweeps.take_unsent("cpu", 3600)] == ids[:1]


@pytest.mark.parametrize("state", sorted(set(JobState) - {JobState.QUEUED}))
def test_only_queued_jobs_are_sent_again(store: JobStore, state: JobState) -> None:
    id = in_state(store, state)
    store.mark_unsent([id])
    assert (
        store.sweeps.take_unsent("cpu", -10),
        store.queries.queues_with_unsent(-10),
        store.queries.queued([id]),
    ) == ([], [], [])


def test_tickets_of_queued_jobs_say_how_often_they_were_tried(store: JobStore) -> None:
    fresh, tried, running = add(store, 3)
    claim(store, [tried, running])
    store.free_crashed([tried], "w1", "gone")
    assert [(t.id, t.crashes) for t in store.queries.queued([running, tried, fresh])] == [(fresh, 0), (tried, 1)]


# retention


def test_retention_deletes_what_ended_long_ago_and_nothing_else(store: JobStore, clock: FakeClock) -> None:
    old = {state: in_state(store, state) for state in JobState}
    clock.forward(3600)
    fresh = {state: in_state(store, state) for state in FINAL}
    assert store.sweeps.purge(3600) == 0
    clock.forward(1)
    assert store.sweeps.purge(3600) == len(FINAL)
    assert set(store.queries.states([*old.values(), *fresh.values()])) == {
        old[JobState.QUEUED], old[JobState.RUNNING], *fresh.values(),
    }  # fmt: skip


def test_retention_deletes_in_portions(store: JobStore, clock: FakeClock) -> None:
    store.finish(claim(store, add(store, 25)))
    clock.forward(10)
    assert [store.sweeps.purge(1, limit=10, seconds=0) for _ in range(4)] == [10, 10, 5, 0]


def test_one_sweep_deletes_many_portions_and_lets_others_write_between_them(
    store: JobStore, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.finish(claim(store, add(store, 25)))
    clock.forward(10)
    pauses: list[float] = []
    monkeypatch.setattr(sweeps, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    assert store.sweeps.purge(1, limit=10, seconds=60) == 25
    assert len(pauses) == (2 if store.ledger.sqlite else 0)
    assert all(pause > 0 for pause in pauses)


@pytest.mark.slow  # a rate
def test_one_worker_s_sweeps_delete_more_than_two_thousand_jobs_a_second(store: JobStore, clock: FakeClock) -> None:
    per_sweep = int(2000 * Settings.load().sweep_s)
    for _ in range(3 * per_sweep // 2000):
        store.finish(claim(store, add(store, 2000)))
    clock.forward(10)
    deleted = store.sweeps.purge(1)
    print(f"{deleted:,} jobs in one sweep of every {Settings.load().sweep_s:g} s")  # noqa: T201 - a figure to report
    assert deleted >= per_sweep


def test_many_sweepers_purge_each_job_once(store: JobStore, clock: FakeClock) -> None:
    store.finish(claim(store, add(store, 200)))
    clock.forward(10)
    assert sum(together(4, lambda _: store.sweeps.purge(1) + store.sweeps.purge(1))) == 200


def test_a_key_is_free_again_once_its_job_is_purged(store: JobStore, clock: FakeClock) -> None:
    (first,) = add(store, idempotency_key="k", request_hash="h")
    store.finish(claim(store, [first]))
    clock.forward(10)
    store.sweeps.purge(1)
    assert add(store, idempotency_key="k", request_hash="other") != [first]


@pytest.mark.postgres
def test_a_job_retried_while_retention_looks_at_it_is_kept(store: JobStore, clock: FakeClock) -> None:
    if store.ledger.sqlite:
        assert "FOR UPDATE" not in PURGE.sqlite, "one writer at a time: the two cannot overlap"
        return
    id = in_state(store, JobState.FAILED)
    clock.forward(100)
    with store.ledger.write() as connection:  # a retry that has not been committed yet
        connection.execute(text("UPDATE jobs SET state = 'queued', finished_at = NULL WHERE id = :id"), {"id": id})
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(store.sweeps.purge, 1).result(120) == 0
    assert store.queries.get(id).state is JobState.QUEUED


# reading


def test_jobs_are_found_newest_first_and_page_by_page(store: JobStore) -> None:
    ids = add(store, 25)
    pages, before = [], None
    while page := store.queries.find(limit=10, before=before):
        pages.append([job.id for job in page])
        before = page[-1].id
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [id for page in pages for id in page] == ids[::-1]


FILTERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": JobKind.TRAIN}, {"kind": JobKind.TRAIN}),
    ({"model": "minilm"}, {"model": "minilm"}),
    ({"version": 2}, {"version": 2}),
    ({"parent_id": "a" * 32}, {"parent_id": "a" * 32}),
    ({"metadata": {"team": "vision"}}, {"metadata": {"team": "vision", "run": 7}}),
    ({"metadata": {"team": "vision", "run": 7}}, {"metadata": {"team": "vision", "run": 7}}),
    (
        {"model": "minilm", "version": 2, "kind": JobKind.BATCH},
        {"model": "minilm", "version": 2, "kind": JobKind.BATCH},
    ),
]


@pytest.mark.parametrize(("wanted", "fields"), FILTERS)
def test_every_filter_finds_what_meets_it_and_nothing_else(
    store: JobStore, wanted: dict[str, Any], fields: dict[str, Any]
) -> None:
    add(store, 2)
    add(store, 1, metadata={"team": "speech", "run": 8})
    ids = add(store, 2, **fields)
    assert [job.id for job in store.queries.find(**wanted)] == ids[::-1]


def test_jobs_are_found_by_one_or_several_states(store: JobStore) -> None:
    ids = {state: in_state(store, state) for state in JobState}
    for state in JobState:
        assert [job.id for job in store.queries.find(state=[state])] == [ids[state]]
    several = (JobState.FAILED, JobState.CANCELED)
    assert {job.id for job in store.queries.find(state=several)} == {ids[state] for state in several}
    assert len(store.queries.find(state=())) == len(JobState)


VALUES: list[Any] = [None, True, False, 0, 1, 2.5, "", "1", "true", "ä\"'\\", [], [1, "x"], {}, {"b": 1, "a": [None]}]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_metadata_is_met_by_an_equal_value_of_the_same_type(store: JobStore, value: Any) -> None:
    ids = store.add(
        [new(id=id, metadata={"k": v, "other": 1}) for id, v in zip(new_ids(len(VALUES)), VALUES, strict=True)]
    )
    add(store, metadata={"other": value})
    wanted = next(i for i, v in enumerate(VALUES) if v is value)
    assert [job.id for job in store.queries.find(metadata={"k": value})] == [ids[wanted]]


def test_metadata_is_met_by_an_equal_number_and_an_object_in_any_order(store: JobStore) -> None:
    (id,) = add(store, metadata={"n": 2.0, "o": {"a": 1, "b": 2}})
    assert [job.id for job in store.queries.find(metadata={"n": 2, "o": {"b": 2, "a": 1}})] == [id]
    assert store.queries.find(metadata={"o": {"a": 1}}) == []


@pytest.mark.parametrize("key", ["", "a.b", "a b", "a[0]", '"', "'", "\\", "$", "ä", "k%s", ":k", "{ids}", "0"])
def test_metadata_may_have_any_key(store: JobStore, key: str) -> None:
    (id,) = add(store, metadata={key: "v"})
    add(store, metadata={"k": "v", "a": {"b": "v"}})
    assert [job.id for job in store.queries.find(metadata={key: "v"})] == [id]


def test_outcomes_are_those_of_finished_jobs(store: JobStore) -> None:
    ids = {state: in_state(store, state) for state in JobState}
    found = {o.id: o.state for o in store.queries.outcomes([*ids.values(), "0" * 32])}
    assert found == {ids[state]: state for state in FINAL}


def test_states_and_counts_tell_every_job(store: JobStore) -> None:
    ids = {in_state(store, state): state for state in JobState}
    add(store, 3, model="other")
    assert store.queries.states([*ids, "0" * 32]) == ids
    assert store.queries.counts() == dict.fromkeys(JobState, 1) | {JobState.QUEUED: 4}
    assert store.queries.counts(model="other") == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 3}
    assert store.queries.counts(model="none") == dict.fromkeys(JobState, 0)


def test_depths_tell_what_waits_and_runs_by_queue(store: JobStore, clock: FakeClock) -> None:
    add(store, 2)
    clock.forward(5)
    cpu, gpu = add(store, 3), add(store, 1, queue="gpu")
    claim(store, [cpu[0], gpu[0]])
    in_state(store, JobState.SUCCEEDED)
    clock.forward(2)
    assert store.queries.depths() == {"cpu": (4, 7.0, 1), "gpu": (0, None, 1)}


def test_questions_about_no_jobs_have_no_answers(store: JobStore) -> None:
    add(store)
    assert (store.queries.states([]), store.queries.outcomes([]), store.queries.queued([])) == ({}, [], [])
    assert (store.claim([], "w", LEASE), store.finish([]), store.cancel([])) == ([], [], [])
    assert (store.renew([], "w", LEASE), store.release([], "w"), store.free_crashed([], "w", "")) == (
        set(),
        [],
        ([], []),
    )
    assert store.queries.depths().keys() == {"cpu"}


# everything at once


def test_whoever_works_on_the_same_jobs_at_once_neither_blocks_nor_loses_any(store: JobStore) -> None:
    """Claimers, finishers, heartbeats, cancelers and sweepers take the rows in different orders: no deadlock may end them."""
    ids = add(store, 400, max_attempts=50)
    done: Counter[str] = Counter()

    def work(i: int) -> list[Ended]:
        mine, ended = ids[i:] + ids[:i], []
        for round_ in range(6):
            order = mine if round_ % 2 else mine[::-1]
            match i % 4:
                case 0 | 1:
                    outcomes = claim(store, order[: 40 * (i + 2)], f"w{i}")
                    store.renew([o.id for o in outcomes[::-1]], f"w{i}", LEASE)
                    ended += store.finish(outcomes[: len(outcomes) * 2 // 3][::-1])
                    ended += store.free_crashed([o.id for o in outcomes], f"w{i}", "gone")[1]
                case 2:
                    ended += store.cancel(order[round_::60])
                    store.renew(order, "w0", LEASE)
                case 3:
                    store.sweeps.free_lapsed()
                    store.mark_unsent(order)
                    store.sweeps.take_unsent("cpu", 0)
        return ended

    for ended in together(8, work):
        done.update(e.id for e in ended)
    store.finish(rest := claim(store, ids))
    done.update(o.id for o in rest)
    assert done == Counter(ids), "every job ends exactly once"


def test_an_attempt_that_was_lost_to_a_worker_of_the_same_name_gives_back_nothing_of_its(store: JobStore) -> None:
    (id,) = add(store)
    claim(store, [id])
    with store.ledger.write() as connection:
        connection.execute(text("UPDATE jobs SET lease_until = 0"))
    store.sweeps.free_lapsed()
    claim(store, [id])
    assert store.release([id], "w1", {id: 1}) == []
    assert store.queries.get(id).state is JobState.RUNNING
    assert [job.id for job in store.release([id], "w1", {id: 2})] == [id]
