"""Shards with which a process dies: freed at once, run alone, cut until the row that kills stands alone and is written down."""

import gzip
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict
from sqlalchemy import event

from forebay.contract.job import Attempt, JobError, JobInfo, JobKind, JobState, new_ids
from forebay.contract.requests.batch import BatchRequest, InputFile, Piece, Position, Shard
from forebay.producer.handles.kinds import BatchJob
from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.parents import FAIL
from forebay.storage.jobs.records import Ended, NewJob
from forebay.storage.jobs.statements import CANCEL_CHILDREN
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from support.batches import MadeBatch
from support.datasets import ABORTING, ROWS_WITH_BOMB, errors_of, faults_of, rows_of, vectors, write_parquet
from support.ledgers import new_ledger
from support.waiting import wait_until
from support.worker_stack import WorkerStack

SLOW = {"inputs": {"x": {"dtype": "float32", "shape": [4]}}, "outputs": {"y": {"dtype": "float32", "shape": []}}}
NEVER = {"LEASE_S": "600"}  # what is freed is freed by the parent, not by a lease


@pytest.fixture
def patient(tmp_path: Path, broker: str) -> Iterator[WorkerStack]:
    """A stack where no lease lapses while the test waits, without a worker yet."""
    with closing(WorkerStack(tmp_path, broker, **NEVER)) as stack:
        yield stack


def shards(stack: WorkerStack, job: BatchJob) -> list[JobInfo]:
    return stack.store.queries.find(parent_id=job.id, limit=1000)


def past(stack: WorkerStack, job: BatchJob) -> list[Attempt]:
    """Every attempt that was lost."""
    return [a for shard in shards(stack, job) for a in stack.store.queries.past_attempts(shard.id) if a.ended == "lost"]


def test_every_shard_of_a_killed_child_is_free_at_once_and_its_siblings_shards_go_on(
    patient: WorkerStack, tmp_path: Path
) -> None:
    model = patient.model("Slowly", max_batch_size=8, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(1600, first=1)])
    worker = patient.worker(children=2)
    wait_until(lambda: worker.said().count("child_ready") == 2, "both children are ready")
    job = patient.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=100)

    def busy() -> list[str]:
        return [s.id for s in shards(patient, job) if s.state is JobState.RUNNING]

    wait_until(lambda: len(patient.runs()) > 400 and len(busy()) >= 3, "further shards run than were handed out")
    os.kill(worker.children()[0], signal.SIGKILL)
    wait_until(lambda: past(patient, job), "the parent has told of it")
    told = past(patient, job)
    assert all("signal 9 (SIGKILL), child" in a.reason for a in told)
    assert {a.worker for a in told} == {"w1@test"}
    assert job.wait(120), job.info()
    assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(1, 1601)]
    assert faults_of(job) == []
    refused = [
        a for s in shards(patient, job) for a in patient.store.queries.past_attempts(s.id) if a.ended == "refused"
    ]
    assert refused == [], "no shard was taken from the child that lives"
    ran = Counter(patient.runs())
    assert sum(ran.values()) - 1600 <= 100 * len(told), "only shards that the dead child held were run again"


