"""How far a shard has been read. Until then half of the rest can be given away, so that an idle worker shares a long shard."""

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
            self._reading, self._read_to = number, int(chunk.where[ours - 1]) + 1
            return chunk.part(0, ours)

    def halve(self, give: Callable[[Halves], bool]) -> bool:
        """Give away half of what was not read yet, unless `give` refuses; it gets both halves and the share given away."""
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
