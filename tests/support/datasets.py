"""Data sets for the tests, and the content of an output row by row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.producer.handles.kinds import BatchJob
from forebay.producer.requests.audit import audit

# A column's metadata says in one bit more than a schema allows: pyarrow 26 aborts the process that looks at it.
ABORTING = bytes.fromhex(
    "504152311500151615162c15021500150615061c3600280161180161111100000002000000020101000000611504192c35001806736368656d611502"
    "00150c250218017825004c1c0000001602191c191c26001c150c1925060019180178150016021650165026083c3600280161180161111100191c1500"
    "15001502003c16020906192600020000001650160226081650002820706172717565742d6370702d6172726f772076657273696f6e2032362e302e31"
    "191c1c0000008e00000050415231"
)


def vectors(rows: int, width: int = 4, first: int = 0) -> pa.Table:
    """`x`, a vector of `width` float32 that tells its row, and `id`."""
    ids = np.arange(first, first + rows)
    flat = (ids[:, None] + np.arange(width) / 10).astype(np.float32).reshape(-1)
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(flat), width), "id": pa.array(ids)})


def write_parquet(folder: Path, tables: Sequence[pa.Table], group_rows: int = 100) -> Path:
    """A file for each table; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"{i:03d}.parquet", row_group_size=group_rows)
    return folder


def rows_of(folder: Path | str) -> list[dict[str, Any]]:
    """The rows of an output, in the order of its parts."""
    files = sorted(Path(folder).glob("part-*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def errors_of(folder: Path | str) -> list[dict[str, Any]]:
    """The rows with errors of an output, in the order of its parts."""
    return rows_of(Path(folder) / "_errors")


def faults_of(job: BatchJob) -> list[str]:
    """What the audit finds: the ledger, the manifest and the files are to tell the same."""
    return list(audit(job._session, job.id)["faults"])
