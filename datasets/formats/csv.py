"""CSV with a header line. Every value is read as text and converted later, so that a bad value spoils only its row.

What a record is says csv_records.py. pyarrow parses what was found there, and the two must count the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats import lines
from forebay.datasets.formats.csv_records import scan_csv
from forebay.datasets.formats.source import CHUNK_ROWS, Block, Chunk, Sample, Size, unreadable

_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True, slots=True)
class Head:
    """A file's columns, its delimiter, and the byte behind the header."""

    names: tuple[str, ...]
    delimiter: str
    ends: int

    @property
    def scan(self) -> lines.Scan:
        return partial(scan_csv, delimiter=self.delimiter)


class Csv:
    locator = "offset"

    def sample(self, file: InputFile) -> Sample:
        if not file.size:
            return Sample({}, empty=True)
        head = _head(file)
        for block in lines.blocks(file, head.ends, TO_THE_END, head.scan, lines.SAMPLE_BYTES):
            if len(block.records.starts):
                return Sample(dict.fromkeys(head.names), False, len(block.data) // len(block.records.starts))
        return Sample(dict.fromkeys(head.names), empty=True)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns
        return self._compressed(file) if lines.is_compressed(file) else lines.whole_file(file, row_bytes)

    def counted(self, file: InputFile, first: int, size: Size) -> Iterator[Block]:
        if lines.is_compressed(file):
            yield from self._compressed(file)
        elif file.size:
            head = _head(file)
            yield from lines.counted(file, max(first, head.ends), size, head.scan)

    def _compressed(self, file: InputFile) -> list[Block]:
        if not file.size:
            return []
        head = _head(file)
        return lines.compressed_file(file, head.ends, head.scan)

    def starts(self, file: InputFile, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        if file.size:
            head = _head(file)
            yield from lines.starts(file, max(first, head.ends), last, head.scan)

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        if not file.size:
            return
        head = _head(file)
        indices = [_index(file, head, name) for name in columns]
        for block in lines.blocks(file, max(first, head.ends), last, head.scan):
            if len(block.records.starts):
                yield from _chunks(file, block, head, dict(zip(columns, indices, strict=True)))


def _head(file: InputFile) -> Head:
    for at, data, final in lines.beginnings(file):
        headers = [header for delimiter in _DELIMITERS if (header := _header(data, final, delimiter)) is not None]
        if headers:
            return _named(file, at, *max(headers, key=lambda header: _fields(header[1], header[2])))
    raise InvalidInput(f"{shown(file.path)} cannot be read as CSV: it does not begin with a header line")


def _header(data: bytes, final: bool, delimiter: str) -> tuple[int, bytes, str] | None:
    """The byte behind the first record, the record, and the delimiter; None when it is not whole."""
    records = scan_csv(data, final, delimiter)
    if not len(records.starts):
        return None
    ends = int(records.starts[1]) if len(records.starts) > 1 else records.end
    return ends, data[int(records.starts[0]) : ends], delimiter


def _fields(header: bytes, delimiter: str) -> int:
    return len(_values(header.decode("latin-1"), delimiter))


def _named(file: InputFile, at: int, ends: int, header: bytes, delimiter: str) -> Head:
    try:
        names = _values(header.decode(), delimiter)
    except UnicodeDecodeError as error:
        found = f"its header is not UTF-8 (byte 0x{header[error.start]:02x}: {shown(header.decode('latin-1').strip()[:80])})"
        raise InvalidInput(f"{shown(file.path)} cannot be read as CSV: {found}; save it as UTF-8") from error
    except csv.Error as error:
        raise unreadable(file.path, "CSV", error) from error
    if not any(name.strip() for name in names):
        raise InvalidInput(f"{shown(file.path)} cannot be read as CSV: it does not begin with a header line")
    return Head(tuple(names), delimiter, at + ends)


def _values(record: str, delimiter: str) -> list[str]:
    return next((row for row in csv.reader(io.StringIO(record, newline=""), delimiter=delimiter) if row), [])


def _index(file: InputFile, head: Head, name: str) -> int:
    if head.names.count(name) != 1:
        what = "there is no" if name not in head.names else f"there are {head.names.count(name)} columns"
        raise InvalidInput(f"{shown(file.path)}: {what} {'column ' if name not in head.names else ''}{shown(name)}")
    return head.names.index(name)


def _chunks(file: InputFile, block: lines.TextBlock, head: Head, columns: Mapping[str, int]) -> Iterator[Chunk]:
    data, starts = block.data, block.records.starts
    ends = np.append(starts[1:], len(data))
    bad = dict(block.records.bad)
    for i in () if _is_utf8(data) else range(len(starts)):
        if not _is_utf8(data[starts[i] : ends[i]]):
            bad[i] = InvalidInput("the line is not UTF-8")
    good = np.delete(np.arange(len(starts)), list(bad))
    text = b"".join(data[a:b] for a, b in zip(starts[good], ends[good], strict=True)) if bad else data
    table, refused = _parse(text, head, list(columns.values()), block.records.multiline)
    if table.num_rows + len(refused) != len(good):
        counts = f"{len(good)} records were found, {table.num_rows + len(refused)} parsed"
        raise InvalidInput(f"{shown(file.path)}: from byte {block.at} to byte {block.at + len(data)} {counts}")
    bad |= {int(good[i]): error for i, error in refused.items()}
    kept = np.delete(np.arange(len(starts)), list(bad))
    where = block.at + starts
    for i in range(0, len(starts), CHUNK_ROWS):
        span = slice(i, min(i + CHUNK_ROWS, len(starts)))
        named = {name: _aligned(table.column(k), kept, span) for k, name in enumerate(columns)}
        yield Chunk(named, where[span], {row - i: e for row, e in bad.items() if i <= row < span.stop})


def _is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode()) or True
    except UnicodeDecodeError:
        return False


def _parse(text: bytes, head: Head, columns: Sequence[int], multiline: bool) -> tuple[pa.Table, dict[int, Exception]]:
    """The rows that have as many values as the header, and the errors of the other rows by number."""
    refused: dict[int, Exception] = {}

    def refuse(row: Any) -> str:
        reason = f"the line has {row.actual_columns} values, the header {row.expected_columns}"
        refused[row.number - 1] = InvalidInput(reason)
        return "skip"

    names = [str(i) for i in range(len(head.names))]  # its own names may be used twice
    wanted = [names[i] for i in columns]
    table = pacsv.read_csv(
        pa.BufferReader(text or b"\n"),
        pacsv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=names),
        pacsv.ParseOptions(delimiter=head.delimiter, newlines_in_values=multiline, invalid_row_handler=refuse),
        pacsv.ConvertOptions(
            include_columns=wanted,
            column_types=dict.fromkeys(wanted, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
            check_utf8=False,  # it was looked at before
        ),
    )
    return table, refused


def _aligned(column: pa.ChunkedArray, kept: NDArray[np.int64], span: slice) -> pa.Array:
    """A column's values at the rows of `span`; null where a row could not be parsed."""
    first, last = np.searchsorted(kept, [span.start, span.stop])
    values = column.slice(first, last - first).combine_chunks()
    if last - first == span.stop - span.start:
        return values
    indices = np.zeros(span.stop - span.start, np.int64)
    missing = np.ones(len(indices), bool)
    rows = kept[first:last] - span.start
    indices[rows], missing[rows] = np.arange(last - first), False
    return values.take(pa.array(indices, mask=missing))
