"""What the dashboard asks of the ledger, on SQLite and PostgreSQL: pages under filters, one job's details, sums over time."""

from array import array
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from forebay.contract.errors import JobNotFound, LedgerUnavailable
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.storage.jobs import views as job_views
from forebay.storage.jobs.overview import Overview
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.views import JobFilter, JobViews
from forebay.storage.ledger.connection import Ledger
from support.jobs import add, claim, failure, in_state
from support.waiting import FakeClock


@pytest.fixture
def views(ledger: Ledger) -> JobViews:
    return JobViews(ledger)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that a handful of jobs outgrows."""
    monkeypatch.setattr(job_views, "WINDOW", 2)
    monkeypatch.setattr(job_views, "LARGEST_WINDOW", 4)
    monkeypatch.setattr(job_views, "FEW", 3)


def pages(views: JobViews, wanted: JobFilter, limit: int = 3, **more: Any) -> Iterator[list[str]]:
    """The ids of every page, first to last."""
    before = None
    for _ in range(100):
        page = views.page(wanted, limit=limit, before=before, **more)
        yield [job.id for job in page.jobs]
        before = page.next
        if before is None:
            return
    pytest.fail("the pages do not end")


def found(views: JobViews, **wanted: Any) -> list[str]:
    return [id for page in pages(views, JobFilter(**wanted)) for id in page]


def test_every_state_is_found_by_its_filter(store: JobStore, views: JobViews, small_windows: None) -> None:
    ids = {state: [in_state(store, state) for _ in range(5)] for state in JobState}
    for state, expected in ids.items():
        assert found(views, state=state) == sorted(expected, reverse=True), state
    assert found(views) == sorted((id for group in ids.values() for id in group), reverse=True)


def test_each_filter_keeps_what_it_names(store: JobStore, views: JobViews, small_windows: None) -> None:
    first = add(store, 2, model="digits", version=1, queue="cpu", metadata={"user": "ada", "n": 1})
    second = add(store, 2, model="words", version=2, queue="gpu", metadata={"user": "<script>"})
    store.finish(claim(store, first, worker="w1"))
    claim(store, second, worker="w2")
    (child,) = add(store, 1, kind=JobKind.SHARD, parent_id=first[0])
    newest_first = [second[1], second[0]]
    assert found(views, model="words") == newest_first
    assert found(views, model="words", version=1) == []
    assert found(views, queue="gpu") == newest_first
    assert found(views, worker="w2") == newest_first
    assert found(views, metadata={"user": "<script>"}) == newest_first
    assert found(views, metadata={"n": 1, "user": "ada"}) == [first[1], first[0]]
    assert found(views, metadata={"n": "1"}) == []
    assert found(views, kind=JobKind.SHARD) == [child]
    assert found(views, parent_id=first[0]) == [child]
    assert found(views, id_prefix=second[0]) == [second[0]]
    assert found(views, id_prefix=second[0][:8], state=JobState.RUNNING, worker="w2") == newest_first


def test_a_time_range_goes_by_the_ledgers_clock(store: JobStore, views: JobViews) -> None:
    early, late = add(store), add(store)
    with store.ledger.write() as connection:  # a client's clock, and so its ids, may differ from the ledger's
        for (id,), at in ((early, -600), (late, 600)):
            moved = {"id": id, "at": at}
            connection.execute(text("UPDATE jobs SET created_at = created_at + :at WHERE id = :id"), moved)
    now = store.ledger.now()
    assert found(views, since=now) == late
    assert found(views, until=now) == early
    assert found(views, since=now - 700, until=now + 700) == [*late, *early]
    assert found(views, since=now + 700) == []


def test_a_page_that_runs_out_of_time_says_how_far_it_has_looked(
    store: JobStore, views: JobViews, small_windows: None
) -> None:
    (wanted,) = add(store, queue="rare")
    add(store, 20)
    page = views.page(JobFilter(queue="rare"), limit=5, budget_s=0)
    assert page.jobs == []
    assert page.next is not None
    assert page.searched_to is not None
    assert [id for ids in pages(views, JobFilter(queue="rare"), budget_s=0) for id in ids] == [wanted]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 7), window=st.integers(1, 9), state=st.sampled_from([None, *JobState]))
def test_pages_neither_lose_nor_repeat_a_job(
    store: JobStore, views: JobViews, monkeypatch: pytest.MonkeyPatch, limit: int, window: int, state: JobState | None
) -> None:
    monkeypatch.setattr(job_views, "WINDOW", window)
    if not store.queries.find(limit=1):
        for each in (*JobState, *JobState):
            in_state(store, each)
    expected = [job.id for job in store.queries.find(state=[state] if state else (), limit=1000)]
    assert [id for ids in pages(views, JobFilter(state=state), limit) for id in ids] == expected


def test_counting_stops_at_the_limit(store: JobStore, views: JobViews) -> None:
    add(store, 5)
    assert views.count_up_to(JobState.QUEUED, 10) == 5
    assert views.count_up_to(JobState.QUEUED, 3) == 3
    assert views.count_up_to(JobState.FAILED, 3) == 0


def test_details_hold_small_payloads_and_the_sizes_of_all(store: JobStore, views: JobViews) -> None:
    (id,) = add(store, input=b"x" * 100, metadata={"a": [1]}, client="c1", idempotency_key="k")
    store.finish(claim(store, [id]))
    details = views.details(id, payload_limit=50)
    assert (details.input, details.input_size) == (None, 100)
    assert (details.result, details.result_size) == (b"out", 3)
    assert (details.attempts, details.client, details.idempotency_key) == (1, "c1", "k")
    assert details.info == store.queries.get(id)
    assert views.details(id).input == b"x" * 100
    with pytest.raises(JobNotFound, match="no job has the id"):
        views.details(new_ids(1)[0])


def test_details_of_a_batch_count_its_shards_by_state(store: JobStore, views: JobViews) -> None:
    (parent,) = add(store, kind=JobKind.BATCH)
    shards = add(store, 3, kind=JobKind.SHARD, parent_id=parent)
    store.finish(claim(store, shards[:2]))
    assert views.details(parent).children == {JobState.SUCCEEDED: 2, JobState.QUEUED: 1}


def test_a_stretch_counts_what_ended_in_it_and_how_long_it_took(
    store: JobStore, ledger: Ledger, clock: FakeClock
) -> None:
    start = clock.now
    ids = add(store, 4)
    clock.forward(2)
    outcomes = claim(store, ids)
    clock.forward(3)
    store.finish([*outcomes[:2], failure(outcomes[2])])
    clock.forward(5)
    store.finish(outcomes[3:])
    stretch = Overview(ledger).bucket(start, start + 6)
    assert {(e.state, e.model, e.version, e.queue): e.count for e in stretch.ended} == {
        (JobState.SUCCEEDED, "digits", 1, "cpu"): 2,
        (JobState.FAILED, "digits", 1, "cpu"): 1,
    }
    assert stretch.times == {JobKind.PREDICT: array("d", (2.0, 3.0) * 3)}
    assert Overview(ledger).bucket(start, start + 6, sample=2).times == {JobKind.PREDICT: array("d", (2.0, 3.0) * 2)}
    assert Overview(ledger).bucket(start + 6, start + 60).times == {JobKind.PREDICT: array("d", (2.0, 8.0))}
    assert Overview(ledger).bucket(start - 60, start).ended == ()


def test_now_tells_what_waits_how_long_and_who_runs_what(store: JobStore, ledger: Ledger, clock: FakeClock) -> None:
    waiting = add(store, 2)
    clock.forward(30)
    add(store, 1, queue="gpu", model="words")
    running = add(store, 3, queue="gpu", model="words")
    claim(store, running[:2], "w1")
    claim(store, running[2:], "w2")
    now = Overview(ledger).load()
    assert [(q.queue, q.waiting, q.oldest_age_s, q.running) for q in now.queues] == [
        ("cpu", 2, 30.0, 0),
        ("gpu", 1, 0.0, 3),
    ]
    assert now.running_by_worker == {"w1": 2, "w2": 1}
    assert (now.waiting, now.running) == (3, 3)
    assert Overview(ledger).running_by_model() == {("words", 1): 3}
    store.cancel(waiting)
    assert Overview(ledger).load().queues[0].queue == "gpu"


def test_an_empty_ledger_has_nothing_to_tell(ledger: Ledger) -> None:
    overview = Overview(ledger)
    assert overview.load().queues == ()
    assert overview.ceilings() == {}
    assert overview.bucket(0, 1e10).ended == ()


SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) SELECT count(*) FROM n"


def test_a_question_that_takes_too_long_is_given_up_and_the_next_is_answered(ledger: Ledger) -> None:
    onlooker = Ledger(ledger.url, statement_limit_s=0.2)
    try:
        with pytest.raises(LedgerUnavailable, match="took too long"), onlooker.read() as connection:
            connection.execute(text(SLOW))
        onlooker.ping()
    finally:
        onlooker.close()
