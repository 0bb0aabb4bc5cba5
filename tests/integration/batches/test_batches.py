"""Batch jobs on a real worker: a data set in, a data set out, whatever is wrong with rows, files or the worker."""

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from msgspec.structs import asdict
from sqlalchemy import text

from forebay import InvalidInput, JobCanceled, JobFailed
from forebay.contract.job import JobState
from forebay.contract.row_errors import ErrorKind, ErrorSample
from forebay.contract.signature import Signature
from forebay.datasets.planning.schema import dump_schema, part_schema
from forebay.producer.handles.kinds import BatchJob
from forebay.producer.requests.audit import audit
from forebay.storage.batches.views import BatchViews
from support.datasets import errors_of, faults_of, rows_of, vectors, write_parquet
from support.waiting import wait_until
from support.worker_stack import Worker, WorkerStack

SLOW = {"inputs": {"x": {"dtype": "float32", "shape": [4]}}, "outputs": {"y": {"dtype": "float32", "shape": []}}}


@pytest.fixture(scope="module")
def stack(open_stack: Callable[..., WorkerStack]) -> WorkerStack:
    """One worker for all tests that do not harm it, with a network of its own."""
    stack = open_stack()
    stack.worker()
    program = torch.export.export(net(), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, stack.folder / "net.pt2")
    stack.client.models.register("net", stack.folder / "net.pt2", max_batch_size=64)
    return stack


def net() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()


def direct(x: Any) -> Any:
    """The network without Forebay."""
    with torch.inference_mode():
        return net()(torch.from_numpy(np.asarray(x, np.float32))).numpy()


def succeeded(job: BatchJob) -> Any:
    """The manifest, after the audit has found nothing."""
    assert job.wait(120), job.info()
    manifest = job.result(120)
    assert faults_of(job) == []
    return manifest


def test_parquet_in_parquet_out_in_order_and_equal_to_a_direct_forward(stack: WorkerStack, tmp_path: Path) -> None:
    tables = [vectors(250, first=0), vectors(1), vectors(333, first=1000)]
    data = write_parquet(tmp_path / "in", tables)
    job = stack.client.batch("net", f"{data}/*.parquet", tmp_path / "out", columns="x", keep="id", shard_rows=120)
    manifest = succeeded(job)
    table = pa.concat_tables(tables)
    found = rows_of(tmp_path / "out")
    assert [row["id"] for row in found] == table["id"].to_pylist()
    np.testing.assert_allclose([row["output"] for row in found], direct(table["x"].to_pylist()), rtol=1e-4, atol=1e-4)
    assert asdict(manifest.counts) == {"total": 584, "completed": 584, "failed": 0} == job.progress.request_counts
    assert len(manifest.parts) > 4
    assert pq.read_schema(tmp_path / "out" / manifest.parts[0].name).field("output").type == pa.list_(pa.float32(), 3)


def test_pandas_and_duckdb_read_the_output(stack: WorkerStack, tmp_path: Path) -> None:
    import duckdb
    import pandas as pd

    data = write_parquet(tmp_path / "in", [vectors(200), vectors(200, first=200)])
    succeeded(stack.client.batch("net", data, tmp_path / "out", columns="x", keep="id", shard_rows=100))
    assert sorted(pd.read_parquet(tmp_path / "out")["id"]) == list(range(400))
    found = duckdb.read_parquet(f"{tmp_path}/out/*.parquet").aggregate("count(*), sum(id), min(len(output))")
    assert found.fetchall() == [(400, 79800, 3)]


def test_without_kept_columns_each_row_says_where_it_came_from(stack: WorkerStack, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "in", [vectors(150), vectors(50)])
    succeeded(stack.client.batch("net", data, tmp_path / "out", columns="x"))
    places = [(Path(row["file"]).name, row["row"]) for row in rows_of(tmp_path / "out")]
    assert places == [("000.parquet", i) for i in range(150)] + [("001.parquet", i) for i in range(50)]


@pytest.mark.parametrize("kind", ["null", "short", "nan"])
def test_one_malformed_row_in_a_thousand_is_in_the_errors_and_the_rest_in_the_output(
    stack: WorkerStack, tmp_path: Path, kind: str
) -> None:
    rows: list[Any] = vectors(3000)["x"].to_pylist()
    bad = [7, 1503, 2999]
    for i in bad:
        rows[i] = {"null": None, "short": rows[i][:3], "nan": None}[kind]
    table = pa.table({"x": pa.array(rows, pa.list_(pa.float32())), "id": pa.array(range(3000))})
    data = write_parquet(tmp_path / "in", [table], group_rows=1000)
    manifest = succeeded(stack.client.batch("net", data, tmp_path / "out", columns="x", keep="id", shard_rows=700))
    assert asdict(manifest.counts) == {"total": 3000, "completed": 2997, "failed": 3}
    assert [row["row"] for row in errors_of(tmp_path / "out")] == bad
    assert {row["error"] for row in errors_of(tmp_path / "out")} == {"InvalidInput"}
    [found_error] = BatchViews(stack.ledger).errors(manifest.batch).rows
    assert (found_error.type, found_error.count) == ("InvalidInput", 3)
    assert [sample.where for sample in found_error.samples] == [f"row {i}" for i in bad]
    found = rows_of(tmp_path / "out")
    assert [row["id"] for row in found] == [i for i in range(3000) if i not in bad]
    np.testing.assert_allclose(found[8]["output"], direct([rows[9]])[0], rtol=1e-4, atol=1e-4)