@pytest.mark.parametrize(("form", "poison"), [("parquet", [7, 33]), ("jsonl.gz", [50])])
def test_rows_that_kill_their_process_are_written_down_and_all_others_have_results(
    patient: WorkerStack, tmp_path: Path, form: str, poison: list[int]
) -> None:
    model = patient.model("Poisoned", max_batch_size=16, **SLOW)
    rows = 60
    (patient.folder / "poison").write_text(" ".join(map(str, poison)))
    table = vectors(rows, first=1)
    if form == "parquet":
        data = write_parquet(tmp_path / "in", [table])
    else:  # one shard, which no planner can cut
        data = tmp_path / "in.jsonl.gz"
        data.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()))
    patient.worker().ready()
    job = patient.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=30, max_attempts=3)
    assert job.wait(240), job.info()
    manifest = job.result(120)
    assert (
        asdict(manifest.counts)
        == {"total": rows, "completed": rows - len(poison), "failed": len(poison)}
        == job.progress.request_counts
    )
    good = [i for i in range(1, rows + 1) if i not in poison]
    assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in good]
    errors = errors_of(tmp_path / "out")
    assert {row["error"] for row in errors} == {"WorkerLost"}
    assert all("signal 9 (SIGKILL)" in row["message"] and "a poisonous row" in row["message"] for row in errors)
    if form == "parquet":
        assert [row["row"] for row in errors] == [n - 1 for n in poison]
    assert faults_of(job) == []
    # Each costs two deaths of its shard, of 30 or 60 rows, one of a part of 4 or 8, and two alone; the first may take others.
    assert len([a for a in past(patient, job) if "a poisonous row" in a.reason]) <= len(poison) * (2 + 1 + 2) + 2
    assert max(Counter(patient.runs()).values()) <= 4, "a good row is run again only beside one that kills"


def test_a_row_that_takes_more_memory_to_read_than_there_is_for_it_is_written_down_too(
    tmp_path: Path, broker: str
) -> None:
    data = tmp_path / "in.parquet"
    data.write_bytes(ROWS_WITH_BOMB)
    with closing(WorkerStack(tmp_path, broker, **NEVER, CHILD_MEMORY_BYTES=str(2 << 30))) as stack:
        model = stack.model("Slowly", max_batch_size=16, **SLOW)
        stack.worker().ready()
        job = stack.client.batch(model, data, tmp_path / "out", keep="id", max_attempts=2)
        assert job.wait(240), job.info()
        assert job.result(120).counts.failed == 1
        assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(1, 18) if i != 9]
        [error] = errors_of(tmp_path / "out")
        assert (error["row"], error["error"]) == (8, "WorkerLost")
        assert "in.parquet' takes more memory than a child may have" in error["message"]
        assert faults_of(job) == []


READING_DIES = """
import os
from forebay.datasets.formats.parquet import Parquet

read = Parquet.read

def dies(self, file, first, last, columns):
    for chunk in read(self, file, first, last, columns):
        if 5 in chunk.where:
            os.abort()
        yield chunk

Parquet.read = dies
"""


def test_a_row_whose_reading_ends_the_process_is_written_down_too(
    tmp_path: Path, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(READING_DIES)
    monkeypatch.syspath_prepend(tmp_path / "hook")  # workers inherit it
    data = write_parquet(tmp_path / "in", [vectors(16, first=1)])
    with closing(WorkerStack(tmp_path, broker, **NEVER)) as stack:
        model = stack.model("Slowly", max_batch_size=16, **SLOW)
        stack.worker().ready()
        job = stack.client.batch(model, data, tmp_path / "out", keep="id", max_attempts=2)
        assert job.wait(240), job.info()
        assert job.result(120).counts.failed == 1
        assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(1, 17) if i != 6]
        [error] = errors_of(tmp_path / "out")
        assert (error["row"], error["error"]) == (5, "WorkerLost")
        assert "signal 6 (SIGABRT)" in error["message"]
        assert faults_of(job) == []


def test_a_file_that_ends_its_reader_only_when_a_shard_reads_it_is_named_and_harms_no_other(
    patient: WorkerStack, tmp_path: Path
) -> None:
    model = patient.model("Slowly", max_batch_size=8, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(20, first=1), vectors(10, first=21)])
    patient.worker().ready()
    patient.hold()
    job = patient.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=10)
    patient.wait_until_held()
    assert (len(shards(patient, job)), job.progress.planned) == (3, True)
    sound = (data / "001.parquet").read_bytes()
    (data / "001.parquet").write_bytes(ABORTING)
    patient.go_on()
    assert job.wait(240), job.info()
    error = job.info().error
    assert error is not None
    assert error.type == "ShardsFailed"
    assert "001.parquet' cannot be read as parquet: it ends the process that reads it (SIGABRT)" in error.message
    assert sorted(s.state for s in shards(patient, job)) == [JobState.FAILED, *[JobState.SUCCEEDED] * 2]
    assert len(past(patient, job)) <= 3 * 3, "its ten rows were not tried one by one"
    (data / "001.parquet").write_bytes(sound)
    job.retry()
    assert job.wait(240), job.info()
    assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(1, 31)]
    assert faults_of(job) == []


