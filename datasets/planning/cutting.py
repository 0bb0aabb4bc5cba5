"""Cutting a shard of any format into parts of about equally many rows, down to a single row.

Planning cuts only where a file's footer or beginning allows it. Here the file is read if need be, to find where its rows begin:
so a row that kills its process can be isolated in a compressed file too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from forebay.contract.requests.batch import TO_THE_END, UNKNOWN, BatchRequest, Piece, Shard
from forebay.datasets.formats.lines import is_compressed
from forebay.datasets.formats.source import get_source, get_text_source
from forebay.datasets.reading.rows import columns_read

T = TypeVar("T")


class Reading(Protocol):
    """Gives what it is given, in its own time."""

    def __call__(self, read: Iterator[T], /) -> Iterator[T]: ...


MOST_BYTES = 64 << 20  # read to find the middle of a piece
MAX_POSITIONS = 1 << 20  # kept in memory; of more, every second one is kept, and so on


def cut(request: BatchRequest, shard: Shard, ways: int, reading: Reading = iter) -> list[Shard]:
    """The shard in up to `ways` parts, in order; only itself when it holds one row or none.

    What is read passes through `reading`. Raises InvalidInput or OSError when the file cannot be read.
    """
    pieces = shard.pieces
    if len(pieces) > 1:
        bounds = _bounds(len(pieces), ways)
        return [_slice(shard, pieces[a:b], (b - a) / len(pieces)) for a, b in pairwise(bounds)]
    [piece] = pieces
    text = get_text_source(request.format)
    if text is None and piece.last != TO_THE_END:
        bounds = [piece.first + at for at in _bounds(piece.last - piece.first, ways)]
        rows = [b - a for a, b in pairwise(bounds)]
    else:
        bounds, rows = _found(request, piece, ways, reading)
    if text is not None and piece.last != TO_THE_END and sum(rows) != piece.rows and piece.counted:
        return [shard]
    parts = [
        Piece(piece.file, first, last, UNKNOWN if text is None else count)
        for (first, last), count in zip(pairwise(bounds), rows, strict=True)
    ]
    return [Shard((part,), count, -(-shard.bytes // len(parts))) for part, count in zip(parts, rows, strict=True)]


def middle(request: BatchRequest, piece: Piece, last_read: int | None) -> tuple[int, int] | None:
    """Where a row begins about the middle of what was not read of a piece, and how many rows lie between what was read and it.

    None when no row can be found there without reading too much.
    """
    source, file = get_text_source(request.format), request.files[piece.file]
    begin = piece.first if last_read is None else last_read + 1
    half = (begin + piece.last + 1) // 2
    if source is None:
        return (half, half - begin) if begin < half < piece.last else None
    if is_compressed(file):
        return None
    half, rows = min(half, begin + MOST_BYTES), 0
    for found in source.starts(file, piece.first if last_read is None else last_read, piece.last):
        unread = found[found >= begin]
        at = max(int(np.searchsorted(unread, half)), 1 - rows)  # one at least is kept
        if at < len(unread):
            return int(unread[at]), rows + at
        rows += len(unread)
    return None


def _bounds(count: int, ways: int) -> list[int]:
    """0 and the end of each part: as even as possible, and no part is empty."""
    return list(dict.fromkeys(round(i * count / ways) for i in range(ways + 1))) if count else [0, 0]


def _slice(shard: Shard, pieces: Sequence[Piece], share: float) -> Shard:
    return Shard(tuple(pieces), max(1, round(shard.rows * share)), round(shard.bytes * share))


def _found(request: BatchRequest, piece: Piece, ways: int, reading: Reading) -> tuple[list[int], list[int]]:
    """Where parts of about equally many rows begin, then where the last one ends; and how many rows each has."""
    found: list[NDArray[np.int64]] = []
    rows, step = 0, 1
    for where in reading(_starts(request, piece)):
        found.append(where[-rows % step :: step])
        rows += len(where)
        if sum(map(len, found)) > MAX_POSITIONS:
            found, step = [np.concatenate(found)[::2]], 2 * step
    positions = np.concatenate(found) if found else np.zeros(0, np.int64)
    inner = _bounds(len(positions), ways)[1:-1]
    counts = [at * step for at in inner]
    return (
        [piece.first, *(int(positions[at]) for at in inner), piece.last],
        [b - a for a, b in pairwise([0, *counts, rows])],
    )


def _starts(request: BatchRequest, piece: Piece) -> Iterator[NDArray[np.int64]]:
    """Where the rows of a piece begin; what they hold is decoded only if the format allows nothing else."""
    file, text = request.files[piece.file], get_text_source(request.format)
    if text is not None:
        yield from text.starts(file, piece.first, piece.last)
        return
    for chunk in get_source(request.format).read(file, piece.first, piece.last, columns_read(request)):
        yield chunk.where
