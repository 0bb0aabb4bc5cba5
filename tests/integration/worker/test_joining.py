"""Jobs that join others of their version while these generate text: which may, and what becomes of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from integration.worker.test_generating import Generating
from sqlalchemy import text

from forebay.contract.errors import LedgerUnavailable
from forebay.storage.ledger.connection import Ledger
from forebay.worker.kinds import joining, predict, row_jobs
from support.waiting import FakeClock


@pytest.fixture
def ledger(sqlite_ledger: Ledger) -> Ledger:
    """What the statements do on PostgreSQL, the line's own test says."""
    return sqlite_ledger


@pytest.fixture
def bench(ledger: Ledger, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generating:
    monkeypatch.setattr(row_jobs, "CANCEL_CHECK_S", 0.0)
    monkeypatch.setattr(predict, "COMMIT_EVERY_S", 0.0)
    monkeypatch.setattr(joining, "LOOK_EVERY_S", 0.0)
    bench = Generating(ledger, tmp_path)
    bench.joins = True
    return bench


def run(bench: Generating, ids: list[str], acts: dict[int, Callable[[], Any]]) -> list[Any]:
    """What each act gives, called after the token of that number."""
    seen: list[Any] = []

    def after(token: int) -> None:
        if token in acts:
            bench.handler._writer.submit(lambda: None).result()  # what was to be written before is written
            seen.append(acts[token]())

    bench.after = after
    bench.runner.run(ids)
    return seen


def held(bench: Generating) -> set[str]:
    return set(bench.context.page.held())


def test_a_job_that_comes_while_others_run_joins_them_and_ends_before_they_do(bench: Generating) -> None:
    long = bench.add(30)
    _, before, after = run(
        bench, long, {2: lambda: long.extend(bench.add(3)), 4: lambda: held(bench), 8: lambda: bench.states(long)}
    )
    assert before == {long[1]}  # so that its lease is renewed, and that it is settled if this process dies
    assert after == "rs"
    assert bench.states(long) == "ss"
    assert bench.info(long[1]).attempt == 1
    assert held(bench) == set()
    assert bench.ran == [1] * 2 + [2] * 3 + [1] * 25


def test_a_job_that_joined_is_canceled_and_another_expires(bench: Generating, clock: FakeClock) -> None:
    ids = bench.add(20)
    run(
        bench, ids[:1],
        {
            2: lambda: ids.extend([*bench.add(50), *bench.add(50, deadline_at=clock() + 5)]),
            4: lambda: bench.store.cancel(ids[1:2]),
            6: lambda: clock.forward(6),
        },
    )  # fmt: skip
    assert bench.states(ids) == "sce"
    assert bench.ran == [1] * 2 + [3] * 2 + [2] * 2 + [1] * 14
    assert held(bench) == set()


def test_a_job_that_joined_goes_back_when_this_process_has_to_stop(bench: Generating) -> None:
    ids = bench.add(20)
    run(bench, ids[:1], {2: lambda: ids.extend(bench.add(50)), 4: bench.context.page.stop})
    assert bench.states(ids) == "qq"
    assert {bench.info(id).attempt for id in ids} == {0}
    assert held(bench) == set()


@pytest.mark.parametrize("other", [{"model": "other"}, {"version": 2}, {"priority": 0}])
def test_none_joins_that_came_after_a_job_that_cannot(bench: Generating, other: dict[str, Any]) -> None:
    ids = bench.add(9)

    def submit() -> None:
        early = 9 if "priority" in other else 3
        ids.extend([*bench.add(3, priority=early), *bench.add(3, **{"model": "other", "priority": 3} | other)])
        ids.extend(bench.add(3, priority=early))

    run(bench, ids[:1], {2: submit})
    assert bench.states(ids) == ("sqqq" if "priority" in other else "ssqq")


def test_a_job_that_may_kill_and_one_with_a_large_input_do_not_join(bench: Generating) -> None:
    ids = bench.add(9)

    def submit() -> None:
        ids.extend(bench.add(3))
        with bench.store.ledger.write() as connection:
            connection.execute(text("UPDATE jobs SET crashes = 1 WHERE id = :id"), {"id": ids[1]})

    run(bench, ids[:1], {2: submit, 5: lambda: None})
    assert bench.states(ids) == "sq"
    ids = bench.add(9)
    with bench.store.ledger.write() as connection:
        connection.execute(text("DELETE FROM jobs WHERE state = 'queued' AND crashes = 1"))
        connection.execute(text("UPDATE jobs SET crashes = 1 WHERE id = :id"), {"id": ids[0]})
    run(bench, ids[:1], {2: lambda: ids.extend(bench.add(3))})
    assert bench.states(ids) == "sq"  # nor does any join one that may kill


def test_a_stream_of_jobs_of_one_version_ends_after_so_many(bench: Generating, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MOST", 5)
    ids = bench.add(3)
    more = range(1, 40)
    run(bench, ids[:1], dict.fromkeys(more, lambda: ids.extend(bench.add(3))))
    assert bench.states(ids).startswith("s" * 6 + "q")
    monkeypatch.setattr(joining, "LONGEST_S", 0.0)
    ids = bench.add(3)
    run(bench, ids[:1], {1: lambda: ids.extend(bench.add(3))})
    assert bench.states(ids) == "sq"


def test_what_runs_goes_on_while_the_ledger_cannot_say_what_waits(
    bench: Generating, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = bench.add(5)

    def away(*_: Any) -> list[str]:
        raise LedgerUnavailable("away")

    monkeypatch.setattr(joining, "next_of_version", away)
    run(bench, ids[:1], {1: lambda: ids.extend(bench.add(3))})
    assert bench.states(ids) == "sq"


def test_a_job_that_joined_and_has_a_large_result_is_held_until_it_is_stored(
    bench: Generating, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ended", lambda row: "x" * 1000 if row < 9 else row, raising=False)
    ids = bench.add(9)
    run(bench, ids[:1], {1: lambda: ids.extend(bench.add(3))})
    assert bench.states(ids) == "ss"
    assert held(bench) == set()
