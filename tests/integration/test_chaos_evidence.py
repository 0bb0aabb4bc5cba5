"""What chaos knows after a run: a final state that is written over is seen, on both databases."""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chaos import evidence
from chaos.audit import Entry
from chaos.data import JobSpec, truth, write_rows
from chaos.model import Effect, LoggingModel, Refused, label_of, write_artifact
from chaos.outputs import Output, read_output
from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobError, JobKind, JobState, new_ids
from forebay.contract.settings import Settings
from forebay.contract.wire import codec
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import Finished, NewJob


@pytest.fixture
def payloads(tmp_path):
    settings = Settings.load({}, home=tmp_path)
    return Payloads(BlobStore(settings.blobs), settings)


@pytest.fixture
def watched_store(store):
    evidence.install_write_trigger(store.ledger)
    return store


def add(store, count=1):
    ids = new_ids(count)
    store.add([NewJob(id, JobKind.PREDICT, "chaos", 1, "cpu", max_attempts=2) for id in ids])
    return ids


def test_a_run_is_told_by_the_ledger_its_final_writes_and_the_log(watched_store, payloads, tmp_path):
    good, bad, waiting = add(watched_store, 3)
    watched_store.claim([good, bad], "w", 30)
    watched_store.finish(
        [Finished(good, 1, codec.encode({"job": 1})), Finished(bad, 1, error=JobError("Refused", "no"))]
    )
    log = tmp_path / "executions.log"
    log.write_text("1 0\n2 0\n1 0\n")
    seen = evidence.gather(watched_store.ledger, payloads, log)
    assert seen.ledger == {
        good: Entry(JobState.SUCCEEDED, 1, 0, 2, None, {"job": 1}),
        bad: Entry(JobState.FAILED, 1, 0, 2, "Refused"),
        waiting: Entry(JobState.QUEUED, 0, 0, 2),
    }
    assert seen.final_writes == {good: 1, bad: 1}
    assert seen.executions == {(1, 0): 2, (2, 0): 1}


@pytest.mark.parametrize(
    "change", ["result = NULL", "state = 'failed'", "state = 'queued'", "finished_at = finished_at + 1"]
)
def test_whatever_is_done_to_a_finished_job_is_seen(watched_store, payloads, tmp_path, change):
    [id] = add(watched_store)
    watched_store.claim([id], "w", 30)
    watched_store.finish([Finished(id, 1, codec.encode(1))])
    with watched_store.ledger.write() as connection:
        connection.exec_driver_sql(f"UPDATE jobs SET {change}")  # noqa: S608 - our own text
    assert evidence.gather(watched_store.ledger, payloads, tmp_path / "none").final_writes == {id: 2}


def test_a_write_that_the_fence_refuses_is_none(watched_store, payloads, tmp_path):
    [id] = add(watched_store)
    watched_store.claim([id], "w", 30)
    assert len(watched_store.finish([Finished(id, 1, codec.encode(1))])) == 1
    assert watched_store.finish([Finished(id, 1, codec.encode(2))]) == []
    assert watched_store.cancel([id]) == []
    assert evidence.gather(watched_store.ledger, payloads, tmp_path / "none").final_writes == {id: 1}


def test_a_ledger_in_use_is_refused(store):
    add(store)
    with pytest.raises(InvalidInput, match="holds 1 jobs; give chaos an empty database"):
        evidence.install_write_trigger(store.ledger)


def test_the_trigger_leaves_nothing_behind(watched_store):
    [id] = add(watched_store)
    evidence.remove_write_trigger(watched_store.ledger)
    watched_store.cancel([id])
    assert watched_store.queries.get(id).state is JobState.CANCELED


def test_the_model_notes_what_it_has_run_and_no_row_that_was_to_be_tried_again(tmp_path):
    log = tmp_path / "executions.log"
    model = LoggingModel()
    model.load(write_artifact(tmp_path / "model.json", log, 0.0), "cpu")
    fine, bad = ({"job": n, "row": 0, "effect": effect, "x": 1.5} for n, effect in ((1, Effect.FINE), (2, Effect.FAIL)))
    assert model.predict([fine, fine]) == [{"job": 1, "y": 4.0, "label": "even"}] * 2
    with pytest.raises(Refused, match="job 2 was made to fail"):
        model.predict([fine, bad])
    assert evidence.read_log(log) == Counter({(1, 0): 2})
    with pytest.raises(Refused):
        model.predict([bad])
    assert evidence.read_log(log) == Counter({(1, 0): 2, (2, 0): 1})


def test_an_outcome_that_a_retry_took_back_is_told(watched_store, payloads, tmp_path):
    [id] = add(watched_store)
    watched_store.claim([id], "w", 30)
    watched_store.finish([Finished(id, 1, error=JobError("Refused", "no: not this one"))])
    watched_store.retry(id)
    seen = evidence.gather(watched_store.ledger, payloads, tmp_path / "none")
    assert seen.ledger[id].retried == ((JobState.FAILED, "Refused"),)
    assert seen.final_writes == {id: 2}


ROWS = JobSpec(rows=20, kind=JobKind.BATCH)


@pytest.fixture
def written(tmp_path):
    """The folder of a batch's output as it must be, and its table."""
    write_rows(tmp_path, 7, ROWS)
    y = truth(7, ROWS.rows, ROWS.size)
    table = pa.table({"row": range(20), "job": [7] * 20, "y": list(y), "label": [label_of(row) for row in range(20)]})
    return tmp_path / "out", table


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ([(0, 20)], Output()),
        ([(0, 8), (8, 20)], Output()),
        ([(0, 8), (9, 20)], Output(lost=1)),
        ([(0, 12), (8, 20)], Output(doubled=4)),
    ],
)
def test_rows_that_are_missing_or_there_twice_are_counted(written, parts, found):
    folder, table = written
    folder.mkdir()
    for i, (first, last) in enumerate(parts):
        pq.write_table(table.slice(first, last - first), folder / f"part-{i}.parquet")
    assert read_output(folder, 7, ROWS) == found


def test_a_row_with_the_values_of_another_is_wrong_and_so_is_one_that_failed_without_reason(written):
    folder, table = written
    (folder / "_errors").mkdir(parents=True)
    swapped = table.set_column(2, "y", [[list(y) for y in truth(8, 20, ROWS.size)]])
    pq.write_table(pa.concat_tables([table.slice(0, 19), swapped.slice(19)]), folder / "part-0.parquet")
    assert read_output(folder, 7, ROWS) == Output(wrong=1)
    errors = {"file": ["/in/1.parquet"], "row": [9], "error": ["Refused"], "message": ["no"]}
    pq.write_table(table.slice(0, 19), folder / "part-0.parquet")
    pq.write_table(pa.table(errors), folder / "_errors" / "part-0.parquet")
    assert read_output(folder, 7, ROWS) == Output(wrong=1)
