""".npy arrays: the first dimension counts the rows, the rest is one sample; ranges are read where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import CHUNK_BYTES, Chunk, Sample, unreadable
from forebay.datasets.planning.shards import Block

COLUMN = "array"  # what the only column of such a file is called
ANY_CUTS = 1 << 30


class Npy:
    """One array; nothing in it is unpickled."""

    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        """From the header."""
        with open_file(file.path) as handle:
            shape, dtype = _header(handle, file)
        kind: Any = pa.from_numpy_dtype(dtype)
        for length in reversed(shape[1:]):
            kind = pa.list_(kind, length)
        return Sample({COLUMN: kind}, shape[0] == 0 or 0 in shape[1:])

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        """One block, cut anywhere."""
        del columns, row_bytes
        with open_file(file.path) as handle:
            shape, dtype = _header(handle, file)
        rows = shape[0]
        return [Block(0, rows, rows, rows * _row_bytes(shape, dtype), ANY_CUTS)] if rows else []

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """The rows of the range, as fixed-size lists over the bytes that were read."""
        del columns
        with open_file(file.path) as handle:
            shape, dtype = _header(handle, file)
            size = _row_bytes(shape, dtype)
            handle.seek(first * size, 1)
            step = max(1, CHUNK_BYTES // max(1, size))
            for at in range(first, last, step):
                count = min(step, last - at)
                data = handle.read(count * size)
                if len(data) < count * size:
                    raise InvalidInput(f"{file.path}: the file is shorter than its header says")
                array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
                yield Chunk({COLUMN: nested(array, shape[1:])}, np.arange(at, at + count, dtype=np.int64))


def _header(handle: Any, file: InputFile) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        major, _ = npy_format.read_magic(handle)
        read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
        shape, fortran, dtype = read(handle)
    except (ValueError, OSError) as error:
        raise unreadable(file.path, "a .npy array", error) from error
    if dtype.hasobject or dtype.kind not in "biuf":
        raise InvalidInput(f"{file.path}: expected an array of numbers, found dtype {dtype}")
    if fortran and len(shape) > 1:
        raise InvalidInput(f"{file.path}: the array is in Fortran order; save np.ascontiguousarray(array)")
    if not shape:
        raise InvalidInput(f"{file.path}: expected an array with a row for each sample, found a single number")
    return tuple(shape), dtype


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize


def nested(flat: Any, shape: tuple[int, ...]) -> pa.Array:
    """A flat array as a column whose rows have `shape`: fixed-size lists over the same bytes."""
    array = pa.array(flat)
    for length in reversed(shape):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array