def test_a_row_that_the_model_refuses_is_an_error_and_its_neighbours_are_not(
    stack: WorkerStack, tmp_path: Path
) -> None:
    model = stack.model("Slowly", max_batch_size=16, **SLOW)
    x = vectors(100)["x"].to_pylist()
    x[33][0] = -1.0
    table = pa.table({"x": pa.array(x, pa.list_(pa.float32(), 4)), "id": pa.array(range(100))})
    data = write_parquet(tmp_path / "in", [table])
    job = stack.client.batch(model, data, tmp_path / "out", keep="id")
    succeeded(job)
    [error] = errors_of(tmp_path / "out")
    assert job.errors.rows == (ErrorKind("ValueError", 1, (ErrorSample("row 33", "a negative number"),)),)
    assert (error["row"], error["error"], error["message"]) == (33, "ValueError", "a negative number")
    assert [row["y"] for row in rows_of(tmp_path / "out")] == [2.0 * i for i in range(100) if i != 33]


def test_more_errors_than_the_threshold_fail_the_batch_with_its_counts(stack: WorkerStack, tmp_path: Path) -> None:
    table = pa.table({"x": pa.array([[1.0] * 4] + [None] * 20, pa.list_(pa.float32(), 4))})
    data = write_parquet(tmp_path / "in", [table])
    job = stack.client.batch("net", data, tmp_path / "out", columns="x", max_error_share=0.5)
    with pytest.raises(JobFailed, match=r"20 of 21 rows failed; max_error_share is 0\.5") as caught:
        job.result(120)
    assert caught.value.type == "TooManyErrors"
    assert job.progress.request_counts == {"total": 21, "completed": 1, "failed": 20}
    assert not (tmp_path / "out" / "_manifest.json").exists()


def test_a_file_none_of_whose_first_rows_will_do_is_refused_at_submit(stack: WorkerStack, tmp_path: Path) -> None:
    data = write_parquet(tmp_path / "in", [pa.table({"x": pa.array([[1.0], [2.0]], pa.list_(pa.float32()))})])
    with pytest.raises(
        InvalidInput, match=r"column 'x', row 0: .*expected float32 of shape \[4\], got list of shape \[1\]"
    ):
        stack.client.batch("net", data, tmp_path / "out", columns="x")


def test_a_file_that_does_not_fit_and_was_not_looked_at_fails_the_batch_and_names_it(
    stack: WorkerStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = pa.table({"x": pa.array(["a"]), "id": pa.array([1])})
    data = write_parquet(tmp_path / "in", [vectors(10), wrong, vectors(10)])
    monkeypatch.setattr("forebay.producer.requests.batch.CHECK_S", -1.0)
    job = stack.client.batch("net", data, tmp_path / "out", columns="x")
    with pytest.raises(JobFailed, match=r"001\.parquet'?: column 'x': expected float32 of shape \[4\], found string"):
        job.result(120)


def test_an_output_that_holds_anything_is_refused_and_a_finished_batch_is_not_done_again(
    stack: WorkerStack, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "in", [vectors(10)])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("mine")
    with pytest.raises(InvalidInput, match="is not an empty folder"):
        stack.client.batch("net", data, tmp_path / "full", columns="x")
    succeeded(stack.client.batch("net", data, tmp_path / "out", columns="x"))
    with pytest.raises(InvalidInput, match="holds what batch"):
        stack.client.batch("net", data, tmp_path / "out", columns="x")
    with pytest.raises(InvalidInput, match="asked for something else"):
        stack.client.batch("net", data, tmp_path / "out", columns="x", keep="id")


def test_the_same_request_while_it_runs_is_the_same_batch(own: WorkerStack, tmp_path: Path) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(50)])
    first = own.client.batch(model, data, tmp_path / "out")
    assert own.client.batch(model, data, tmp_path / "out").id == first.id
    own.worker()
    succeeded(first)
    assert sorted(own.runs()) == list(range(50))


