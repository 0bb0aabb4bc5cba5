"""CSV with a header line. Every value is read as text and converted later, so that a bad value spoils only its row.

A file is cut between lines. One whose beginning has a quoted line break is read by a single shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import InputFile
from forebay.datasets.formats import lines
from forebay.datasets.formats.source import CHUNK_ROWS, Block, Chunk, Sample, unreadable

_DELIMITERS = (b",", b";", b"\t", b"|")
_QUOTE, _NEWLINE = ord('"'), ord("\n")


@dataclass(frozen=True, slots=True)
class Head:
    """What a file's beginning tells: its columns and delimiter, the byte at which the header ends, whether values hold line
    breaks, about how long a row is, and whether there is none.
    """  # fmt: skip

    names: tuple[str, ...]
    delimiter: str
    ends: int
    multiline: bool
    row_bytes: int
    empty: bool


class Csv:
    locator = "offset"

    def sample(self, file: InputFile) -> Sample:
        found = _head(file)
        return Sample(dict.fromkeys(found.names), found.empty, found.row_bytes)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns
        return lines.text_layout(file, row_bytes, whole=_head(file).multiline) if file.size else []

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        found = _head(file)
        blocks = lines.blocks(file, first, last)
        for start, data in _whole_records(blocks) if found.multiline else blocks:
            cut = max(0, found.ends - start)
            if cut < len(data):
                yield from _chunks(start + cut, data[cut:], found, columns)


def _head(file: InputFile) -> Head:
    data = lines.head(file)
    begins = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    line, newline, rest = data[begins:].partition(b"\n")
    if not line.strip():
        raise InvalidInput(f"{shown(file.path)} cannot be read as CSV: it does not begin with a header line")
    delimiter = max(_DELIMITERS, key=line.count)
    try:
        options = pacsv.ParseOptions(delimiter=delimiter.decode())
        names = pacsv.read_csv(pa.BufferReader(line + b"\n"), parse_options=options).column_names
    except pa.ArrowInvalid as error:
        raise unreadable(file.path, "CSV", error) from error
    odd = _has_odd_quotes(rest)
    rows = max(1, rest.count(b"\n") + (not rest.endswith(b"\n")))
    ends = begins + len(line) + len(newline)
    return Head(tuple(names), delimiter.decode(), ends, _is_multiline(odd), len(rest) // rows, not rest.strip())


def _has_odd_quotes(data: bytes) -> NDArray[np.bool_]:
    """For each line, whether it has an odd number of quotes."""
    if b'"' not in data:
        return np.zeros(data.count(b"\n") + (not data.endswith(b"\n")), bool)
    starts = _line_starts(data)
    quotes = (np.frombuffer(data, np.uint8) == _QUOTE).astype(np.int64)
    odd: NDArray[np.bool_] = np.add.reduceat(quotes, starts) % 2 == 1
    return odd


def _is_multiline(odd: NDArray[np.bool_]) -> bool:
    """Whether quotes left open on one line are closed on a later one: then lines with odd quotes come in pairs."""
    return bool(odd.any()) and int(odd.sum()) % 2 == 0


def _line_starts(data: bytes) -> NDArray[np.int64]:
    newlines = np.flatnonzero(np.frombuffer(data, np.uint8) == _NEWLINE)
    starts: NDArray[np.int64] = np.concatenate([np.zeros(1, np.int64), newlines + 1])
    return starts[starts < len(data)]


def _whole_records(blocks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The same blocks, joined where one would end within a quoted value."""
    held, at = b"", 0
    for start, data in blocks:
        held, at = (held + data, at) if held else (data, start)
        if held.count(b'"') % 2 == 0:
            yield at, held
            held = b""
        elif len(held) > lines.LONGEST_LINE:
            raise InvalidInput(f"a quoted value after byte {at} does not end within {lines.LONGEST_LINE} bytes")
    if held:
        yield at, held


def _chunks(start: int, data: bytes, head: Head, columns: Sequence[str]) -> Iterator[Chunk]:
    starts = _line_starts(data)
    bad: dict[int, Exception] = {}
    if head.multiline:
        starts = starts[~_inside_quotes(data, starts)]
    ends = np.append(starts[1:], len(data))
    filled = np.array([bool(data[a:b].strip()) for a, b in zip(starts, ends, strict=True)], bool)
    starts, ends = starts[filled], ends[filled]
    good = np.ones(len(starts), bool)
    if b'"' in data and len(starts):
        quotes = np.add.reduceat((np.frombuffer(data, np.uint8) == _QUOTE).astype(np.int64), starts)
        good = quotes % 2 == 0
        bad |= {int(i): InvalidInput("a quote in this line is not closed") for i in np.flatnonzero(~good)}
    for i in () if _is_utf8(data) else range(len(starts)):
        if not _is_utf8(data[starts[i] : ends[i]]):
            good[i], bad[i] = False, InvalidInput("the line is not UTF-8")
    text = data if good.all() else b"".join(data[a:b] for a, b in zip(starts[good], ends[good], strict=True))
    table, refused = _parse(text, head, columns) if good.any() else (None, {})
    places = np.flatnonzero(good)
    bad |= {int(places[i]): error for i, error in refused.items()}
    kept = np.delete(np.arange(len(starts)), list(bad))
    where = start + starts
    for i in range(0, len(starts), CHUNK_ROWS):
        span = slice(i, min(i + CHUNK_ROWS, len(starts)))
        named = {name: _aligned(table, name, kept, span) for name in columns}
        yield Chunk(named, where[span], {row - i: e for row, e in bad.items() if i <= row < span.stop})


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _inside_quotes(data: bytes, starts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each line, whether it begins within a quoted value."""
    counted = np.cumsum(np.frombuffer(data, np.uint8) == _QUOTE)
    before = np.where(starts > 0, counted[np.maximum(starts - 1, 0)], 0)
    inside: NDArray[np.bool_] = before % 2 == 1
    return inside


def _parse(text: bytes, head: Head, columns: Sequence[str]) -> tuple[pa.Table, dict[int, Exception]]:
    """The rows that have as many values as the header, and the errors of the other rows by number."""
    refused: dict[int, Exception] = {}

    def refuse(row: Any) -> str:
        reason = f"the line has {row.actual_columns} values, the header {row.expected_columns}"
        refused[row.number - 1] = InvalidInput(reason)
        return "skip"

    table = pacsv.read_csv(
        pa.BufferReader(text),
        pacsv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=list(head.names)),
        pacsv.ParseOptions(delimiter=head.delimiter, newlines_in_values=head.multiline, invalid_row_handler=refuse),
        pacsv.ConvertOptions(
            include_columns=list(columns),
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
            check_utf8=True,
        ),
    )
    return table, refused


def _aligned(table: pa.Table | None, name: str, kept: NDArray[np.int64], span: slice) -> pa.Array:
    """A column's values at the rows of `span`; null where a row could not be parsed."""
    first, last = np.searchsorted(kept, [span.start, span.stop])
    if table is None:
        return pa.nulls(span.stop - span.start, pa.string())
    values = table.column(name).slice(first, last - first).combine_chunks()
    if last - first == span.stop - span.start:
        return values
    indices = np.zeros(span.stop - span.start, np.int64)
    missing = np.ones(len(indices), bool)
    rows = kept[first:last] - span.start
    indices[rows], missing[rows] = np.arange(last - first), False
    return values.take(pa.array(indices, mask=missing))
