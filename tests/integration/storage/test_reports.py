"""Reports among many jobs: each answers from an index, on SQLite and PostgreSQL, and the benchmark that asks them runs."""

import pytest
from sqlalchemy import text

from bench.million_jobs import fill
from bench.reports import hot_path, main, reports
from forebay.contract.job import JobKind, JobState
from forebay.storage.jobs.queries import DEPTHS, HAS_METADATA, IS_RARE_KIND, QUEUES_WITH_UNSENT, count_statements
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from support.query_plan import query_plan

JOBS = 3000


def test_every_report_answers_and_none_counts_a_job_twice(ledger: Ledger) -> None:
    store = JobStore(ledger)
    fill(ledger, JOBS)
    for name, report in reports(store).items():
        report()
        assert name
    counts = store.queries.counts()
    assert sum(counts.values()) == JOBS
    with ledger.read() as connection:
        told = connection.execute(text("SELECT state, count(*) FROM jobs GROUP BY state")).fetchall()
        rare = connection.execute(text("SELECT count(*) FROM jobs WHERE metadata <> '{}'")).scalar_one()
    assert {JobState(state): count for state, count in told} == {state: n for state, n in counts.items() if n}
    assert sum(depth for depth, _, _ in store.queries.depths().values()) == counts[JobState.QUEUED]
    assert sum(sum(store.queries.counts(model=f"model-{i:02}").values()) for i in range(20)) <= JOBS
    assert (
        len(store.queries.find(kind=JobKind.BATCH, limit=JOBS))
        + len(store.queries.find(kind=JobKind.TRAIN, limit=JOBS))
        < 30
    )
    assert rare > len(store.queries.find(metadata={"user": "u7"}, limit=JOBS))
    assert all(job.metadata == {"user": "u7"} for job in store.queries.find(metadata={"user": "u7"}))


def test_the_figures_of_the_hot_path_leave_no_job_behind(ledger: Ledger) -> None:
    store = JobStore(ledger)
    assert all(milliseconds > 0 for milliseconds in hot_path(store, 1).values())
    assert sum(store.queries.counts().values()) == 0


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(count_statements("1 = 1")[0], id="counts"),
        pytest.param(count_statements("1 = 1")[1], id="counts of ended"),
        pytest.param(count_statements("+model = 'a'")[1], id="counts of a model"),
        pytest.param(Statement(DEPTHS.sqlite.partition("UNION ALL")[0]), id="depths"),
    ],
)
def test_on_sqlite_no_count_goes_through_the_whole_table(sqlite_ledger: Ledger, statement: Statement) -> None:
    steps = [line for line in query_plan(sqlite_ledger, statement).splitlines() if "jobs" in line]
    assert steps
    assert all("INDEX ix_jobs_" in step for step in steps), steps


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("model = 'a'", "ix_jobs_model"),
        (f"kind = 'train' AND {IS_RARE_KIND}", "ix_jobs_kind"),
        (HAS_METADATA, "ix_jobs_metadata"),
    ],
)
def test_on_sqlite_a_list_is_read_in_the_order_of_its_index(sqlite_ledger: Ledger, where: str, index: str) -> None:
    newest = Statement(f"SELECT id, state FROM jobs WHERE {where} ORDER BY id DESC LIMIT 100")  # noqa: S608
    found = query_plan(sqlite_ledger, newest)
    assert index in found
    assert "TEMP B-TREE" not in found


def test_on_sqlite_waiting_queues_are_found_in_the_index_of_what_waits(sqlite_ledger: Ledger) -> None:
    steps = query_plan(sqlite_ledger, QUEUES_WITH_UNSENT, before=1.0)
    assert steps.count("ix_jobs_queued") == 2


def test_the_benchmark_prints_a_line_for_each_report(sqlite_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([sqlite_database, "--jobs", "500", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    assert all(line.split()[-1] == "ms" for line in lines)
