"""Which jobs are next in line, on SQLite and PostgreSQL."""

from typing import Any

from forebay.contract.job import JobKind, new_ids
from forebay.storage.jobs.line import IN_LINE, LOOK_AT, next_of_version
from forebay.storage.jobs.records import NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from support.query_plan import query_plan
from support.waiting import FakeClock


def add(ledger: Ledger, count: int = 1, **more: Any) -> list[str]:
    given: dict[str, Any] = {
        "kind": JobKind.PREDICT,
        "model": "m",
        "version": 1,
        "queue": "gpu",
        "rows": 1,
        "input": b"",
    } | more
    return JobStore(ledger).add([NewJob(id, **given) for id in new_ids(count)])


def test_those_stand_first_that_are_more_urgent_and_then_older_whatever_their_queue(
    ledger: Ledger, clock: FakeClock
) -> None:
    second, first = add(ledger, 2), add(ledger, 2, priority=0, queue="cpu")
    expired = add(ledger, deadline_at=clock() - 1, model="other")
    third = add(ledger, 2)
    assert expired
    assert next_of_version(ledger, ["gpu", "cpu"], "m", 1, 10) == [*first, *second, *third]
    assert next_of_version(ledger, ["gpu", "cpu"], "m", 1, 3) == [*first, second[0]]
    assert next_of_version(ledger, ["gpu"], "m", 1, 10) == [*second, *third]
    assert next_of_version(ledger, ["gpu", "cpu"], "m", 2, 10) == []


def test_none_is_named_that_stands_behind_a_job_that_does_not_join(ledger: Ledger) -> None:
    for other in ({"model": "n"}, {"version": 2}, {"kind": JobKind.EXPLAIN}, {"input": None, "input_ref": "blob"}):
        queue = f"q{len(other)}{next(iter(other))}"
        early = add(ledger, 2, queue=queue)
        add(ledger, queue=queue, **other)
        add(ledger, 2, queue=queue)
        assert next_of_version(ledger, [queue], "m", 1, 10) == early


def test_a_long_line_costs_a_bounded_look(sqlite_ledger: Ledger) -> None:
    plan = query_plan(sqlite_ledger, IN_LINE, queue="gpu", look_at=LOOK_AT, now=0.0)
    assert "ix_jobs_queued (queue=?)" in plan
    assert plan.count("TEMP B-TREE") <= 1  # of the few that were looked at
