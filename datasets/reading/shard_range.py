"""Up to where a shard is read: while it is, the rest of it can be given away, so that an idle worker shares a long one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from forebay.contract.requests.batch import TO_THE_END, Piece
from forebay.datasets.formats.source import Chunk

Halves = tuple[tuple[Piece, ...], tuple[Piece, ...], float]


class ShardRange:
    """The pieces that a shard still covers, and how far they have been read. Thread-safe."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = tuple(pieces)
        self._reading = 0
        self._read_to = pieces[0].first
        self._lock = threading.Lock()

    def piece(self, number: int) -> Piece | None:
        """The piece of this number, counted from 0; None behind the last that is still ours."""
        with self._lock:
            return self._pieces[number] if number < len(self._pieces) else None

    def clip(self, number: int, chunk: Chunk) -> Chunk | None:
        """What of a chunk of piece `number` is still ours, which from now on counts as read; None when nothing is."""
        with self._lock:
            if number >= len(self._pieces) or not len(chunk):
                return None
            last = self._pieces[number].last
            ours = len(chunk) if last == TO_THE_END else int(np.searchsorted(chunk.where, last))
            if not ours:
                return None
            self._reading, self._read_to = number, int(chunk.where[ours - 1]) + 1
            return chunk.part(0, ours)

    def halve(self, give: Callable[[Halves], bool]) -> bool:
        """Give away half of what was not read yet, if `give` agrees; it gets what is kept, what is given, and its share."""
        with self._lock:
            halves = self._halves()
            if halves is None or not give(halves):
                return False
            self._pieces = halves[0]
            return True

    def _halves(self) -> Halves | None:
        begun, later = self._pieces[: self._reading + 1], self._pieces[self._reading + 1 :]
        if later:
            keep = len(later) // 2
            return begun + later[:keep], later[keep:], (len(later) - keep) / len(self._pieces)
        piece = begun[-1]
        middle = (self._read_to + piece.last + 1) // 2
        if piece.last == TO_THE_END or not self._read_to < middle < piece.last:
            return None
        kept, given = Piece(piece.file, piece.first, middle), Piece(piece.file, middle, piece.last)
        share = (piece.last - middle) / (piece.last - piece.first) / len(self._pieces)
        return (*begun[:-1], kept), (given,), share
