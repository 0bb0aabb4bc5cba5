"""What the dashboard reads of batches, on SQLite and PostgreSQL: lists, shards in cells and pages, errors by kind."""

import pytest

from forebay.contract.job import JobError, JobState
from forebay.contract.row_errors import ErrorKind, ErrorSample
from forebay.storage.batches import views as batch_views
from forebay.storage.batches.queries import TOTALS
from forebay.storage.batches.views import CELLS, FAILED_ROWS, FAILING, RUNNING, SHARDS, BatchViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from support.batches import ROWS, MadeBatch
from support.query_plan import query_plan

BAD_INPUT = ErrorKind("InvalidInput", 3, (ErrorSample("row 7", "expected float32 of shape [4]"),))
NAN = ErrorKind("ValueError", 1, (ErrorSample("row 9", "row 0: NaN <b>&"),))


def test_a_list_of_batches_tells_outputs_and_rows_that_failed(ledger: Ledger) -> None:
    bad, good = MadeBatch(ledger, 4, output="s3://bucket/a"), MadeBatch(ledger, 2, output="b")
    bad.finish([0, 1], [BAD_INPUT])
    good.finish([0])
    found = BatchViews(ledger).summaries([bad.id, good.id, "0" * 32])
    assert {id: (about.output, about.files, about.failed) for id, about in found.items()} == {
        bad.id: ("s3://bucket/a", 1, 6),
        good.id: ("b", 1, 0),
    }
    assert BatchViews(ledger).summaries([]) == {}


def test_each_shard_is_a_cell_while_there_is_room(ledger: Ledger) -> None:
    batch = MadeBatch(ledger, 6)
    batch.finish([0, 1])
    batch.finish([2], [NAN])
    batch.run([3], 200)
    batch.fail([4], JobError("OSError", "gone"))
    cells = BatchViews(ledger).cells(batch.id)
    assert [(cell.first, cell.last, *cell.states) for cell in cells] == [
        (1, 1, JobState.SUCCEEDED), (2, 2, JobState.SUCCEEDED), (3, 3, JobState.SUCCEEDED), (4, 4, JobState.RUNNING),
        (5, 5, JobState.FAILED), (6, 6, JobState.QUEUED),
    ]  # fmt: skip
    assert [cell.with_errors for cell in cells] == [0, 0, 1, 0, 0, 0]
    assert [cell.id for cell in cells] == batch.shards


@pytest.mark.parametrize(("shards", "most"), [(10, 3), (7, 7), (8, 5), (1, 1)])
def test_many_shards_share_cells_and_none_is_left_out(ledger: Ledger, shards: int, most: int) -> None:
    batch = MadeBatch(ledger, shards)
    batch.finish(range(0, shards, 2))
    cells = BatchViews(ledger).cells(batch.id, most)
    assert len(cells) == most
    assert [cell.first for cell in cells] == [1, *(cell.last + 1 for cell in cells[:-1])]
    assert cells[-1].last == shards
    assert all(sum(cell.states.values()) == cell.count for cell in cells)
    assert max(cell.count for cell in cells) - min(cell.count for cell in cells) <= 1
    assert sum(cell.states.get(JobState.SUCCEEDED, 0) for cell in cells) == (shards + 1) // 2


def test_a_batch_that_was_not_planned_has_neither_cells_nor_shards_nor_errors(ledger: Ledger) -> None:
    views = BatchViews(ledger)
    assert views.cells("0" * 32) == []
    assert views.shards("0" * 32) == batch_views.ShardPage()
    assert views.running("0" * 32) == []
    assert views.errors("0" * 32) == batch_views.BatchErrors()


def test_the_pages_of_shards_lead_there_and_back(ledger: Ledger) -> None:
    batch, views = MadeBatch(ledger, 7), BatchViews(ledger)
    first = views.shards(batch.id, limit=3)
    second = views.shards(batch.id, first.next or "", limit=3)
    third = views.shards(batch.id, second.next or "", limit=3)
    assert [row.id for page in (first, second, third) for row in page.shards] == batch.shards
    assert (first.previous, third.next) == (None, None)
    assert (third.previous, second.previous) == (second.shards[0].part, first.shards[0].part)


def test_what_runs_tells_its_worker_and_how_far_it_is(ledger: Ledger) -> None:
    batch = MadeBatch(ledger, 3)
    batch.run([1], 250, 2, worker="gpu1@atlas")
    [row] = BatchViews(ledger).running(batch.id)
    assert (row.id, row.worker, row.rows, row.done, row.failed) == (batch.shards[1], "gpu1@atlas", ROWS, 250, 2)


def test_errors_are_summed_by_kind_with_samples_of_the_first(ledger: Ledger) -> None:
    batch, other = MadeBatch(ledger, 5), MadeBatch(ledger, 1)
    batch.finish([0, 1], [BAD_INPUT, NAN])
    batch.finish([2], [BAD_INPUT])
    batch.finish([3])
    other.finish([0], [NAN])
    errors = BatchViews(ledger).errors(batch.id)
    assert [(kind.type, kind.count) for kind in errors.rows] == [("InvalidInput", 9), ("ValueError", 2)]
    assert errors.rows[0].samples[0] == BAD_INPUT.samples[0]
    assert errors.rows[1].samples[0].message == "row 0: NaN <b>&"
    assert errors.complete
    assert errors.shards == ()


def test_shards_that_failed_are_told_by_the_type_of_their_error(ledger: Ledger) -> None:
    batch = MadeBatch(ledger, 4)
    batch.fail([0, 1], JobError("OSError", "in/a.parquet is gone"))
    batch.fail([2], JobError("WorkerLost", "signal 9"))
    errors = BatchViews(ledger).errors(batch.id)
    assert [(kind.type, kind.count) for kind in errors.shards] == [("OSError", 2), ("WorkerLost", 1)]
    assert errors.shards[0].samples == (ErrorSample(batch.shards[0], "in/a.parquet is gone"),)


def test_of_very_many_shards_with_errors_it_is_said_that_not_all_were_asked(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = MadeBatch(ledger, 4)
    batch.finish([0, 1, 2], [NAN])
    monkeypatch.setattr(batch_views, "SHARDS_ASKED", 2)
    errors = BatchViews(ledger).errors(batch.id)
    assert ([kind.count for kind in errors.rows], errors.complete) == ([2], False)
    monkeypatch.setattr(batch_views, "SHARDS_ASKED", 3)
    assert BatchViews(ledger).errors(batch.id).complete


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (CELLS, "COVERING INDEX ix_jobs_parent"), (TOTALS, "COVERING INDEX ix_jobs_parent"),
        (SHARDS, "ix_shards_batch"), (RUNNING, "ix_jobs_open_shards"),
        (FAILING, "ix_shards_failed"), (FAILED_ROWS, "COVERING INDEX ix_shards_failed"),
    ],
)  # fmt: skip
def test_on_sqlite_each_goes_by_an_index(sqlite_ledger: Ledger, statement: Statement, index: str) -> None:
    found = query_plan(sqlite_ledger, statement, id="a", cells=3, shards=9, first="", limit=5, ids=["a", "b"])
    assert index in found
    assert "SCAN s" not in found.replace("SCAN shards USING", "")


def test_of_two_shards_that_settle_a_schema_both_get_the_first(ledger: Ledger) -> None:
    batch = MadeBatch(ledger, 1)
    assert batch.store.queries.get(batch.id).part_schema == b""
    assert batch.store.settle_schema(batch.id, b"", b"first") == b"first"
    assert batch.store.settle_schema(batch.id, b"", b"second") == b"first"
