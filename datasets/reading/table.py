"""A data set in memory, column by column, for training: numbers as arrays, everything else as Python's values.

Reads the formats that batch jobs read. A missing value is NaN among numbers and None elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.cells import is_missing
from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import CSV, MEDIA, InputFile
from forebay.datasets.columns import Column, Values, plain, take, to_numpy
from forebay.datasets.formats.media import PATH
from forebay.datasets.formats.source import Chunk, check_columns, get_source

FOLDER, ABOVE = "label", "split"  # columns of an image folder: the names of an image's folder and of the folder above
_OBJECT_BYTES = 64  # about what a Python object takes up


@dataclass(slots=True)
class Table:
    """Equally long columns: arrays `(rows, *shape)` of numbers, or lists."""

    columns: dict[str, Values]
    rows: int

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: NDArray[np.int64]) -> Table:
        return Table({name: take(values, rows) for name, values in self.columns.items()}, len(rows))


@dataclass(slots=True)
class Read:
    """A table, and the errors of rows that could not be read, such as a line of CSV with too few values."""

    table: Table
    bad: dict[int, str]


def column_names(files: Sequence[InputFile], format: str) -> list[str]:
    """The columns of the data set's first file that holds rows; InvalidInput when none does."""
    source = get_source(format)
    for file in files:
        sample = source.sample(file)
        if not sample.empty:
            return [MEDIA[format], PATH, FOLDER, ABOVE] if format in MEDIA else list(sample.types)
    raise InvalidInput(f"the data set is empty: none of its files ({shown(files[0].path)}, …) holds a row")


def read_table(files: Sequence[InputFile], format: str, columns: Sequence[str], limit: int) -> Read:
    """These columns of all files; InvalidInput when they take up more than `limit` bytes or a file cannot be read."""
    parts: dict[str, list[Values]] = {name: [] for name in columns}
    bad: dict[int, str] = {}
    rows = size = 0
    for file in files:
        for chunk in _chunks(file, format, columns):
            bad |= {rows + i: f"{shown(file.path)}: {error}" for i, error in chunk.bad.items()}
            for name in columns:
                values = _values(chunk.columns[name])
                parts[name].append(values)
                size += _bytes(values)
            rows += len(chunk)
            if size > limit:
                raise InvalidInput(
                    f"the data set takes up more than {limit >> 20} MiB by row {rows}, in {shown(file.path)}; training holds "
                    "it in at most half of the free memory: use fewer rows or columns, or a machine with more memory"
                )
    text = format == CSV
    return Read(Table({name: _joined(found, text) for name, found in parts.items()}, rows), bad)


def read_rows(files: Sequence[InputFile], format: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of the files in turn, with its place; InvalidInput for one that cannot be read."""
    for file in files:
        first = 0
        for chunk in _chunks(file, format, columns):
            for i, error in chunk.bad.items():
                raise InvalidInput(f"{shown(file.path)}, row {first + i}: {error}")
            named = {name: _values(chunk.columns[name]) for name in columns}
            for i in range(len(chunk)):
                yield f"{shown(file.path)}, row {first + i}", {name: values[i] for name, values in named.items()}
            first += len(chunk)


def _chunks(file: InputFile, format: str, columns: Sequence[str]) -> Any:
    source = get_source(format)
    if format in MEDIA:
        for chunk in source.read(file, 0, 1, []):
            yield Chunk({**chunk.columns, **_folders(file)}, chunk.where, chunk.bad)
        return
    sample = source.sample(file)
    if not sample.empty:
        check_columns(file, sample, columns)
        for block in source.layout(file, columns, max(1, sample.row_bytes)):
            yield from source.read(file, block.first, block.last, columns)


def _folders(file: InputFile) -> Mapping[str, Column]:
    path = PurePosixPath(file.path)
    return {FOLDER: [path.parent.name], ABOVE: [path.parent.parent.name]}


def _values(column: Column) -> Values:
    """A column as it is computed with. An error among its values, of a line without this column, is a missing value."""
    if isinstance(column, list):
        return [None if isinstance(value, Exception) else value for value in column]
    column = plain(column)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    array = to_numpy(column, nan_for_null=True)
    return column.to_pylist() if array is None else array


def _joined(parts: list[Values], text: bool) -> Values:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if arrays and len(arrays) == len(parts) and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    values = [value for part in parts for value in (part.tolist() if isinstance(part, np.ndarray) else part)]
    return _numbers(values, _parse if text else _as_float)


def _numbers(values: list[Any], read: Callable[[Any], float | None]) -> Values:
    """An array if all values are numbers, or lists of equally many numbers; else the values. None is missing."""
    present = [value for value in values if not is_missing(value)]
    if present and all(isinstance(value, list) for value in present):
        return _stacked(values) if len(present) == len(values) else values
    if present and all(isinstance(value, bool) for value in present):
        return np.array(values, bool) if len(present) == len(values) else values
    if present and all(type(value) is int for value in present) and len(present) == len(values):
        return _whole(values)
    numbers = [np.nan if is_missing(value) else read(value) for value in values]
    return np.array(numbers, np.float64) if present and None not in numbers else values


def _stacked(values: list[list[Any]]) -> Values:
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        return values
    return array if array.dtype.kind in "biuf" else values


def _whole(values: list[int]) -> Values:
    return np.array(values, np.int64) if min(values) >= -(2**63) and max(values) < 2**63 else values


def _as_float(value: Any) -> float | None:
    """The number as a float; None for another value, and for a whole number that no float is."""
    try:
        number = float(value) if isinstance(value, bool | int | float) else None
    except OverflowError:
        return None
    return number if number == value or not isinstance(value, int) else None


def _parse(value: Any) -> float | None:
    try:
        return _as_float(int(value) if value.strip().lstrip("+-").isdecimal() else float(value))
    except (ValueError, AttributeError):
        return None


def _bytes(values: Values) -> int:
    if isinstance(values, np.ndarray):
        return values.nbytes
    sized = (
        len(value) * (_OBJECT_BYTES if isinstance(value, list) else 1) for value in values if hasattr(value, "__len__")
    )
    return _OBJECT_BYTES * len(values) + sum(sized)
