"""The workloads of batch jobs, W3r and W3t: Parquet in, a model, Parquet out, in rows per second.

The bare loop reads, computes and writes in one process, with the same model, files, columns and Parquet options. Celery runs
hand-written shards, a task for each row group. Ray Data takes part when `ray` is installed. Every output is compared with a
direct forward pass.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from bench import workloads
from bench.contenders import WAIT_S, Forebay, PlainCelery
from bench.figures import Figures
from forebay.contract.settings import Settings
from forebay.datasets.columns import from_numpy
from forebay.datasets.writing.parts import parquet_writer
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry

FILES = 4
GROUP_ROWS = {"W3r": 65_536, "W3t": 625}
COLUMN = {"W3r": "x", "W3t": "text"}
TWO = "forebay, two workers"


def measure(workload: str, folder: Path, rounds: int, rows: int | None, console: Console) -> Figures:
    """Every contender on one workload, in turn; in the end Forebay with a second worker."""
    data = make(workload, folder / workload, rows or workloads.JOBS[workload])
    expected = expect(workload, data)
    figures, celery = Figures(workload), PlainCelery(folder)
    contenders: list[Any] = [Bare(), Shards(celery), *([Ray()] if find_spec("ray") else [])]
    try:
        stack = Forebay(folder, {workloads.model_of(workload)})
        contenders.append(Batch(stack))
        try:
            for contender in contenders:
                contender.run(workload, data, _empty(folder / "out"))  # warm: worker up, model loaded, files cached
            for i in range(rounds):
                for contender in contenders:
                    _take(contender, contender.name, workload, data, folder, expected, figures)
                console.print(f"{workload} round {i + 1} of {rounds}")
            _with_two(contenders[-1], workload, data, folder, expected, figures, rounds)
        finally:
            stack.stop()
    finally:
        celery.stop()
    return figures


def make(workload: str, folder: Path, rows: int) -> Path:
    """The data set: `id`, and vectors of 64 float32 or English sentences, in four files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    values = workloads.rows(workload, rows)
    column = from_numpy(values) if isinstance(values, np.ndarray) else pa.array(values)
    table = pa.table({"id": pa.array(np.arange(rows)), COLUMN[workload]: column})
    step = -(-rows // FILES)
    for i in range(FILES):
        part = table.slice(i * step, step)
        pq.write_table(part, folder / f"{i}.parquet", row_group_size=GROUP_ROWS[workload], use_dictionary=False)
    return folder


def expect(workload: str, data: Path) -> Any:
    """What a direct forward pass over the whole data set gives, in order of `id`."""
    table = pq.read_table(data)
    return workloads.forward(workloads.model_of(workload), values_of(workload, table.combine_chunks().to_batches()[0]))


def values_of(workload: str, batch: pa.RecordBatch) -> Any:
    """A record batch's column as the model takes it: `(rows, 64)`, or a list of texts."""
    column = batch.column(COLUMN[workload])
    return column.flatten().to_numpy().reshape(len(column), -1) if workload == "W3r" else column.to_pylist()


def compute(workload: str, values: Any) -> Any:
    """Rows through the model in the batches that Forebay uses."""
    model = workloads.model_of(workload)
    if workload == "W3t":
        return workloads.forward(model, values)  # sorts by length, and cuts batches of 32
    size = workloads.batch_size(workload)
    return np.concatenate([workloads.forward(model, values[i : i + size]) for i in range(0, len(values), size)])


def write(batch: pa.RecordBatch, vectors: Any, path: Path) -> None:
    """`id` and the vectors as one part."""
    table = pa.table({"id": batch.column("id"), "output": from_numpy(vectors)})
    with parquet_writer(str(path), table.schema) as writer:
        writer.write_table(table)


class Bare:
    """The limit: one process that reads a row group, computes it, writes it, and goes on."""

    name = "bare loop"

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set."""
        if workload == "W3t":  # whole, for `encode` sorts by length what it is given
            [batch] = pq.read_table(data).combine_chunks().to_batches()
            write(batch, compute(workload, values_of(workload, batch)), out / "all.parquet")
            return
        for path, group in groups(data):
            shard(workload, path, group, out)


class Shards:
    """A Celery task for each row group, as one would write it by hand."""

    name = "Celery, shards by hand"

    def __init__(self, celery: PlainCelery) -> None:
        self._tasks = celery._tasks

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set."""
        sent = [self._tasks.predict_shard.delay(workload, str(path), i, str(out)) for path, i in groups(data)]
        for result in sent:
            result.get(timeout=WAIT_S)


class Batch:
    """`client.batch`."""

    name = "forebay"

    def __init__(self, stack: Forebay) -> None:
        self.stack = stack

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set, from the call to the result."""
        model = workloads.model_of(workload)
        job = self.stack._client.batch(model, data, out, columns=COLUMN[workload], keep="id")
        job.result(WAIT_S)


class Ray:
    """Ray Data's `map_batches`, with one actor, which loads the model in each run: Ray keeps none between data sets."""

    name = "Ray Data"

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set."""
        import ray

        ray.init(ignore_reinit_error=True, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        size, format = workloads.batch_size(workload), "pyarrow"  # as NumPy, Ray would write tensors of its own type
        read = ray.data.read_parquet(str(data))
        one = ray.data.ActorPoolStrategy(size=1)
        made = read.map_batches(
            RayModel, fn_constructor_args=(workload,), batch_size=size, batch_format=format, compute=one
        )
        made.write_parquet(str(out))


class RayModel:
    """What the actor holds."""

    def __init__(self, workload: str) -> None:
        self._workload = workload

    def __call__(self, table: pa.Table) -> pa.Table:
        """A batch of rows."""
        [batch] = table.combine_chunks().to_batches()
        vectors = compute(self._workload, values_of(self._workload, batch))
        return pa.table({"id": batch.column("id"), "output": from_numpy(vectors)})


def groups(data: Path) -> Iterator[tuple[Path, int]]:
    """Every row group of a data set."""
    for path in sorted(data.glob("*.parquet")):
        yield from ((path, i) for i in range(pq.ParquetFile(path).num_row_groups))


def shard(workload: str, path: Path, group: int, out: Path) -> None:
    """Read, compute and write one row group."""
    [batch] = pq.ParquetFile(path).read_row_group(group).combine_chunks().to_batches()
    write(batch, compute(workload, values_of(workload, batch)), out / f"{path.stem}-{group:04d}.parquet")


def _with_two(
    batch: Batch, workload: str, data: Path, folder: Path, expected: Any, figures: Figures, rounds: int
) -> None:
    home = folder / "home"
    settings = Settings.load(home=home)
    env = os.environ | {"FOREBAY_HOME": str(home), "FOREBAY_TORCH_THREADS": "1"}
    command = [sys.executable, "-m", "forebay", "worker", "--queues", "cpu"]
    second = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = Ledger(settings.database)
    try:
        until = time.monotonic() + WAIT_S
        while len(WorkerRegistry(ledger).alive(30)) < 2 and time.monotonic() < until:
            time.sleep(0.2)
        for _ in range(2):
            batch.run(workload, data, _empty(folder / "out"))  # loads the model in the second one
        for _ in range(rounds):
            _take(batch, TWO, workload, data, folder, expected, figures)
    finally:
        ledger.close()
        second.terminate()
        second.wait(90)


def _take(contender: Any, name: str, workload: str, data: Path, folder: Path, expected: Any, figures: Figures) -> None:
    out = _empty(folder / "out")
    started = time.perf_counter()
    contender.run(workload, data, out)
    figures.rates.setdefault(name, []).append(len(expected) / (time.perf_counter() - started))
    table = pq.read_table(out).sort_by("id")
    if table.num_rows != len(expected) or not np.array_equal(table["id"].to_numpy(), np.arange(len(expected))):
        raise SystemExit(f"{name}: {table.num_rows} rows of {len(expected)} are there")
    vectors = table["output"].combine_chunks().flatten().to_numpy().reshape(len(expected), -1)
    if not np.allclose(vectors, expected, atol=1e-4):
        raise SystemExit(f"{name}: a result differs from the direct forward pass")


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
