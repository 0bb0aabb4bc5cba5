"""JSON lines, plain and in the form of OpenAI's batch API: one object per line, and a bad line is a bad row.

LF ends a line, and a CR before it is white space. A line of white space is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import FIELDS
from forebay.contract.generation.openai import row_of
from forebay.contract.references import shown
from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats import lines
from forebay.datasets.formats.source import CHUNK_ROWS, Block, Chunk, Sample, Size

CUSTOM_ID, URL, INPUT = "custom_id", "url", "input"
WHOLE = "*"  # what a line asks of a language model: all of it, or the body of a request
MISSING = InvalidInput("the column is missing in this line")

_decode = msgspec.json.Decoder().decode


class JsonLines:
    locator = "offset"

    def sample(self, file: InputFile) -> Sample:
        for block in lines.blocks(file, 0, TO_THE_END, lines.scan_lines, lines.SAMPLE_BYTES):
            records = [record for _, record in _records(block) if not isinstance(record, Exception)]
            if records:
                names = dict.fromkeys(name for record in records for name in self._columns(record))
                return Sample(dict.fromkeys(names), False, len(block.data) // len(records))
            if len(block.records.starts):
                raise InvalidInput(
                    f"{shown(file.path)} cannot be read as JSON lines: none of its first lines is a JSON object"
                )
        return Sample({}, empty=True)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns
        if lines.is_compressed(file):
            return lines.compressed_file(file, 0, lines.scan_lines) if file.size else []
        return lines.whole_file(file, row_bytes)

    def counted(self, file: InputFile, first: int, size: Size) -> Iterator[Block]:
        if lines.is_compressed(file):
            return iter(self.layout(file, (), 0))
        return lines.counted(file, first, size, lines.scan_lines)

    def starts(self, file: InputFile, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        return lines.starts(file, first, last, lines.scan_lines)

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        for block in lines.blocks(file, first, last, lines.scan_lines):
            records = list(_records(block))
            for i in range(0, len(records), CHUNK_ROWS):
                yield self._chunk(records[i : i + CHUNK_ROWS], columns)

    def _columns(self, record: Mapping[str, Any]) -> Sequence[str]:
        return list(record)

    def _body(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        return record

    def _value(self, record: Mapping[str, Any], column: str) -> Any:
        return record.get(column, MISSING)

    def _fault(self, record: Mapping[str, Any]) -> Exception | None:
        del record
        return None

    def _chunk(self, records: Sequence[tuple[int, Any]], columns: Sequence[str]) -> Chunk:
        bad = {}
        for i, (_, record) in enumerate(records):
            fault = record if isinstance(record, Exception) else self._fault(record)
            if fault is not None:
                bad[i] = fault
        found = [{} if isinstance(record, Exception) else record for _, record in records]
        named = {column: [self._value(record, column) for record in found] for column in columns if column != WHOLE}
        if WHOLE in columns:
            named[WHOLE] = [_asked(self._body(record), named.keys() - FIELDS) for record in found]
        return Chunk(named, np.array([at for at, _ in records], np.int64), bad)


class OpenAI(JsonLines):
    """A request per line: `custom_id`, `method`, `url`, `body`. Its columns are custom_id, url and the fields of the body."""

    def _columns(self, record: Mapping[str, Any]) -> Sequence[str]:
        body = self._body(record)
        return [CUSTOM_ID, URL, *(name for name in body if name != "model")] if body else []

    def _body(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        body = record.get("body")
        return body if isinstance(body, Mapping) else {}

    def _value(self, record: Mapping[str, Any], column: str) -> Any:
        return record.get(column) if column in (CUSTOM_ID, URL) else self._body(record).get(column, MISSING)

    def _fault(self, record: Mapping[str, Any]) -> Exception | None:
        if not isinstance(record.get(CUSTOM_ID), str):
            return InvalidInput(f"a request needs a custom_id that is a str, got {shown(record.get(CUSTOM_ID))}")
        if not isinstance(record.get("body"), Mapping):
            return InvalidInput(f"a request needs a body that is an object, got {shown(record.get('body'))}")
        return None


def _asked(body: Mapping[str, Any], others: Collection[str]) -> dict[str, Any]:
    """What a line asks, without the columns that are read beside it."""
    return {name: value for name, value in row_of(body).items() if name not in others}


def _records(block: lines.TextBlock) -> Iterator[tuple[int, Any]]:
    """The byte that each line begins at, and its object or its error."""
    starts = block.records.starts.tolist()
    for start, end in pairwise([*starts, len(block.data)]):
        yield block.at + start, _record(block.data[start:end])


def _record(line: bytes) -> Any:
    try:
        value = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return InvalidInput(f"the line is not JSON: {error}: {shown(line[:80].decode('utf-8', 'replace'))}")
    if not isinstance(value, dict):
        return InvalidInput(f"the line is not a JSON object: {shown(line[:80].decode('utf-8', 'replace'))}")
    return value
