"""Cutting a shard of any format into parts of about equally many rows, down to a single row.

Planning cuts only where a file's footer or beginning allows it. Here the file is read if need be, to find where its rows begin:
so a row that kills its process can be isolated in a compressed file too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from forebay.contract.requests.batch import TO_THE_END, BatchRequest, Piece, Shard
from forebay.datasets.formats.source import Chunk, get_source
from forebay.datasets.reading.rows import columns_read

Reading: TypeAlias = Callable[[Iterator[Chunk]], Iterator[Chunk]]

MAX_POSITIONS = 1 << 20  # kept in memory; of more, every second one is kept, and so on


def cut(request: BatchRequest, shard: Shard, ways: int, reading: Reading = iter) -> list[Shard]:
    """The shard in up to `ways` parts, in order; only itself when it holds one row or none.

    The chunks that are read pass through `reading`. Raises InvalidInput or OSError when the file cannot be read.
    """
    pieces = shard.pieces
    if len(pieces) > 1:
        bounds = _bounds(len(pieces), ways)
        return [_slice(shard, pieces[a:b], (b - a) / len(pieces)) for a, b in pairwise(bounds)]
    [piece] = pieces
    if get_source(request.format).locator == "row" and piece.last != TO_THE_END:
        rows = piece.last - piece.first
        starts = [piece.first + at for at in _bounds(rows, ways)[:-1]]
    else:
        positions, rows = _positions(request, piece, reading)
        starts = [piece.first, *(int(positions[at]) for at in _bounds(len(positions), ways)[1:-1])]
    ends = [*starts[1:], piece.last]
    parts = [Piece(piece.file, first, last) for first, last in zip(starts, ends, strict=True)]
    rows, size = -(-rows // len(parts)), -(-shard.bytes // len(parts))
    return [Shard((part,), rows, size) for part in parts]


def _bounds(count: int, ways: int) -> list[int]:
    """0 and the end of each part: as even as possible, and no part is empty."""
    return list(dict.fromkeys(round(i * count / ways) for i in range(ways + 1))) if count else [0, 0]


def _slice(shard: Shard, pieces: Sequence[Piece], share: float) -> Shard:
    return Shard(tuple(pieces), max(1, round(shard.rows * share)), round(shard.bytes * share))


def _positions(request: BatchRequest, piece: Piece, reading: Reading) -> tuple[NDArray[np.int64], int]:
    """Positions of a piece's rows, evenly spaced if there are very many, and how many rows it has."""
    source = get_source(request.format)
    found: list[NDArray[np.int64]] = []
    rows, step = 0, 1
    for chunk in reading(source.read(request.files[piece.file], piece.first, piece.last, columns_read(request))):
        where = chunk.where if piece.last == TO_THE_END else chunk.where[chunk.where < piece.last]
        found.append(where[-rows % step :: step])
        rows += len(where)
        if len(where) < len(chunk):
            break
        if sum(map(len, found)) > MAX_POSITIONS:
            found, step = [np.concatenate(found)[::2]], 2 * step
    return (np.concatenate(found) if found else np.zeros(0, np.int64)), rows