def test_killing_rows_count_towards_max_errors(patient: WorkerStack, tmp_path: Path) -> None:
    model = patient.model("Poisoned", max_batch_size=16, **SLOW)
    (patient.folder / "poison").write_text("1 2")
    data = write_parquet(tmp_path / "in", [vectors(3, first=1)])
    patient.worker().ready()
    job = patient.client.batch(model, data, tmp_path / "out", keep="id", max_attempts=2, max_errors=1)
    assert job.wait(120), job.info()
    error = job.info().error
    assert error is not None
    assert (error.type, error.message) == ("TooManyErrors", "2 of 3 rows failed; max_errors is 1")


def test_a_cut_shard_and_its_parts_are_suspects_with_all_their_attempts_before_them(ledger: Ledger) -> None:
    store, batches, (batch,) = JobStore(ledger), BatchStore(ledger), new_ids(1)
    store.add([NewJob(batch, JobKind.BATCH, "m", 1, "cpu", max_attempts=2)])
    [claimed] = store.claim([batch], "w", 30)
    batches.start(claimed, BatchRequest((InputFile("a.npy", 1),), "out", "npy", {"x": ("array",)}))
    batches.parents.hand_off(claimed)
    made = batches.plan(batches.queries.get(batch), [Shard((Piece(0, 0, 100),), 100, 800)], Position(1), True)
    assert made is not None
    [shard] = [routed_job.id for routed_job in made]
    store.claim([shard], "w", 30)
    assert [t.crashes for t in store.free_crashed([shard], "w", "signal 9")[0]] == [1]
    [again] = store.claim([shard], "w", 30)
    assert (again.tries, again.crashes) == (2, 1)
    work = batches.queries.shard(again, 30)
    kept, given = Shard((Piece(0, 0, 50),), 50, 400), Shard((Piece(0, 50, 100),), 50, 400)
    routed_jobs = batches.split_suspect(work, kept, [given], batches.queries.get(batch))
    assert routed_jobs is not None
    assert [(t.crashes, t.exclusive) for t in routed_jobs] == [(1, True)]
    assert batches.claim_next(batch, "w", 30) is None, "it travels by its own message"
    assert "attempt 1 of 2: signal 9" in batches.queries.crash_evidence(shard)
    freed, over = store.free_crashed([shard], "w", "signal 9")
    assert ([t.crashes for t in freed], over) == ([2], [])
    assert batches.split_suspect(work, kept, [given], batches.queries.get(batch)) is None, "the lease is lost"
    assert batches.queries.crashes(batches.queries.get(batch)) == (2, 0)
    assert batches.queries.last_crash_evidence(batch) == "signal 9"
    [part] = store.claim([routed_jobs[0].id], "w", 30)
    assert (part.tries, part.crashes, batches.queries.shard(part, 30).pieces) == (1, 1, given.pieces)


def test_a_batch_that_is_woken_leaves_failed_shards_alone_and_one_that_is_retried_revives_them(ledger: Ledger) -> None:
    store, batches, (batch,) = JobStore(ledger), BatchStore(ledger), new_ids(1)
    request = BatchRequest((InputFile("a.npy", 1),), "out", "npy", {"x": ("array",)})
    store.add([NewJob(batch, JobKind.BATCH, "m", 1, "cpu", max_attempts=1)])
    [claimed] = store.claim([batch], "w", 30)
    assert batches.start(claimed, request) == []
    made = batches.plan(batches.queries.get(batch), [Shard((Piece(0, 0, 100),), 100, 800)], Position(1), True)
    assert made is not None
    batches.parents.hand_off(claimed)
    store.claim([made[0].id], "w", 30)
    _, over = store.free_crashed([made[0].id], "w", "signal 9")
    assert [ended.id for ended in over] == [made[0].id], "nobody is left to look after the batch"
    assert [routed_job.id for routed_job in batches.parents.requeue_stalled(-1)] == [batch]
    [woken] = store.claim([batch], "w", 30)
    assert batches.start(woken, request) == []
    batches.parents.fail(batch, woken.attempt, JobError("ShardsFailed", "1 of 1"), 0, 100)
    store.retry(batch)
    [retried] = store.claim([batch], "w", 30)
    assert [routed_job.id for routed_job in batches.start(retried, request)] == [made[0].id]


