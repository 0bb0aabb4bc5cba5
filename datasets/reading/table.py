"""A data set in memory, column by column, as training takes it: numbers as arrays, everything else as Python's values.

Reads the same formats as batch jobs, through the same sources. What is missing is NaN among numbers and None elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import CSV, IMAGES, InputFile
from forebay.datasets.formats.images import IMAGE, PATH
from forebay.datasets.formats.source import Chunk, Column, get_source

Values: TypeAlias = "NDArray[Any] | list[Any]"

FOLDER, ABOVE = (
    "label",
    "split",
)  # columns of an image folder: the name of the folder an image is in, and of the one above
_PER_VALUE = 64  # bytes that a Python object takes up, about


@dataclass(slots=True)
class Table:
    """Equally long columns: arrays `(rows, *shape)` of numbers, or lists."""

    columns: dict[str, Values]
    rows: int

    def __len__(self) -> int:
        return self.rows

    def take(self, rows: NDArray[np.int64]) -> Table:
        """These rows, in this order."""
        picked = {
            name: values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows]
            for name, values in self.columns.items()
        }
        return Table(picked, len(rows))


@dataclass(slots=True)
class Read:
    """A table, and which of its rows could not be read (a line of CSV with too few values), with why."""

    table: Table
    bad: dict[int, str]


def column_names(files: Sequence[InputFile], format: str) -> list[str]:
    """The columns of the data set, by its first file that holds rows; InvalidInput when none does."""
    source = get_source(format)
    for file in files:
        sample = source.sample(file)
        if not sample.empty:
            return [IMAGE, PATH, FOLDER, ABOVE] if format == IMAGES else list(sample.types)
    raise InvalidInput(f"the data set is empty: none of its files ({shown(files[0].path)}, …) holds a row")


def read_table(files: Sequence[InputFile], format: str, columns: Sequence[str], limit: int) -> Read:
    """These columns of all files. InvalidInput when they take up more than `limit` bytes, or a file cannot be read."""
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
                    f"the data set takes up more than {limit >> 20} MiB by row {rows}, in {shown(file.path)}; training reads "
                    "it whole, into at most half of the free memory: give fewer rows or columns, or a larger machine"
                )
    text = format == CSV
    return Read(Table({name: _joined(found, text) for name, found in parts.items()}, rows), bad)


def _chunks(file: InputFile, format: str, columns: Sequence[str]) -> Any:
    source = get_source(format)
    if format == IMAGES:
        for chunk in source.read(file, 0, 1, [IMAGE]):
            yield Chunk({**chunk.columns, **_folders(file)}, chunk.where, chunk.bad)
        return
    sample = source.sample(file)
    missing = [name for name in columns if name not in sample.types]
    if missing and not sample.empty:
        there = ", ".join(map(shown, sample.types))
        raise InvalidInput(f"{shown(file.path)}: there is no column {shown(missing[0])}; there are {there:.500}")
    if not sample.empty:
        for block in source.layout(file, columns, max(1, sample.row_bytes)):
            yield from source.read(file, block.first, block.last, columns)


def _folders(file: InputFile) -> Mapping[str, Column]:
    path = PurePosixPath(file.path)
    return {FOLDER: [path.parent.name], ABOVE: [path.parent.parent.name]}


def _values(column: Column) -> Values:
    """A part of a column; InvalidInput, of a line that has no such value, is a missing one."""
    if isinstance(column, list):
        return [None if isinstance(value, Exception) else value for value in column]
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    array = _array(column)
    return column.to_pylist() if array is None else array


def _array(column: pa.Array) -> NDArray[Any] | None:
    """A column of numbers, or of lists of one length without gaps, as an array."""
    shape: list[int] = [len(column)]
    while (
        pa.types.is_fixed_size_list(column.type) or pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    ):
        if column.null_count or not len(column):
            return None
        lengths = np.asarray(pc.list_value_length(column))
        if (lengths != lengths[0]).any():
            return None
        shape.append(int(lengths[0]))
        column = column.flatten()
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        return None
    if column.null_count and pa.types.is_boolean(kind):
        return None
    if column.null_count:
        column = column.cast(pa.float64())
    flat: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return flat.reshape(shape)


def _joined(parts: list[Values], text: bool) -> Values:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if arrays and len(arrays) == len(parts) and len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    values = [value for part in parts for value in (part.tolist() if isinstance(part, np.ndarray) else part)]
    return _numbers(values, _parsed if text else _plain)


def _numbers(values: list[Any], read: Callable[[Any], float | None]) -> Values:
    """As an array when every value that is there is a number, or a list of so many numbers; else as it is."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, list) for value in there):
        return _stacked(values) if len(there) == len(values) else values
    if there and all(isinstance(value, bool) for value in there):
        return np.array(values, bool) if len(there) == len(values) else values
    numbers = [np.nan if value is None else read(value) for value in values]
    return np.array(numbers, np.float64) if there and None not in numbers else values


def _stacked(values: list[list[Any]]) -> Values:
    try:
        array = np.array(values)
    except ValueError:  # lists of different lengths
        return values
    return array if array.dtype.kind in "biuf" else values


def _plain(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, bool | int | float) else None
    except OverflowError:
        return None


def _parsed(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _bytes(values: Values) -> int:
    if isinstance(values, np.ndarray):
        return values.nbytes
    sized = (
        len(value) * (_PER_VALUE if isinstance(value, list) else 1) for value in values if hasattr(value, "__len__")
    )
    return _PER_VALUE * len(values) + sum(sized)
