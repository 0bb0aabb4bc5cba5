"""Data sets for the tests, and the content of an output row by row."""

import base64
import zlib
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


# One row, a list of 400 million zeros: 300 bytes that take more than 3 GiB to read.
BOMB = base64.b64decode(
    "UEFSMRUEFRAVIkwVAhUAEgAAKLUv/SAIQQAAAAAAAAAAAAAVABU6FUwsFYCQvP0CFRAVBhUGHAAAACi1L/0gHekAAAgAAAAD/vCPvP0CAQYAAACAkLz9Ag"
    "MBgJC8/QIAFQQZTDUAGAZzY2hlbWEVAgA1AhgBeBUCFQZMPAAAADUEGARsaXN0FQIAFQQlAhgHZWxlbWVudAAWAhkcGRwmABwVBBk1AAYQGTgBeARsaXN0"
    "B2VsZW1lbnQVDBaAkLz9AhaUARa4ASZGJggpLBUEFQAVAgAVABUQFQIAPCkmAv6PvP0CGUYAAACAkLz9AgAAABaUARYCJggWuAEAKCBwYXJxdWV0LWNwcC"
    "1hcnJvdyB2ZXJzaW9uIDI2LjAuMRkcHAAAAMQAAABQQVIx"
)

# 17 rows of `x` and `id`, of which the one with id 9 is another: its `x` is not four numbers, but 400 million.
ROWS_WITH_BOMB = zlib.decompress(
    base64.b64decode(
        "eNq1UkFrE0EYfTOz2Wxs1bUwQ1YqrCUOKWxrIkREAiYXQdhDCV4ED4Z2wUDTxiTWHnPMQbR4EI/FX9CDlhx68NSzeJDqqUc9KD0LqX6za5VooFJw2LfL7M"
        "x73/se30K1VpSWrMhaKF2JKSD/+vLQ9xkD0LtBrwo9hB5hk/CGsE9AVUJel2FAXFfa0p7GT+6Fz0CKNpmvtLhRECKDjdyzV83ch+3t4Xeq12MyHClY+QJs"
        "MXAIWMS2kYaDZKVv019G1ZTMB8QZrTZxBzBFXCZEf/cbaTvyfCj5b2nrYqJz5Le3sTPkYzybeuLw4CmdMtt0b+4JFn9Auq6cGdF1qtQjfmlPyVwg/9TN3E"
        "rcccZijfE5+6RUIFQIC4R7hBahR+j/h5xPYQKTOI0zOAsX506Ws3e3hKzdWbwfNevSQoln2Tr1b4dlulWystZyo9OV1LVziWfT0XLUjFa6lAHteGMJasYr"
        "e4HGtHS8EmzXu8bWY8rRVTmpKmqHqX2m17QzG1A3MHIgYxzlWe0WvJvJfMLIWImMESeqqz4yNWD6Hdef2N9k29PUOaCeC+VqR70QOM5MPAfqMVNbTL8Xel"
        "OMscQPzfTEtpKxGWeNqyXVZ/pJSr+1xjszPHXAFKcqasDxrznt2novddKkXjp6kD4uqb2UiSrvt+rtBw+j7txiqzVXb7dXH/lrUbvTWF3xr1ydL8wXvYAG"
        "J54dbka6VvwBjgjJ/w=="
    )
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
