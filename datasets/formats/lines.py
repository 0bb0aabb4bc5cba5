"""Text files as records, whatever ends a record: whole records are read, counted and planned by the same scan of the same bytes.

A range of bytes always begins and ends where a record does, so that no reader guesses. A compressed file is read from its
beginning, and by one shard.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import Block, Size, unreadable

READ_BYTES = 2 << 20
COUNTED_BYTES = 4 << 20  # of text: a compressed file that holds no more is counted when it is planned
LONGEST_RECORD = 64 << 20
SAMPLE_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_LF = ord("\n")


@dataclass(frozen=True, slots=True)
class Records:
    """The records in some bytes: where each begins, and the byte behind the last whole one.

    `open_at` is where a quote was opened that is not closed in them, or None; `multiline` whether a record holds line breaks;
    `bad` the errors of records by number.
    """

    starts: NDArray[np.int64]
    end: int
    open_at: int | None = None
    multiline: bool = False
    bad: Mapping[int, Exception] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextBlock:
    """Whole records: the byte at which they begin in the file, their bytes, and the records in them."""

    at: int
    data: bytes
    records: Records


# Finds the records in bytes that begin with one; `final` when nothing follows, so that the last one is whole without a line end.
Scan: TypeAlias = Callable[[bytes, bool], Records]


def is_compressed(file: InputFile) -> bool:
    return file.path.lower().endswith(".gz")


def whole_file(file: InputFile, row_bytes: int) -> list[Block]:
    """A block for all of a file that is not compressed, with a guess at its rows."""
    return [Block(0, TO_THE_END, file.size // max(1, row_bytes), file.size)] if file.size else []


def compressed_file(file: InputFile, first: int, scan: Scan) -> list[Block]:
    """A block for all of a compressed file: counted if it is small, else its rows are judged by its beginning."""
    rows = 0
    with _opened(file) as handle:
        for block in _blocks(handle, file, first, TO_THE_END, scan, READ_BYTES):
            rows += len(block.records.starts)
            if handle.tell() >= COUNTED_BYTES:
                share = min(1.0, handle.fileobj.tell() / file.size)  # of the file was read for these rows
                share *= (block.at + len(block.data)) / handle.tell()
                return [Block(0, TO_THE_END, max(rows, round(rows / share)), file.size)]
    return [Block(0, TO_THE_END, rows, file.size, counted=True)] if rows else []


def counted(file: InputFile, first: int, size: Size, scan: Scan) -> Iterator[Block]:
    """Blocks of counted records from byte `first` on, each as large as `size` allows."""
    begin, rows = first, 0
    for block in blocks(file, first, TO_THE_END, scan):
        places = block.at + block.records.starts
        while len(places):
            fit = min(size.rows - rows, int(np.searchsorted(places, begin + size.bytes)))
            fit = fit if rows else max(1, fit)
            rows += min(fit, len(places))
            if fit >= len(places):
                break
            cut = int(places[fit])
            yield Block(begin, cut, rows, cut - begin, counted=True)
            begin, rows, places = cut, 0, places[fit:]
    if rows:
        yield Block(begin, file.size, rows, file.size - begin, counted=True)


def starts(file: InputFile, first: int, last: int, scan: Scan) -> Iterator[NDArray[np.int64]]:
    """Where the records of a range begin."""
    for block in blocks(file, first, last, scan):
        yield block.at + block.records.starts


def beginnings(file: InputFile) -> Iterator[tuple[int, bytes, bool]]:
    """The file's first bytes, more of them each time: the byte after the mark of UTF-8, if any, what follows, and whether that
    is all.
    """  # fmt: skip
    size, data = 1 << 16, b""
    with _opened(file) as handle:
        while len(data) <= LONGEST_RECORD:
            more = handle.read(size)
            data += more
            at = _text_begins(file, data)
            yield at, data[at:], not more
            if not more:
                return
            size = len(data)


def blocks(file: InputFile, first: int, last: int, scan: Scan, step: int = 0) -> Iterator[TextBlock]:
    """The records of a range, some mebibytes at a time.

    InvalidInput when the range does not end where a record does, or the file has not the size it had at submit.
    """
    with _opened(file) as handle:
        yield from _blocks(handle, file, first, last, scan, step or READ_BYTES)


def _blocks(handle: Any, file: InputFile, first: int, last: int, scan: Scan, step: int) -> Iterator[TextBlock]:
    end = file.size if last == TO_THE_END and not is_compressed(file) else last
    if first:
        handle.seek(first)
    at, held, size = first, b"", step
    while True:
        left = size if end == TO_THE_END else min(max(size, 4), end - at - len(held))
        data = handle.read(left) if left > 0 else b""
        if not at and not held:
            at = _text_begins(file, data)
            data = data[at:]
        held += data
        final = not data or at + len(held) == end
        found = scan(held, final)
        _check(file, at, held, found, final, end)
        if found.end:
            yield TextBlock(at, held[: found.end], found)
        if final:
            break
        at, held = at + found.end, held[found.end :]
        size = max(step, len(held))
    if end == file.size and not is_compressed(file) and handle.read(1):
        raise InvalidInput(f"{shown(file.path)} has grown: it had {file.size} bytes when it was submitted")


def _check(file: InputFile, at: int, data: bytes, found: Records, final: bool, end: int) -> None:
    where = shown(file.path)
    if final and end != TO_THE_END and at + len(data) < end:
        raise InvalidInput(f"{where} ends at byte {at + len(data)}: it was longer when it was submitted")
    opened = None if found.open_at is None else at + found.open_at
    if final and opened is not None:
        raise InvalidInput(f"{where}: the quote at byte {opened} is not closed: all that follows would be one value")
    if len(data) - found.end > LONGEST_RECORD:
        why = "" if opened is None else f"; the quote at byte {opened} is not closed in it"
        raise InvalidInput(f"{where}: the record at byte {at + found.end} is longer than {LONGEST_RECORD} bytes{why}")


def _text_begins(file: InputFile, data: bytes) -> int:
    """The first byte of the text, which a mark of UTF-8 may precede; InvalidInput for UTF-16."""
    if data.startswith(_UTF16) or b"\0" in data[:2]:
        raise InvalidInput(f"{shown(file.path)} is not UTF-8 but looks like UTF-16; save it as UTF-8")
    return len(BOM) if data.startswith(BOM) else 0


def scan_lines(data: bytes, final: bool) -> Records:
    """Lines, ended by LF. One of JSON's white space only is none."""
    return whole(data, np.flatnonzero(np.frombuffer(data, np.uint8) == _LF) + 1, final, b" \t\r\n")


def whole(data: bytes, ends: NDArray[np.int64], final: bool, blank: bytes) -> Records:
    """The records that end before `ends`, and what is left if it is `final`, but none of `blank` bytes only."""
    if final and len(data) > (ends[-1] if len(ends) else 0):
        ends = np.append(ends, len(data))
    if not len(ends):
        return Records(np.zeros(0, np.int64), 0)
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    may_be = np.zeros(256, bool)
    may_be[list(blank)] = True
    suspects = np.flatnonzero(may_be[np.frombuffer(data, np.uint8)[starts]])
    none = [i for i in suspects.tolist() if not data[starts[i] : ends[i]].strip(blank)]
    return Records(np.delete(starts, none) if none else starts, int(ends[-1]))


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    try:
        with open_file(file.path) as handle:
            yield gzip.GzipFile(fileobj=handle) if is_compressed(file) else handle
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise unreadable(file.path, "a gzip file", error) from error
