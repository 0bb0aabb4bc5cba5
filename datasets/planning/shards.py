"""Cutting a data set into shards by rows and bytes, along the blocks its files are made of.

A shard takes whole blocks as long as they fit, so small files share one. A block that is too large is cut, but only as often
as it allows: to begin inside a Parquet row group, a reader must decode what lies before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import ceil

from forebay.contract.requests.batch import TO_THE_END, UNKNOWN, Piece, Position, Shard
from forebay.datasets.formats.source import Block, Size

MAX_PIECES = 1024


Layout = Callable[[int, int], Iterable[Block]]  # the blocks of a file, at least those behind a unit


def shards(layout: Layout, files: int, position: Position, size: Size) -> Iterator[tuple[Shard, Position]]:
    """The shards from `position` on, each with the position after it; `layout` gives a file's blocks in order."""
    builder = _ShardBuilder(position)
    for file in range(position.file, files):
        first = position.first if file == position.file else 0
        for whole in layout(file, first):
            rest = _from(whole, first)
            while rest is not None:
                if not builder.fits(rest, size):
                    yield builder.build()
                taken, left = (rest, None) if builder.pieces else _cut(whole, rest, size)
                builder.add(file, taken)
                rest = left
                if rest is not None or builder.full(size):
                    yield builder.build()
        builder.end_file(file)
    if builder.pieces:
        yield builder.build()


class _ShardBuilder:
    def __init__(self, position: Position) -> None:
        self.pieces: list[Piece] = []
        self.rows = self.bytes = 0
        self._position = position

    def fits(self, block: Block, size: Size) -> bool:
        if not self.pieces:
            return True
        room = self.rows + block.rows <= size.rows and self.bytes + block.bytes <= size.bytes
        return room and len(self.pieces) < MAX_PIECES

    def full(self, size: Size) -> bool:
        return bool(self.pieces) and (self.rows >= size.rows or self.bytes >= size.bytes)

    def add(self, file: int, block: Block) -> None:
        last = self.pieces[-1] if self.pieces else None
        rows = block.rows if block.counted else UNKNOWN
        if last is not None and last.file == file and last.last == block.first:
            self.pieces[-1] = Piece(file, last.first, block.last, last.rows + rows if block.counted else UNKNOWN)
        else:
            self.pieces.append(Piece(file, block.first, block.last, rows))
        self.rows += block.rows
        self.bytes += block.bytes
        self._position = Position(file + 1) if block.last == TO_THE_END else Position(file, block.last)

    def end_file(self, file: int) -> None:
        self._position = Position(file + 1)

    def build(self) -> tuple[Shard, Position]:
        made = Shard(tuple(self.pieces), self.rows, self.bytes), self._position
        self.pieces, self.rows, self.bytes = [], 0, 0
        return made


def _from(block: Block, first: int) -> Block | None:
    """What of the block lies at or behind `first`; None when it ends before."""
    if block.last == TO_THE_END or first <= block.first:
        return block
    return _slice(block, first, block.last) if first < block.last else None


def _cut(whole: Block, rest: Block, size: Size) -> tuple[Block, Block | None]:
    """What one shard takes of `rest`, and what is left; the cuts are as even as possible."""
    if whole.last == TO_THE_END or whole.cuts < 2:
        return rest, None
    units = rest.last - rest.first
    wanted = ceil(max(rest.rows / size.rows, rest.bytes / size.bytes if rest.bytes > size.bytes else 0))
    step = max(ceil(units / max(1, wanted)), ceil((whole.last - whole.first) / whole.cuts))
    if step >= units:
        return rest, None
    middle = rest.first + step
    return _slice(rest, rest.first, middle), _slice(rest, middle, rest.last)


def _slice(block: Block, first: int, last: int) -> Block:
    share = (last - first) / (block.last - block.first)
    return replace(block, first=first, last=last, rows=ceil(block.rows * share), bytes=ceil(block.bytes * share))
