"""What chaos' jobs are given, and what must come out: inputs, data sets and their truth, all functions of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from chaos.model import Effect, label_of
from forebay.contract.job import JobKind

SMALL, LARGE = 8, 2048  # elements of a row; large ones go to the blob store
FAILS_EVERY, WRONG_EVERY = 500, 10  # rows of a data set
TRAINED_ROWS = 400


@dataclass(frozen=True, slots=True)
class JobSpec:
    """One job to submit: `rows` of `size` elements; `rows` is 0 for a prediction that is no batch."""

    effect: Effect = Effect.FINE
    rows: int = 0
    size: int = SMALL
    kind: JobKind = JobKind.PREDICT


def x_of(job: int, row: int, size: int) -> NDArray[np.float32]:
    """The input of one row, which no other row has; whole numbers, so that 2x + 1 is exact."""
    return (np.arange(size, dtype=np.float32) + 17 * row + 31 * job) % np.float32(100_003)


def truth(job: int, rows: int, size: int) -> NDArray[np.float32]:
    """The right result of a job: `(size,)`, or `(rows, size)` for a batch."""
    found = np.stack([2 * x_of(job, row, size) + np.float32(1) for row in range(max(1, rows))])
    return found if rows else found[0]


def effects(spec: JobSpec) -> NDArray[np.int64]:
    """What each row of a job does: of a data set one in 500 fails, and one kills where the job is to kill."""
    found = np.full(spec.rows, int(spec.effect), np.int64)
    if spec.kind is not JobKind.PREDICT:
        found[:] = Effect.FINE
        found[FAILS_EVERY - 1 :: FAILS_EVERY] = Effect.FAIL
        if spec.effect is Effect.KILL:
            found[spec.rows // 3] = Effect.KILL
    return found


def predict_input(number: int, spec: JobSpec) -> dict[str, object]:
    """The input of a prediction."""
    if not spec.rows:
        return {"job": number, "row": 0, "effect": int(spec.effect), "x": x_of(number, 0, spec.size)}
    return {
        "job": np.full(spec.rows, number, np.int64),
        "row": np.arange(spec.rows, dtype=np.int64),
        "effect": effects(spec),
        "x": np.stack([x_of(number, row, spec.size) for row in range(spec.rows)]),  # (rows, size)
    }


def write_rows(folder: Path, number: int, spec: JobSpec) -> Path:
    """The data set of a batch or an evaluation, in two files; `truth` is the label that one row in ten has not."""
    path = folder / f"in-{number}"
    if path.exists():  # the same call is made again
        return path
    row = np.arange(spec.rows, dtype=np.int64)
    x = ((np.arange(spec.size) + 17 * row[:, None] + 31 * number) % 100_003).astype(np.float32)
    labels = [label_of(int(i) + (i % WRONG_EVERY == 0)) for i in row]
    table = pa.table({
        "job": np.full(spec.rows, number, np.int64), "row": row, "effect": effects(spec), "truth": labels,
        "x": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), spec.size),
    })  # fmt: skip
    path.mkdir()
    half = spec.rows // 2
    for i, part in enumerate((table.slice(0, half), table.slice(half))):
        pq.write_table(part, path / f"{i}.parquet", row_group_size=max(1, spec.rows // 8))
    return path


def write_training_rows(folder: Path) -> Path:
    """Two classes that a line nearly divides: the same for every training job, which must therefore learn the same."""
    path = folder / "train.parquet"
    if not path.exists():
        made = np.random.default_rng(0)
        x = made.standard_normal((TRAINED_ROWS, 4)).astype(np.float32)
        label = np.where(x @ made.standard_normal(4) + 0.3 * made.standard_normal(TRAINED_ROWS) > 0, "yes", "no")
        whole = folder / "train.writing"
        pq.write_table(pa.table({f"x{i}": x[:, i] for i in range(4)} | {"label": label}), whole)
        whole.rename(path)
    return path


def confusion(spec: JobSpec) -> tuple[list[list[int]], int]:
    """What an evaluation must count: rows by true and then by given label, `even` first, and the rows that fail."""
    counts = [[0, 0], [0, 0]]
    for row, effect in enumerate(effects(spec)):
        if effect == Effect.FINE:
            given = row % 2
            counts[given ^ (row % WRONG_EVERY == 0)][given] += 1
    return counts, int((effects(spec) != Effect.FINE).sum())
