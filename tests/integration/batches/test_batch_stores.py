"""Batches whose files lie elsewhere: input over HTTP, input and output in S3, stores that answer badly or not at all."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import s3fs

from forebay import InvalidInput, JobFailed
from forebay.contract.errors import StoreUnavailable
from forebay.datasets.formats.addresses import allow_hosts
from forebay.producer.handles.kinds import BatchJob
from support.datasets import faults_of, rows_of, vectors, write_parquet
from support.file_server import FileServer
from support.s3 import open_bucket
from support.waiting import wait_until
from support.worker_stack import WorkerStack

SLOW = {"inputs": {"x": {"dtype": "float32", "shape": [4]}}, "outputs": {"y": {"dtype": "float32", "shape": []}}}


@pytest.fixture
def stack(tmp_path: Path, broker: str) -> Iterator[WorkerStack]:
    with closing(
        WorkerStack(tmp_path, broker, STORE_TIMEOUT_S="2s", LEASE_S="600", ALLOWED_HOSTS="127.0.0.1")
    ) as stack:
        yield stack


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FileServer]:
    (tmp_path / "served").mkdir()
    with closing(FileServer(tmp_path / "served")) as server:
        yield server


def succeeded(job: BatchJob) -> None:
    assert job.wait(120), job.info()
    job.result(120)
    assert faults_of(job) == []


def past(stack: WorkerStack, job: BatchJob) -> list[Any]:
    return [
        a for shard in stack.store.queries.find(parent_id=job.id) for a in stack.store.queries.past_attempts(shard.id)
    ]


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_input_is_read_over_http(stack: WorkerStack, server: FileServer, tmp_path: Path, form: str) -> None:
    if form == "parquet":
        model, columns, expected = stack.model("Slowly", max_batch_size=16, **SLOW), "x", [2.0 * i for i in range(300)]
        pq.write_table(vectors(300), server.folder / "a.parquet", row_group_size=100)
    else:
        model = stack.model("Total", max_batch_size=16, inputs={"x": {"dtype": "float32", "shape": [2]}})
        columns, expected = ["a", "b"], [2.0 * i + 1 for i in range(300)]
        rows = "".join(f"{i},{i},{i + 1}\n" for i in range(300))
        (server.folder / "a.csv").write_text(f"id,a,b\n{rows}")
    stack.worker()
    job = stack.client.batch(
        model, f"{server.url}/a.{form}", tmp_path / "out", columns=columns, keep="id", shard_rows=100
    )
    succeeded(job)
    found = rows_of(tmp_path / "out")
    assert [int(row["id"]) for row in found] == list(range(300))
    assert [row.get("y", row.get("total")) for row in found] == expected


def test_a_store_that_answers_badly_for_a_while_postpones_its_shard(
    stack: WorkerStack, server: FileServer, tmp_path: Path
) -> None:
    model = stack.model("Slowly", max_batch_size=16, **SLOW)
    pq.write_table(vectors(60), server.folder / "a.parquet")
    job = stack.client.batch(model, f"{server.url}/a.parquet", tmp_path / "out", columns="x", keep="id")
    server.busy = 2
    stack.worker()
    succeeded(job)
    assert server.busy == 0
    assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(60)]
    told = stack.store.queries.past_attempts(job.id) + past(stack, job)
    assert {a.ended for a in told} == {"postponed"}
    assert all("the store does not answer: ClientResponseError: 503" in a.reason for a in told)


def test_what_a_store_says_at_submit_is_an_error_of_ours(
    stack: WorkerStack, server: FileServer, tmp_path: Path
) -> None:
    model = stack.model("Slowly", max_batch_size=16, **SLOW)
    with pytest.raises(InvalidInput, match="there is no such file or folder"):
        stack.client.batch(model, f"{server.url}/none.parquet", tmp_path / "out")
    pq.write_table(vectors(60), server.folder / "a.parquet")
    server.busy = 100
    with pytest.raises(StoreUnavailable, match=r"a\.parquet'?: the store does not answer: .*503"):
        stack.client.batch(model, f"{server.url}/a.parquet", tmp_path / "out")


def test_a_reader_that_hangs_is_ended_by_the_time_limit_and_makes_no_suspect_of_its_shard(
    stack: WorkerStack, server: FileServer, tmp_path: Path
) -> None:
    wide = SLOW | {"inputs": {"x": {"dtype": "float32", "shape": [64]}}}
    model = stack.model("Slowly", max_batch_size=512, **wide)
    pq.write_table(vectors(200_000, 64), server.folder / "a.parquet", row_group_size=10_000, compression="none")
    worker = stack.worker().ready()
    job = stack.client.batch(
        model, f"{server.url}/a.parquet", tmp_path / "out", columns="x", keep="id", shard_rows=100_000, max_attempts=2
    )
    wait_until(stack.runs, "some rows have run")
    server.stuck.set()
    wait_until(lambda: "child_killed" in worker.said(), "the child was killed")
    wait_until(lambda: past(stack, job), "its shards are free")
    assert all("store_timeout_s of 2 s exceeded: killed by its worker (SIGKILL)" in a.reason for a in past(stack, job))
    claimed = stack.store.queries.queued([shard.id for shard in stack.store.queries.find(parent_id=job.id)])
    assert {routed_job.crashes for routed_job in claimed} <= {0}
    assert job.wait(120)
    error = job.info().error
    assert error is not None
    assert error.type == "ShardsFailed"
    assert "WorkerLost: attempt 2 of 2: store_timeout_s of 2 s exceeded" in error.message


def test_a_store_that_hangs_while_a_batch_is_planned_is_noticed_too(
    stack: WorkerStack, server: FileServer, tmp_path: Path
) -> None:
    model = stack.model("Slowly", max_batch_size=16, **SLOW)
    pq.write_table(vectors(60), server.folder / "a.parquet")
    job = stack.client.batch(model, f"{server.url}/a.parquet", tmp_path / "out", columns="x", keep="id", max_attempts=2)
    server.stuck.set()
    worker = stack.worker()
    wait_until(lambda: "child_killed" in worker.said(), "the child was killed")
    server.stuck.clear()
    succeeded(job)
    assert {a.ended for a in stack.store.queries.past_attempts(job.id)} == {"lost"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with open_bucket(monkeypatch) as bucket:
        yield bucket


def test_input_and_output_lie_in_s3(stack: WorkerStack, bucket: str, tmp_path: Path) -> None:
    store = s3fs.S3FileSystem()
    model = stack.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(200), vectors(100, first=200)])
    store.put(f"{data}/", f"{bucket}/in/", recursive=True)
    worker = stack.worker().ready()
    job = stack.client.batch(model, f"{bucket}/in/*.parquet", f"{bucket}/out", columns="x", keep="id", shard_rows=50)
    wait_until(lambda: len(stack.runs()) > 60, "some rows have run")
    os.kill(worker.children()[0], 9)
    succeeded(job)
    store.invalidate_cache()
    names = sorted(path.removeprefix("bucket/out/") for path in store.find(f"{bucket}/out"))
    parts = [name for name in names if name.startswith("part-")]
    assert [name for name in names if name not in parts] == ["_batch.json", "_manifest.json"]
    found = [row for name in parts for row in pq.read_table(f"bucket/out/{name}", filesystem=store).to_pylist()]
    assert found == [{"id": i, "y": 2.0 * i} for i in range(300)]
    with pytest.raises(InvalidInput, match="holds what batch"):
        stack.client.batch(model, f"{bucket}/in/*.parquet", f"{bucket}/out", columns="x", keep="id", shard_rows=50)


def test_a_redirect_into_a_private_network_is_refused_at_submit_and_by_the_worker(
    stack: WorkerStack, server: FileServer, tmp_path: Path
) -> None:
    port = server.url.rpartition(":")[2]
    (server.folder / "in.csv").write_text("a,b\n1,2\n")
    server.redirects["/moved.csv"] = f"http://localhost:{port}/in.csv"
    model = stack.model("Total", inputs={"x": {"dtype": "float32", "shape": [2]}})
    refusal = r"'localhost' has the address .* which is not public"
    with pytest.raises(InvalidInput, match=refusal):
        stack.client.batch(model, f"{server.url}/moved.csv", tmp_path / "refused", columns=["a", "b"])
    allow_hosts(["127.0.0.1", "localhost"])  # this client's mistake; the worker has its own setting
    job = stack.client.batch(model, f"{server.url}/moved.csv", tmp_path / "out", columns=["a", "b"])
    stack.worker()
    with pytest.raises(JobFailed, match=refusal):
        job.result(120)
