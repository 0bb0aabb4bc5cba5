"""Text files as lines: a range of bytes owns the lines that begin in it, so that shards need not know what lies before them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import unreadable
from forebay.datasets.planning.shards import Block

READ_BYTES = 2 << 20
LONGEST_LINE = 64 << 20
SAMPLE_BYTES = 1 << 20
ANY_CUTS = 1 << 30


def text_layout(file: InputFile, row_bytes: int, whole: bool = False) -> list[Block]:
    """One block, cut anywhere; not at all with `whole` or when the file is compressed."""
    if not file.size:
        return []
    rows = file.size // max(1, row_bytes)
    if whole or is_compressed(file):
        return [Block(0, TO_THE_END, rows, file.size)]
    return [Block(0, file.size, rows, file.size, ANY_CUTS)]


def is_compressed(file: InputFile) -> bool:
    """Whether the file can only be read from its start."""
    return file.path.lower().endswith(".gz")


def head(file: InputFile) -> bytes:
    """The first whole lines of a file, up to about a mebibyte; all of it when it is small."""
    with _opened(file) as handle:
        data: bytes = handle.read(SAMPLE_BYTES)
        rest: bytes = handle.read(1)
    if not rest or b"\n" not in data:
        return data + rest
    return data[: data.rindex(b"\n") + 1]


def blocks(file: InputFile, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Whole lines that begin in the range, some mebibytes at a time, each with the byte of the file it begins at."""
    with _opened(file) as handle:
        start, left = _first_line(handle, first)
        end = file.size if last == TO_THE_END else last
        while True:
            data = handle.read(READ_BYTES)
            left += data
            if not data:
                break
            cut = left.rfind(b"\n") + 1
            if not cut and len(left) > LONGEST_LINE:
                raise InvalidInput(f"{file.path}: the line at byte {start} is longer than {LONGEST_LINE} bytes")
            if not is_compressed(file) and start + cut >= end:
                break
            if cut:
                yield start, left[:cut]
                start, left = start + cut, left[cut:]
        if not is_compressed(file):
            left = left[: _length_of_owned(left, start, end)]
        if left:
            yield start, left


def _length_of_owned(data: bytes, start: int, end: int) -> int:
    """How much of `data`, which begins at byte `start`, belongs to lines that begin before byte `end`."""
    if start >= end:
        return 0
    newline = data.find(b"\n", max(0, end - start - 1))
    return len(data) if newline < 0 else newline + 1


def _first_line(handle: Any, first: int) -> tuple[int, bytes]:
    """Where the first line at or behind byte `first` begins, and what of it has been read."""
    if first <= 0:
        return 0, b""
    handle.seek(first - 1)
    skipped = 0
    while data := handle.read(READ_BYTES):
        newline = data.find(b"\n")
        if newline >= 0:
            return first - 1 + skipped + newline + 1, data[newline + 1 :]
        skipped += len(data)
    return first - 1 + skipped, b""


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    try:
        with open_file(file.path) as handle:
            yield gzip.GzipFile(fileobj=handle) if is_compressed(file) else handle
    except (gzip.BadGzipFile, EOFError) as error:
        raise unreadable(file.path, "a gzip file", error) from error
