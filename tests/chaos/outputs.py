"""What a batch has written, row by row against its input: which rows are missing, there twice, or not as they must be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from chaos.data import JobSpec, effects, truth
from chaos.model import Effect, label_of

ERRORS = {Effect.FAIL: "Refused", Effect.KILL: "WorkerLost"}


@dataclass(frozen=True, slots=True)
class Output:
    """Counts of the rows of one batch's output."""

    lost: int = 0
    doubled: int = 0
    wrong: int = 0

    def __str__(self) -> str:
        return f"of its rows {self.lost} are lost, {self.doubled} doubled, {self.wrong} wrong"

    @property
    def sound(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def read_output(folder: Path, number: int, spec: JobSpec) -> Output:
    """Compare the parts of a batch that has succeeded with what its rows must give."""
    wanted, y = effects(spec), truth(number, spec.rows, spec.size)
    seen, wrong = Counter[int](), 0
    for part in _parts(folder, "part-*.parquet"):
        for row, job, values, label in zip(
            *(part[name].to_pylist() for name in ("row", "job", "y", "label")), strict=True
        ):
            seen[row] += 1
            right = row < spec.rows and wanted[row] == Effect.FINE and np.array_equal(values, y[row])
            wrong += not (right and job == number and label == label_of(row))
    for part in _parts(folder, "_errors/part-*.parquet"):
        for file, at, error in zip(*(part[name].to_pylist() for name in ("file", "row", "error")), strict=True):
            row = at + (spec.rows // 2 if Path(file).stem == "1" else 0)
            seen[row] += 1
            wrong += ERRORS.get(Effect(wanted[row])) != error
    there = sum(row < spec.rows for row in seen)
    return Output(spec.rows - there, sum(count - 1 for count in seen.values()), wrong)


def _parts(folder: Path, names: str) -> Iterator[pa.Table]:
    for path in sorted(folder.glob(names)):
        yield pq.read_table(path)
