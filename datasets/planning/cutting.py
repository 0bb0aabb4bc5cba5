"""Cutting a shard into parts of about as many rows each, at the beginnings of rows: whatever the format, down to a single row.

Planning cuts by what a file tells of itself, and some it cannot cut at all. Here the file is read where only reading tells
where its rows begin, so that a row that kills its process can be found in a compressed file too.
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

MOST_PLACES = 1 << 20  # beginnings of rows kept in memory; of more, every second one, and so on


def cut(request: BatchRequest, shard: Shard, ways: int, reading: Reading = iter) -> list[Shard]:
    """The shard in up to `ways` parts, in order; itself alone when it holds one row, or none. `reading` watches over the
    chunks as they come.

    Raises InvalidInput or OSError when its file cannot be read.
    """
    pieces = shard.pieces
    if len(pieces) > 1:
        bounds = _bounds(len(pieces), ways)
        return [_share(shard, pieces[a:b], (b - a) / len(pieces)) for a, b in pairwise(bounds)]
    [piece] = pieces
    if get_source(request.format).locator == "row" and piece.last != TO_THE_END:
        rows = piece.last - piece.first
        starts = [piece.first + at for at in _bounds(rows, ways)[:-1]]
    else:
        places, rows = _places(request, piece, reading)
        starts = [piece.first, *(int(places[at]) for at in _bounds(len(places), ways)[1:-1])]
    ends = [*starts[1:], piece.last]
    parts = [Piece(piece.file, first, last) for first, last in zip(starts, ends, strict=True)]
    rows, size = -(-rows // len(parts)), -(-shard.bytes // len(parts))
    return [Shard((part,), rows, size) for part in parts]


def _bounds(count: int, ways: int) -> list[int]:
    """0, and up to where each part goes: evenly, and never an empty part."""
    return list(dict.fromkeys(round(i * count / ways) for i in range(ways + 1))) if count else [0, 0]


def _share(shard: Shard, pieces: Sequence[Piece], share: float) -> Shard:
    return Shard(tuple(pieces), max(1, round(shard.rows * share)), round(shard.bytes * share))


def _places(request: BatchRequest, piece: Piece, reading: Reading) -> tuple[NDArray[np.int64], int]:
    """Where rows of a piece begin, evenly chosen when they are very many; and how many rows it has."""
    source = get_source(request.format)
    found: list[NDArray[np.int64]] = []
    rows, step = 0, 1
    for chunk in reading(source.read(request.files[piece.file], piece.first, piece.last, columns_read(request))):
        where = chunk.where if piece.last == TO_THE_END else chunk.where[chunk.where < piece.last]
        found.append(where[-rows % step :: step])
        rows += len(where)
        if len(where) < len(chunk):
            break
        if sum(map(len, found)) > MOST_PLACES:
            found, step = [np.concatenate(found)[::2]], 2 * step
    return (np.concatenate(found) if found else np.zeros(0, np.int64)), rows
