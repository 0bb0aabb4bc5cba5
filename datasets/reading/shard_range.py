"""How far a shard has been read. Until then half of the rest can be given away, so that an idle worker shares a long shard."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import TO_THE_END, UNKNOWN, Piece
from forebay.datasets.formats.source import Chunk


@dataclass(frozen=True, slots=True)
class Halves:
    """What is kept of a shard, what is given away, and the share of the whole that the latter is."""

    kept: tuple[Piece, ...]
    given: tuple[Piece, ...]
    share: float


# Of a piece of which so much was read (the last unit at which a row began, or None): where a row begins about the middle of the
# rest, and how many rows begin between the two. None when there is no such row.
Middle = Callable[[Piece, int | None], tuple[int, int] | None]


class ShardRange:
    """The pieces that a shard still covers, and how far they have been read. Thread-safe."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = tuple(pieces)
        self._reading = 0
        self._last_read: int | None = None  # in the piece that is being read: where its last row began
        self._rows = 0  # of that piece
        self._rows_before = 0  # of those before it
        self._lock = threading.Lock()

    @property
    def rows_read(self) -> int:
        """How many rows have been read in all."""
        with self._lock:
            return self._rows_before + self._rows

    def piece(self, number: int) -> Piece | None:
        """The piece at this index; None after the last one that is still ours."""
        with self._lock:
            return self._pieces[number] if number < len(self._pieces) else None

    def clip(self, number: int, chunk: Chunk) -> Chunk | None:
        """The part of a chunk of piece `number` that is still ours, or None. From now on it counts as read."""
        with self._lock:
            if number >= len(self._pieces) or not len(chunk):
                return None
            last = self._pieces[number].last
            ours = len(chunk) if last == TO_THE_END else int(np.searchsorted(chunk.where, last))
            if not ours:
                return None
            if number != self._reading:
                self._reading, self._rows_before, self._rows = number, self._rows_before + self._rows, 0
            self._last_read, self._rows = int(chunk.where[ours - 1]), self._rows + ours
            return chunk.part(0, ours)

    def check(self, number: int, path: str) -> None:
        """InvalidInput when piece `number`, which has been read to its end, had not the rows that were planned."""
        with self._lock:
            if number >= len(self._pieces):
                return
            piece, rows = self._pieces[number], self._rows if number == self._reading else 0
        unit, planned = ("bytes", piece.rows) if piece.counted else ("rows", piece.last - piece.first)
        if (piece.counted or piece.last != TO_THE_END) and rows != planned:
            raise InvalidInput(
                f"{path}: {unit} {piece.first} to {piece.last} held {planned} rows when they were planned and {rows} when they "
                "were read: the file has changed; submit the batch anew"
            )

    def halve(self, middle: Middle, give: Callable[[Halves], bool]) -> bool:
        """Give away half of what was not read yet, unless `give` refuses; `middle` may read the file."""
        with self._lock:
            number, last_read, rows, pieces = self._reading, self._last_read, self._rows, self._pieces
            if len(pieces) > number + 1:
                return self._give(_later(pieces, number), give)
        found = None if pieces[number].last == TO_THE_END else middle(pieces[number], last_read)
        if found is None:
            return False
        with self._lock:
            passed = self._reading != number or (self._last_read is not None and self._last_read >= found[0])
            if passed or self._pieces != pieces:
                return False
            return self._give(_cut(pieces, found[0], rows + found[1]), give)

    def _give(self, halves: Halves, give: Callable[[Halves], bool]) -> bool:
        if not give(halves):
            return False
        self._pieces = halves.kept
        return True


def _later(pieces: tuple[Piece, ...], reading: int) -> Halves:
    """Half of the pieces that come after the one that is being read."""
    later = len(pieces) - reading - 1
    kept = len(pieces) - (later - later // 2)
    return Halves(pieces[:kept], pieces[kept:], (len(pieces) - kept) / len(pieces))


def _cut(pieces: tuple[Piece, ...], middle: int, rows: int) -> Halves:
    """The last piece cut in two; `rows` is how many it holds before the middle."""
    *before, piece = pieces
    kept = Piece(piece.file, piece.first, middle, rows if piece.counted else UNKNOWN)
    given = Piece(piece.file, middle, piece.last, piece.rows - rows if piece.counted else UNKNOWN)
    share = (piece.last - middle) / (piece.last - piece.first) / len(pieces)
    return Halves((*before, kept), (given,), share)
