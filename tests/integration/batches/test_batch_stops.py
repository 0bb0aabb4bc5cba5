"""Batches that are canceled, given back, postponed or timed out: shards end as other jobs do, and no row is lost by it."""

from contextlib import closing
from pathlib import Path

import pytest

from forebay.contract.errors import QueueFull
from forebay.contract.job import JobError, JobInfo, JobKind, JobState, new_ids
from forebay.producer.handles.kinds import BatchJob
from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.overview import Overview
from forebay.storage.jobs.records import ClaimedJob, Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from support.datasets import faults_of, rows_of, vectors, write_parquet
from support.waiting import wait_until
from support.worker_stack import WorkerStack

SLOW = {"inputs": {"x": {"dtype": "float32", "shape": [4]}}, "outputs": {"y": {"dtype": "float32", "shape": []}}}


def whole(job: BatchJob, folder: Path, rows: int) -> None:
    """The batch has succeeded, with each row once."""
    assert job.wait(120), job.info()
    job.result(120)
    assert rows_of(folder) == [{"id": i, "y": 2.0 * i} for i in range(rows)]
    assert faults_of(job) == []


def shards(stack: WorkerStack, job: BatchJob) -> list[JobInfo]:
    return stack.store.queries.find(parent_id=job.id)


def test_a_worker_that_is_told_to_stop_gives_its_shard_back_uncounted_and_another_does_it(
    own: WorkerStack, tmp_path: Path
) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(1000)])
    worker = own.worker("w1").ready()
    job = own.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=1000)
    wait_until(lambda: len(own.runs()) > 50, "some rows have run")
    assert worker.terminate() == 0
    assert "jobs_released" in worker.said()
    assert job.state is JobState.RUNNING
    assert {(s.state, s.attempt, s.worker) for s in shards(own, job)} == {(JobState.QUEUED, 0, None)}
    own.worker("w2")
    whole(job, tmp_path / "out", 1000)
    assert [s.attempt for s in shards(own, job)][-1] == 1, "the attempt that was given back does not count"


def test_an_operator_cancels_a_running_batch_and_its_shards_stop(own: WorkerStack, tmp_path: Path) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(1500)])
    own.worker().ready()
    job = own.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=500)
    wait_until(lambda: len(own.runs()) > 50, "some rows have run")
    assert [ended.id for ended in own.store.cancel([job.id])] == [job.id]
    assert job.state is JobState.CANCELED
    wait_until(lambda: all(s.state.final for s in shards(own, job)), "its shards have stopped")
    assert {s.state for s in shards(own, job)} <= {JobState.CANCELED, JobState.SUCCEEDED}
    whole(job.retry(), tmp_path / "out", 1500)


def test_a_shard_that_meets_a_transient_error_waits_and_runs_again(own: WorkerStack, tmp_path: Path) -> None:
    model = own.model("Unsteady", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(50)])
    (own.folder / "away").touch()
    own.worker().ready()
    job = own.client.batch(model, data, tmp_path / "out", keep="id")
    wait_until(lambda: any(own.store.queries.past_attempts(s.id) for s in shards(own, job)), "a shard was postponed")
    [shard] = shards(own, job)
    told = own.store.queries.past_attempts(shard.id)[0]
    assert (told.ended, told.reason) == ("postponed", "Transient: the feature store answers 503")
    (own.folder / "away").unlink()
    whole(job, tmp_path / "out", 50)
    assert job.progress.request_counts["failed"] == 0


def test_a_shard_whose_model_hangs_is_ended_by_the_time_limit_and_runs_alone_afterwards(
    own: WorkerStack, tmp_path: Path
) -> None:
    model = own.model("Unsteady", max_batch_size=16, timeout_s=1.0, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(50)])
    worker = own.worker().ready()
    (own.folder / "stuck").touch()
    job = own.client.batch(model, data, tmp_path / "out", keep="id")
    wait_until(lambda: "child_killed" in worker.said(), "the child was killed")
    (own.folder / "stuck").unlink()
    whole(job, tmp_path / "out", 50)
    past = [attempt for s in shards(own, job) for attempt in own.store.queries.past_attempts(s.id)]
    assert {attempt.ended for attempt in past} == {"lost"}


def test_a_full_queue_refuses_a_batch_and_leaves_the_output_free(tmp_path: Path, broker: str) -> None:
    queues = '{"cpu": {"max_queue_size": 1}}'
    with closing(WorkerStack(tmp_path, broker, QUEUES=queues)) as stack:
        model = stack.model("Slowly", max_batch_size=16, **SLOW)
        data = write_parquet(tmp_path / "in", [vectors(200)])
        first = stack.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=20)
        with pytest.raises(QueueFull):
            stack.client.batch(model, data, tmp_path / "other", keep="id")
        stack.worker()
        whole(first, tmp_path / "out", 200)  # its shards are more than one, and none was refused
        assert len(shards(stack, first)) == 10
        whole(stack.client.batch(model, data, tmp_path / "other", keep="id"), tmp_path / "other", 200)


def test_a_batch_that_runs_without_a_worker_is_no_running_job_of_its_queue(ledger: Ledger) -> None:
    store, (batch, shard) = JobStore(ledger), new_ids(2)
    store.add(
        [NewJob(batch, JobKind.BATCH, "m", 1, "cpu"), NewJob(shard, JobKind.SHARD, "m", 1, "cpu", parent_id=batch)]
    )
    [claimed, _] = store.claim([batch, shard], "w", 30)
    assert store.queries.depths()["cpu"] == (0, None, 2)
    BatchStore(ledger).parents.hand_off(claimed)
    assert store.queries.depths()["cpu"] == (0, None, 1)
    now = Overview(ledger).load()
    assert (now.running, now.running_by_worker) == (1, {"w": 1})
    assert Overview(ledger).running_by_model() == {("m", 1): 1}
    assert store.sweeps.free_lapsed() == ([], [])


@pytest.fixture
def failed(ledger: Ledger) -> tuple[JobStore, str, str]:
    """A failed batch with a failed shard, as the ledger has them; their ids."""
    store, (batch, shard) = JobStore(ledger), new_ids(2)
    store.add(
        [NewJob(batch, JobKind.BATCH, "m", 1, "cpu"), NewJob(shard, JobKind.SHARD, "m", 1, "cpu", parent_id=batch)]
    )
    claimed: list[ClaimedJob] = store.claim([batch, shard], "w", 30)
    store.finish([Finished(job.id, job.attempt, error=JobError("ValueError", "no")) for job in claimed])
    return store, batch, shard


def test_retrying_all_that_failed_takes_batches_and_leaves_their_shards_to_them(
    failed: tuple[JobStore, str, str],
) -> None:
    store, batch, shard = failed
    assert store.queries.count_failed() == 1
    routed_jobs, after = store.retry_failed()
    assert [(t.id, bool(t.exclusive)) for t in routed_jobs] == [(batch, True)]
    assert after is None
    assert store.queries.states([batch, shard]) == {batch: JobState.QUEUED, shard: JobState.FAILED}


def test_retention_keeps_what_a_batch_has_made_as_long_as_the_batch(failed: tuple[JobStore, str, str]) -> None:
    store, batch, shard = failed
    store.retry(batch)
    assert store.sweeps.purge(-1) == 0
    store.cancel([batch])
    assert [store.sweeps.purge(-1), store.sweeps.purge(-1), store.sweeps.purge(-1)] == [1, 1, 0]
    assert store.queries.states([batch, shard]) == {}
