"""NumPy's .npy and .npz files: the first dimension of an array counts its rows. Nothing in them is unpickled."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy_format

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.contract.signature import ARRAY_DTYPES
from forebay.datasets.columns import from_numpy, nested_type
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import ANY_CUTS, CHUNK_BYTES, Block, Chunk, Sample, decoding

COLUMN = "array"  # the name of the only column of a .npy file


class Npy:
    """One array; a range of its rows is read without the rest."""

    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        with open_file(file.path) as handle:
            shape, dtype = _header(handle, file)
        return Sample({COLUMN: nested_type(dtype, shape[1:])}, 0 in shape)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns, row_bytes
        with open_file(file.path) as handle:
            shape, dtype = _header(handle, file)
        rows = shape[0]
        return [Block(0, rows, rows, rows * _row_bytes(shape, dtype), ANY_CUTS)] if rows else []

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
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
                yield Chunk(
                    {COLUMN: from_numpy(array.reshape(count, *shape[1:]))}, np.arange(at, at + count, dtype=np.int64)
                )


class Npz:
    """Arrays of numbers or of text with equally many rows. It is read whole: zip gives no way to a single row."""

    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        with _opened(file) as archive:
            arrays = {name: _array(archive, name, file) for name in archive.files}
        rows = _rows(arrays, file)
        types = {name: _column(array[:1]).type for name, array in arrays.items()}
        return Sample(types, not rows, sum(array.nbytes for array in arrays.values()) // max(1, rows))

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns
        return [Block(0, TO_THE_END, file.size // max(1, row_bytes), file.size)]

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        with _opened(file) as archive:
            missing = [name for name in columns if name not in archive.files]
            if missing:
                raise InvalidInput(f"{shown(file.path)}: there is no array {shown(missing[0])}")
            arrays = {name: _array(archive, name, file) for name in columns}
        rows = _rows(arrays, file)
        stop = rows if last == TO_THE_END else min(rows, last)
        step = max(1, CHUNK_BYTES * max(1, rows) // max(1, sum(array.nbytes for array in arrays.values())))
        for at in range(first, stop, step):
            end = min(at + step, stop)
            named = {name: _column(array[at:end]) for name, array in arrays.items()}
            yield Chunk(named, np.arange(at, end, dtype=np.int64))


def _header(handle: Any, file: InputFile) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with decoding(file.path, "a .npy array"):
        shape, fortran, dtype = _read_header(handle, file.size)
    if not _is_read(dtype):
        raise InvalidInput(f"{file.path}: expected an array of numbers of up to 64 bits, found dtype {dtype}")
    if fortran and len(shape) > 1:
        raise InvalidInput(f"{file.path}: the array is in Fortran order; save np.ascontiguousarray(array)")
    if not shape:
        raise InvalidInput(f"{file.path}: expected an array with a row for each sample, found a single number")
    return tuple(shape), dtype


def _read_header(handle: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """ValueError when the array that it announces has more bytes than the file: it would be allocated before it is read."""
    major, _ = npy_format.read_magic(handle)
    read = npy_format.read_array_header_1_0 if major == 1 else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(handle)
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header says {shape!a:.80} of {dtype}, which are more bytes than the {size} that it has")
    return shape, fortran, dtype


def _is_read(dtype: np.dtype[Any]) -> bool:
    """Whether these are numbers of up to 64 bits: not long doubles, complex numbers or objects."""
    return dtype.newbyteorder("=") in ARRAY_DTYPES.values()


def _row_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape[1:]) * dtype.itemsize


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    with (
        open_file(file.path) as handle,
        decoding(file.path, "a .npz archive"),
        np.load(handle, allow_pickle=False) as archive,
    ):
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InvalidInput(f"{shown(file.path)} is not a .npz archive")
        yield archive


def _entry(archive: Any, name: str) -> Any:
    names = archive.zip.NameToInfo
    return names[name] if name in names else names[f"{name}.npy"]


def _array(archive: Any, name: str, file: InputFile) -> Any:
    with archive.zip.open(entry := _entry(archive, name)) as member:
        _read_header(member, entry.file_size)
    array = archive[name]
    if not (array.dtype.kind == "U" or _is_read(array.dtype)) or not array.ndim:
        what = "a single value" if not array.ndim else f"dtype {array.dtype}"
        raise InvalidInput(
            f"{shown(file.path)}: array {shown(name)}: expected numbers of up to 64 bits or text by rows, found {what}"
        )
    return array


def _rows(arrays: dict[str, Any], file: InputFile) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{shown(name)} has {length}" for name, length in lengths.items())
        raise InvalidInput(f"{shown(file.path)}: its arrays differ in length: {counts}")
    return next(iter(lengths.values()), 0)


def _column(array: Any) -> pa.Array:
    if array.dtype.kind == "U":
        return pa.array(array.tolist())
    return from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
