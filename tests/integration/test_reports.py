"""Reports among many jobs: each answers from an index, on SQLite and PostgreSQL, and the benchmark that asks them runs."""

import pytest
from sqlalchemy import text

from bench.million_jobs import fill
from bench.reports import hot_path, main, reports
from forebay.contract.job import JobKind, JobState
from forebay.storage.jobs.queries import COUNTS, COUNTS_ENDED, DEPTHS, FEW_KINDS, HAS_METADATA, QUEUES_WAITING
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger

JOBS = 3000


def plan(ledger: Ledger, statement: str, **values: object) -> str:
    """How the database will go about it."""
    with ledger.read() as connection:
        explain = "EXPLAIN QUERY PLAN " if ledger.sqlite else "EXPLAIN "
        return "\n".join(str(row[-1]) for row in connection.execute(text(explain + statement), values))


def test_every_report_answers_and_none_counts_a_job_twice(ledger: Ledger) -> None:
    store = JobStore(ledger)
    fill(ledger, JOBS)
    for name, report in reports(store).items():
        report()
        assert name
    counts = store.counts()
    assert sum(counts.values()) == JOBS
    with ledger.read() as connection:
        told = connection.execute(text("SELECT state, count(*) FROM jobs GROUP BY state")).fetchall()
        rare = connection.execute(text("SELECT count(*) FROM jobs WHERE metadata <> '{}'")).scalar_one()
    assert {JobState(state): count for state, count in told} == {state: n for state, n in counts.items() if n}
    assert sum(depth for depth, _, _ in store.depths().values()) == counts[JobState.QUEUED]
    assert sum(sum(store.counts(model=f"model-{i:02}").values()) for i in range(20)) <= JOBS
    assert len(store.find(kind=JobKind.BATCH, limit=JOBS)) + len(store.find(kind=JobKind.TRAIN, limit=JOBS)) < 30
    assert rare > len(store.find(metadata={"user": "u7"}, limit=JOBS))
    assert all(job.metadata == {"user": "u7"} for job in store.find(metadata={"user": "u7"}))


def test_the_figures_of_the_hot_path_leave_no_job_behind(ledger: Ledger) -> None:
    store = JobStore(ledger)
    assert all(milliseconds > 0 for milliseconds in hot_path(store, 1).values())
    assert sum(store.counts().values()) == 0


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(COUNTS.format(where="1 = 1"), id="counts"),
        pytest.param(COUNTS_ENDED.format(where="1 = 1"), id="counts of ended"),
        pytest.param(COUNTS_ENDED.format(where="+model = 'a'"), id="counts of a model"),
        pytest.param(DEPTHS.partition(" UNION ALL")[0], id="depths"),
    ],
)
def test_on_sqlite_no_count_goes_through_the_whole_table(sqlite_ledger: Ledger, statement: str) -> None:
    steps = [line for line in plan(sqlite_ledger, statement).splitlines() if "jobs" in line]
    assert steps
    assert all("INDEX ix_jobs_" in step for step in steps), steps


@pytest.mark.parametrize(
    ("where", "index"),
    [
        ("model = 'a'", "ix_jobs_model"),
        (f"kind = 'train' AND {FEW_KINDS}", "ix_jobs_kind"),
        (HAS_METADATA, "ix_jobs_metadata"),
    ],
)
def test_on_sqlite_a_list_is_read_in_the_order_of_its_index(sqlite_ledger: Ledger, where: str, index: str) -> None:
    found = plan(sqlite_ledger, f"SELECT id, state FROM jobs WHERE {where} ORDER BY id DESC LIMIT 100")  # noqa: S608
    assert index in found
    assert "TEMP B-TREE" not in found


def test_on_sqlite_waiting_queues_are_found_in_the_index_of_what_waits(sqlite_ledger: Ledger) -> None:
    steps = plan(sqlite_ledger, QUEUES_WAITING, before=1.0)
    assert steps.count("ix_jobs_queued") == 2


def test_the_benchmark_prints_a_line_for_each_report(sqlite_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([sqlite_database, "--jobs", "500", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 30
    assert all(line.split()[-1] == "ms" for line in lines)