@pytest.mark.parametrize("victim", ["child", "worker"])
def test_a_batch_whose_worker_is_killed_goes_on_and_its_content_is_that_of_an_undisturbed_one(
    own: WorkerStack, tmp_path: Path, victim: str
) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(400), vectors(400, first=400)])
    worker = own.worker().ready()
    job = own.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=100)
    for kill in range(2):
        wait_until(lambda done=200 * (kill + 1): len(own.runs()) > done, "some rows have run")
        if victim == "child":
            os.kill(worker.children()[0], signal.SIGKILL)
            ready = partial(_said, worker, "child_ready", kill + 2)
            wait_until(ready, "there is a new child")
        else:
            worker.kill()
            worker = own.worker(f"w{kill + 2}").ready()
    succeeded(job)
    assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(800)]
    assert len(own.runs()) <= 800 + 2 * 200, (
        "a kill repeats the shard on the device, and one whose end was not written yet"
    )
    assert not (tmp_path / "out" / "_temporary").exists()


def test_a_canceled_batch_stops_and_a_retry_does_only_what_is_missing(own: WorkerStack, tmp_path: Path) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(600)])
    own.worker().ready()
    job = own.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=100)
    wait_until(lambda: job.progress.shards.get(JobState.SUCCEEDED, 0) >= 2, "two shards have ended")
    assert job.cancel() is JobState.CANCELED
    with pytest.raises(JobCanceled):
        job.result(120)
    wait_until(lambda: not {s for s, n in job.progress.shards.items() if n and not s.final}, "no shard is open")
    finished = job.progress.completed
    assert 200 <= finished < 600
    seen = len(own.runs())
    succeeded(job.retry())
    assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(600)]
    assert len(own.runs()) - seen == 600 - finished


def test_a_part_whose_worker_died_before_it_could_be_put_in_place_is_put_there_in_the_end(
    own: WorkerStack, tmp_path: Path
) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(200), vectors(200, first=200)])
    own.worker().ready()
    out = tmp_path / "out"
    job = own.client.batch(model, data, out, keep="id", shard_rows=200)
    first = out / "part-000000-000000000000000.parquet"
    wait_until(first.exists, "the first part is there")
    [(_, _, outcome)] = list(own.client.session.batches.queries.outcomes(job.id))
    first.rename(out / outcome.part.temporary)  # as a kill between the ledger's word and the renaming leaves it
    succeeded(job)
    assert rows_of(out) == [{"id": i, "y": 2.0 * i} for i in range(400)]


def test_a_batch_that_nobody_looks_after_is_woken_by_a_sweep(own: WorkerStack, tmp_path: Path) -> None:
    model = own.model("Slowly", max_batch_size=16, **SLOW)
    data = write_parquet(tmp_path / "in", [vectors(20)])
    job = own.client.batch(model, data, tmp_path / "out", keep="id")
    [claimed] = own.store.claim([job.id], "dead@test", 30)
    request, signature = _request(own, job), Signature.parse(SLOW["inputs"], SLOW["outputs"])
    own.client.session.batches.start(claimed, request, dump_schema(part_schema(request, signature, nullcontext)))
    own.client.session.batches.parents.hand_off(claimed)  # and then the worker died, before it had planned a shard
    own.worker()
    succeeded(job)
    assert Counter(own.runs()) == dict.fromkeys(range(20), 1)


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_a_long_shard_shares_its_rest_with_an_idle_worker_and_no_row_is_done_twice(
    own: WorkerStack, tmp_path: Path, format: str
) -> None:
    model = own.model("Slowly", max_batch_size=4, **SLOW)
    data, columns, id = write_parquet(tmp_path / "in", [vectors(2000, first=1)], group_rows=2000), ["x"], int
    if format == "csv":
        data, columns, id = tmp_path / "in.csv", ["a", "b", "c", "d"], str
        lines = (f'{i},"{i}.0",{i}.1,{i}.2,{i}.3,"over\n{"many lines" * (i % 9)}"\n' for i in range(1, 2001))
        data.write_text("id,a,b,c,d,note\n" + "".join(lines))
    own.worker("w1").ready()
    own.worker("w2").ready()
    job = own.client.batch(model, data, tmp_path / "out", columns=columns, keep="id", shard_rows=10_000)
    manifest = succeeded(job)
    assert len(manifest.parts) > 1
    assert rows_of(tmp_path / "out") == [{"id": id(i), "y": 2.0 * i} for i in range(1, 2001)]
    assert Counter(own.runs()) == dict.fromkeys(range(1, 2001), 1)
    assert len(own.runs_by_worker(range(1, 2001))) == 2


def _said(worker: Worker, word: str, times: int) -> bool:
    return worker.said().count(word) >= times


def _request(stack: WorkerStack, job: BatchJob) -> Any:
    from forebay.contract.requests.batch import BatchRequest
    from forebay.contract.requests.request import decode

    session = stack.client.session
    return decode(session.payloads.load(*session.batches.queries.request(job.id)), BatchRequest)


