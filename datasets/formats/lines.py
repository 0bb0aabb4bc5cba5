"""Text files as lines. A line belongs to the range of bytes it begins in, so a shard need not know what lies before it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import ANY_CUTS, Block, unreadable

READ_BYTES = 2 << 20
LONGEST_LINE = 64 << 20
SAMPLE_BYTES = 1 << 20


def text_layout(file: InputFile, row_bytes: int, whole: bool = False) -> list[Block]:
    """One block that may be cut anywhere; not at all when it is to be read `whole` or is compressed."""
    if not file.size:
        return []
    rows = file.size // max(1, row_bytes)
    if whole or is_compressed(file):
        return [Block(0, TO_THE_END, rows, file.size)]
    return [Block(0, file.size, rows, file.size, ANY_CUTS)]


def is_compressed(file: InputFile) -> bool:
    return file.path.lower().endswith(".gz")


def head(file: InputFile) -> bytes:
    """The first whole lines of a file, about a mebibyte of them at most."""
    with _opened(file) as handle:
        data: bytes = handle.read(SAMPLE_BYTES)
        rest: bytes = handle.read(1)
    if not rest or b"\n" not in data:
        return data + rest
    return data[: data.rindex(b"\n") + 1]


def blocks(file: InputFile, first: int, last: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in the range, whole, some mebibytes at a time, each time with the byte at which they begin."""
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
    """How many bytes of `data`, which begins at byte `start`, belong to lines that begin before byte `end`."""
    if start >= end:
        return 0
    newline = data.find(b"\n", max(0, end - start - 1))
    return len(data) if newline < 0 else newline + 1


def _first_line(handle: Any, first: int) -> tuple[int, bytes]:
    """The byte at which the first line at or after byte `first` begins, and what has been read from there on."""
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
