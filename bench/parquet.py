"""The data sets of the batch workloads, and a row group of one through a model, as everyone but Forebay and Ray runs it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import workloads
from forebay.datasets.columns import from_numpy
from forebay.datasets.writing.part_files import parquet_writer

FILES = 4
GROUP_ROWS = {"W3r": 65_536, "W3t": 625}
COLUMN = {"W3r": "x", "W3t": "text"}


def write_data_set(workload: str, folder: Path, rows: int) -> Path:
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


def direct(workload: str, data: Path) -> Any:
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


def write_part(batch: pa.RecordBatch, vectors: Any, path: Path) -> None:
    """`id` and the vectors as one part."""
    table = pa.table({"id": batch.column("id"), "output": from_numpy(vectors)})
    with parquet_writer(str(path), table.schema) as writer:
        writer.write_table(table)


def row_groups(data: Path) -> Iterator[tuple[Path, int]]:
    """Every row group of a data set."""
    for path in sorted(data.glob("*.parquet")):
        yield from ((path, i) for i in range(pq.ParquetFile(path).num_row_groups))


def run_row_group(workload: str, path: Path, group: int, out: Path) -> None:
    """Read, compute and write one row group."""
    [batch] = pq.ParquetFile(path).read_row_group(group).combine_chunks().to_batches()
    write_part(batch, compute(workload, values_of(workload, batch)), out / f"{path.stem}-{group:04d}.parquet")