def test_the_audit_finds_a_row_that_was_taken_out_doubled_or_changed_and_files_that_are_not_its_own(
    stack: WorkerStack, tmp_path: Path
) -> None:
    data = write_parquet(tmp_path / "in", [vectors(500)])
    job = stack.client.batch("net", data, tmp_path / "out", columns="x", keep="id", shard_rows=100)
    manifest = succeeded(job)
    out, doubled, changed, moved, cut = [tmp_path / "out" / part.name for part in manifest.parts]
    table = pq.read_table(out)
    pq.write_table(table.slice(1), out)
    pq.write_table(pa.concat_tables([pq.read_table(doubled), table.slice(0, 1)]), doubled)
    pq.write_table(pq.read_table(changed).set_column(0, "id", table["id"]), changed)
    moved.rename(moved.with_name("part-999999-000000000000000.parquet"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert sorted(faults_of(job)) == sorted([
        f"{out.name}: its content is not what was written; it holds 99 rows, 100 were written",
        f"{doubled.name}: its content is not what was written; it holds 101 rows, 100 were written",
        f"{changed.name}: its content is not what was written; it holds 100 rows, 100 were written",
        f"{moved.name}: it is missing",
        f"{cut.name}: its content is not what was written; it cannot be read, 100 were written",
        "part-999999-000000000000000.parquet: no shard of this batch has written it",
    ])  # fmt: skip


def test_the_audit_counts_the_input_too(stack: WorkerStack, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"x": [{i},0,0,0]}}\n' for i in range(100, 300)))
    job = stack.client.batch("net", tmp_path / "in.jsonl", tmp_path / "out", columns="x", shard_rows=100)
    assert [file.rows for file in succeeded(job).parts] == [100, 100]
    assert audit(stack.client.session, job.id)["input"] == 200
    told = (tmp_path / "in.jsonl").read_text()
    (tmp_path / "in.jsonl").write_text(told.replace("}\n", "} ", 1))
    assert faults_of(job) == [
        "part-000000-000000000000000: its input holds 99 rows, and 100 have results or errors",
        "the input holds 199 rows, and 200 have results or errors",
    ]
    (tmp_path / "in.jsonl").write_text(told[:-40])
    assert "the input cannot be counted" in faults_of(job)[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda last: last + 1, "rows 100 to 101 of {} are covered twice"),
        (lambda last: last - 1, "of {} rows 0 to 200 were planned, and the parts cover 0 to 99, 100 to 200"),
    ],
)
def test_neither_the_end_of_a_batch_nor_its_audit_takes_parts_that_do_not_cover_the_input_once(
    stack: WorkerStack, tmp_path: Path, change: Callable[[int], int], words: str
) -> None:
    data = write_parquet(tmp_path / "in", [vectors(200)])
    job = stack.client.batch("net", data, tmp_path / "out", columns="x", shard_rows=100)
    assert len(succeeded(job).parts) == 2
    fault = words.format(tmp_path / "in" / "000.parquet")
    with stack.ledger.write() as connection:
        first = connection.execute(
            text("SELECT id, pieces FROM shards WHERE batch_id = :id ORDER BY part LIMIT 1"), {"id": job.id}
        ).one()
        [piece] = json.loads(first.pieces)
        piece[2] = change(piece[2])
        connection.execute(
            text("UPDATE shards SET pieces = :pieces WHERE id = :id"), {"pieces": json.dumps([piece]), "id": first.id}
        )
    assert fault in faults_of(job)
    with stack.ledger.write() as connection:  # as if it had not ended yet; a sweep finds it
        connection.execute(
            text("UPDATE jobs SET state = 'running', finished_at = NULL, sent_at = 0 WHERE id = :id"), {"id": job.id}
        )
    wait_until(lambda: stack.store.queries.get(job.id).state is JobState.FAILED, "the batch has failed")
    error = stack.store.queries.get(job.id).error
    assert error is not None
    assert (error.type, error.message.partition("; ")[2]) == ("PartsMismatch", "submit the batch anew")


def test_a_batch_runs_on_postgres(tmp_path: Path, broker: str, postgres_database: str) -> None:
    with closing(WorkerStack(tmp_path, broker, postgres_database)) as stack:
        model = stack.model("Slowly", max_batch_size=16, **SLOW)
        data = write_parquet(tmp_path / "in", [vectors(300)])
        stack.worker()
        job = stack.client.batch(model, data, tmp_path / "out", keep="id", shard_rows=100)
        succeeded(job)
        assert rows_of(tmp_path / "out") == [{"id": i, "y": 2.0 * i} for i in range(300)]
        assert json.dumps(job.progress.request_counts) == '{"total": 300, "completed": 300, "failed": 0}'
