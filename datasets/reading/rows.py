"""Reading a shard, piece by piece. Small chunks are put together, so that small files make full batches too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.references import shown
from forebay.contract.requests.batch import OPENAI, BatchRequest, Piece
from forebay.datasets.columns import Column
from forebay.datasets.formats.jsonl import CUSTOM_ID, URL
from forebay.datasets.formats.source import CHUNK_BYTES, CHUNK_ROWS, Chunk, Source, get_source
from forebay.datasets.reading.shard_range import ShardRange


class Rows(Chunk):
    """A chunk of rows from one or more files; `files` holds for each row its file's index in the request."""

    __slots__ = ("files",)

    def __init__(self, chunks: Sequence[tuple[int, Chunk]]) -> None:
        names = chunks[0][1].columns
        counts = [len(chunk) for _, chunk in chunks]
        starts = np.cumsum([0, *counts])
        super().__init__(
            {name: _concat([chunk.columns[name] for _, chunk in chunks]) for name in names},
            np.concatenate([chunk.where for _, chunk in chunks]),
            {
                int(start) + i: e
                for start, (_, chunk) in zip(starts, chunks, strict=False)
                for i, e in chunk.bad.items()
            },
        )
        self.files: NDArray[np.int64] = np.repeat([file for file, _ in chunks], counts)


def columns_read(request: BatchRequest) -> list[str]:
    """The columns that a batch reads, each once."""
    own = (CUSTOM_ID, URL) if request.format == OPENAI else ()
    inputs = (column for columns in request.columns.values() for column in columns)
    return list(dict.fromkeys([*inputs, *request.keep, *own]))


def all_pieces(request: BatchRequest) -> tuple[list[Piece], int]:
    """All there is to read, and about how many rows that is."""
    source, columns = get_source(request.format), columns_read(request)
    blocks = [
        (number, block)
        for number, file in enumerate(request.files)
        for block in source.layout(file, columns, request.row_bytes)
    ]
    return [Piece(number, block.first, block.last) for number, block in blocks], sum(block.rows for _, block in blocks)


def read_pieces(request: BatchRequest, shard_range: ShardRange, chunk_rows: int = CHUNK_ROWS) -> Iterator[Rows]:
    """The rows of a shard in order, up to `chunk_rows` at a time; InvalidInput or OSError when a file cannot be read."""
    source, columns = get_source(request.format), columns_read(request)
    held: list[tuple[int, Chunk]] = []
    rows = size = 0
    for piece, chunk in _chunks(request, source, columns, shard_range, chunk_rows):
        if held and (rows + len(chunk) > chunk_rows or not _same_types(held[-1][1], chunk)):
            yield Rows(held)
            held, rows, size = [], 0, 0
        held.append((piece.file, chunk))
        rows, size = rows + len(chunk), size + _bytes(chunk)
        if rows >= chunk_rows or size >= CHUNK_BYTES:
            yield Rows(held)
            held, rows, size = [], 0, 0
    if held:
        yield Rows(held)


def unread_pieces(shard_range: ShardRange) -> Iterator[Rows]:
    """The rows of a shard, without what is in them: reading may be what ends a process. Its units are rows, its ends known."""
    number = 0
    while (piece := shard_range.piece(number)) is not None:
        ours = shard_range.clip(number, Chunk({}, np.arange(piece.first, piece.last)))
        if ours is not None:
            yield Rows([(piece.file, ours)])
        number += 1


def _chunks(
    request: BatchRequest, source: Source, columns: Sequence[str], shard_range: ShardRange, chunk_rows: int
) -> Iterator[tuple[Piece, Chunk]]:
    number = 0
    while (piece := shard_range.piece(number)) is not None:
        read = source.read(request.files[piece.file], piece.first, piece.last, columns)
        parts = (chunk.part(at, at + chunk_rows) for chunk in read for at in range(0, len(chunk), chunk_rows))
        for part in parts:  # counted as read one at a time, so that what is decoded but not run can still be given away
            ours = shard_range.clip(number, part)
            if ours is None:
                break
            yield piece, ours
        shard_range.check(number, shown(request.files[piece.file].path))
        number += 1


def _same_types(one: Chunk, other: Chunk) -> bool:
    pairs = ((one.columns[name], other.columns[name]) for name in one.columns)
    return all(getattr(a, "type", list) == getattr(b, "type", list) for a, b in pairs)


def _bytes(chunk: Chunk) -> int:
    return sum(column.nbytes for column in chunk.columns.values() if isinstance(column, pa.Array))


def _concat(columns: Sequence[Column]) -> Column:
    if len(columns) == 1:
        return columns[0]
    if isinstance(columns[0], pa.Array):
        return pa.concat_arrays(columns)
    return [value for column in columns for value in column]
