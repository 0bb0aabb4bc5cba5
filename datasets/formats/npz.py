""".npz archives: arrays by name, each a column; the first dimension counts the rows. Read whole: zip has no way to a row."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.npy import nested
from forebay.datasets.formats.source import CHUNK_BYTES, Chunk, Sample, unreadable
from forebay.datasets.planning.shards import Block


class Npz:
    """Arrays of numbers or of text, of equally many rows; nothing in them is unpickled."""

    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        """From the arrays themselves, which are read for it."""
        with _opened(file) as archive:
            arrays = {name: _array(archive, name, file) for name in archive.files}
        rows = _rows(arrays, file)
        types = {name: _column(array[:1]).type for name, array in arrays.items()}
        return Sample(types, not rows, sum(array.nbytes for array in arrays.values()) // max(1, rows))

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        """One block."""
        del columns
        return [Block(0, TO_THE_END, file.size // max(1, row_bytes), file.size)]

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """The rows of the range."""
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


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    try:
        with open_file(file.path) as handle, np.load(handle, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InvalidInput(f"{shown(file.path)} is no .npz archive")
            yield archive
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidInput):
            raise
        raise unreadable(file.path, "a .npz archive", error) from error


def _array(archive: Any, name: str, file: InputFile) -> Any:
    array = archive[name]
    if array.dtype.kind not in "biufU" or not array.ndim:
        what = "a single value" if not array.ndim else f"dtype {array.dtype}"
        raise InvalidInput(f"{shown(file.path)}: array {shown(name)}: expected numbers or text by rows, found {what}")
    return array


def _rows(arrays: dict[str, Any], file: InputFile) -> int:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{shown(name)} has {length}" for name, length in lengths.items())
        raise InvalidInput(f"{shown(file.path)}: every array has as many rows; here {counts}")
    return next(iter(lengths.values()), 0)


def _column(array: Any) -> pa.Array:
    if array.dtype.kind == "U":
        return pa.array(array.tolist())
    flat = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return nested(flat.reshape(-1), array.shape[1:])