def test_who_still_looks_at_how_a_batch_was_does_not_end_it_after_a_wake_or_a_retry(ledger: Ledger) -> None:
    made = MadeBatch(ledger, 1)
    batch, error = made.store.queries.get(made.id), JobError("ShardsFailed", "1 of 1")
    made.fail([0], error)
    assert [job.id for job in made.store.parents.requeue_stalled(-1)] == [made.id]
    made.jobs.claim([made.id], "w", 30)
    assert made.store.parents.fail(made.id, batch.attempt, error, 0, 1) == [], "it was woken, and is another's to end"
    assert made.store.complete(batch, b"", None, 1, 1) == []
    woken = made.store.queries.get(made.id)
    assert made.store.parents.fail(made.id, woken.attempt, error, 0, 1)
    made.jobs.retry(made.id)
    made.jobs.claim([made.id], "w", 30)
    assert made.store.parents.fail(made.id, woken.attempt, error, 0, 1) == [], "what failed was the attempt before"
    assert made.store.queries.get(made.id).state is JobState.RUNNING


@pytest.mark.postgres
def test_a_batch_does_not_end_between_a_look_at_it_and_the_shards_that_are_planned_for_it(
    postgres_database: str,
) -> None:
    with new_ledger(postgres_database) as ledger, closing(Ledger(postgres_database)) as another:
        batch = MadeBatch(ledger, 0)
        batches, canceled = batch.store, list[Ended]()

        @event.listens_for(ledger.engine, "before_cursor_execute")
        def _cancel(_: Any, __: Any, statement: str, *___: Any) -> None:
            if "UPDATE jobs SET sent_at" in statement:
                canceled.extend(JobStore(another).cancel([batch.id]))

        planned = batches.plan(batches.queries.get(batch.id), [Shard((Piece(0, 0, 100),), 100, 800)], Position(1), True)
        assert canceled
        assert planned is None
        assert batches.queries.open_shards(batch.id) == (0, 0)


@pytest.mark.parametrize("asked", ["split", "retry_canceled"])
def test_a_batch_that_ends_at_this_moment_gets_no_more_shards(ledger: Ledger, asked: str) -> None:
    """Whoever adds shards waits for whoever is ending the batch, and then adds none."""
    batch = MadeBatch(ledger, 2)
    [(_, work)] = batch.claim([0])
    batch.jobs.cancel([batch.shards[1]])
    kept, given = (Shard((Piece(0, a, b),), 500, 50_000) for a, b in ((0, 500), (500, 1000)))
    known = batch.store.queries.get(batch.id)

    def ask() -> Any:
        if asked == "split":
            return batch.store.split(work, kept, given, known)
        return batch.store.parents.retry_canceled(batch.id)

    with ThreadPoolExecutor(1) as pool:
        with ledger.write() as connection:
            end = {"type": "TooManyErrors", "message": "", "done": 0, "total": 1}
            FAIL.execute(connection, id=batch.id, attempt=known.attempt, now=ledger.now(), **end)
            CANCEL_CHILDREN.execute(connection, ids=[batch.id], now=ledger.now())
            answer = pool.submit(ask)
            wait([answer], 0.3)
            assert not answer.done()
        assert not answer.result(120)
    assert batch.store.queries.open_shards(batch.id) == (0, 1), "none waits, and the one that runs is asked to stop"
