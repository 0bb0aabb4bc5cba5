"""The workloads of batch jobs, W3r and W3t: Parquet in, a model, Parquet out, in rows per second.

The bare loop reads, computes and writes in one process, with the same model, files, columns and Parquet options. Celery runs
hand-written shards, a task for each row group. Ray Data takes part when `ray` is installed. Every output is compared with a
direct forward pass.
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from bench import workloads
from bench.contenders import WAIT_S, Forebay, PlainCelery
from bench.parquet import COLUMN, compute, direct, row_groups, run_row_group, values_of, write_data_set, write_part
from bench.results import Results
from bench.stack import another_worker, temporary_folder
from forebay.datasets.columns import from_numpy
from forebay.producer.client import Client

TWO = "forebay, two workers"


def measure(workload: str, rounds: int, rows: int | None, console: Console) -> Results:
    """Every contender on one workload, in turn; in the end Forebay with a second worker."""
    with temporary_folder() as folder, ExitStack() as running:
        data = write_data_set(workload, folder / workload, rows or workloads.JOBS[workload])
        trial = Trial(data, folder / "out", direct(workload, data), Results(workload))
        celery = PlainCelery(folder)
        running.callback(celery.stop)
        forebay = Forebay(folder, {workloads.model_of(workload)})
        running.callback(forebay.stop)
        batch = Batch(forebay.client)
        contenders: list[Contender] = [BareLoop(), Shards(celery), *([Ray()] if find_spec("ray") else []), batch]
        for contender in contenders:
            trial.run(contender)  # warm: worker up, model loaded, files cached
        for i in range(rounds):
            for contender in contenders:
                trial.measure(contender, contender.name)
            console.print(f"{workload} round {i + 1} of {rounds}")
        with another_worker(forebay.client):
            for _ in range(2):
                trial.run(batch)  # loads the model in the second one
            for _ in range(rounds):
                trial.measure(batch, TWO)
        return trial.results


class Contender(Protocol):
    """Something that runs a data set through a model."""

    name: str

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set, from Parquet to Parquet."""


@dataclass(frozen=True)
class Trial:
    """A data set, where its output goes, what must come out, and what was measured so far."""

    data: Path
    out: Path
    expected: Any
    results: Results

    def run(self, contender: Contender) -> float:
        """Let it run into an empty folder; the seconds it took."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        started = time.perf_counter()
        contender.run(self.results.workload, self.data, self.out)
        return time.perf_counter() - started

    def measure(self, contender: Contender, name: str) -> None:
        """Note its rate under this name, and compare its output."""
        count = len(self.expected)
        self.results.add(name, count / self.run(contender))
        table = pq.read_table(self.out).sort_by("id")
        if table.num_rows != count or not np.array_equal(table["id"].to_numpy(), np.arange(count)):
            raise SystemExit(f"{name}: {table.num_rows} rows of {count} are there")
        vectors = table["output"].combine_chunks().flatten().to_numpy().reshape(count, -1)
        if not np.allclose(vectors, self.expected, atol=1e-4):
            raise SystemExit(f"{name}: a result differs from the direct forward pass")


class BareLoop:
    """The limit: one process that reads a row group, computes it, writes it, and goes on."""

    name = "bare loop"

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set."""
        if workload == "W3t":  # whole, for `encode` sorts by length what it is given
            [batch] = pq.read_table(data).combine_chunks().to_batches()
            write_part(batch, compute(workload, values_of(workload, batch)), out / "all.parquet")
            return
        for path, group in row_groups(data):
            run_row_group(workload, path, group, out)


class Shards:
    """A Celery task for each row group, as one would write it by hand."""

    name = "Celery, shards by hand"

    def __init__(self, celery: PlainCelery) -> None:
        self._tasks = celery.tasks

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set."""
        sent = [self._tasks.predict_shard.delay(workload, str(path), i, str(out)) for path, i in row_groups(data)]
        for result in sent:
            result.get(timeout=WAIT_S)


class Batch:
    """`client.batch`."""

    name = "forebay"

    def __init__(self, client: Client) -> None:
        self._client = client

    def run(self, workload: str, data: Path, out: Path) -> None:
        """The whole data set, from the call to the result."""
        model = workloads.model_of(workload)
        job = self._client.batch(model, data, out, columns=COLUMN[workload], keep="id")
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
