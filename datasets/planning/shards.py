"""Cutting a data set into shards by rows and bytes, along the blocks its files are made of. Reads no data.

A shard takes whole blocks as long as they fit, so small files share one. A block that is too large is cut, but only as often
as it allows: to begin inside a Parquet row group, a reader must decode what lies before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from forebay.contract.requests.batch import TO_THE_END, Piece, Position, Shard
from forebay.datasets.formats.source import Block

MAX_PIECES = 1024


@dataclass(frozen=True, slots=True)
class Size:
    rows: int
    bytes: int


Layout = Callable[[int], Sequence[Block]]


def shards(layout: Layout, files: int, position: Position, size: Size) -> Iterator[tuple[Shard, Position]]:
    """The shards from `position` on, each with the position after it; `layout` gives a file's blocks in order."""
    builder = _ShardBuilder(position)
    for file in range(position.file, files):
        blocks = [_from(b, position.first if file == position.file else 0) for b in layout(file)]
        for whole, begun in blocks:
            rest = begun
            while rest is not None:
                if not builder.fits(rest, size):
                    yield builder.build()
                taken, left = (rest, None) if builder.pieces else _cut(whole, rest, size)
                builder.add(file, taken)
                rest = left
                if rest is not None:
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

    def add(self, file: int, block: Block) -> None:
        last = self.pieces[-1] if self.pieces else None
        if last is not None and last.file == file and last.last == block.first:
            self.pieces[-1] = Piece(file, last.first, block.last)
        else:
            self.pieces.append(Piece(file, block.first, block.last))
        self.rows += block.rows
        self.bytes += block.bytes
        self._position = Position(file + 1) if block.last == TO_THE_END else Position(file, block.last)

    def end_file(self, file: int) -> None:
        self._position = Position(file + 1)

    def build(self) -> tuple[Shard, Position]:
        made = Shard(tuple(self.pieces), self.rows, self.bytes), self._position
        self.pieces, self.rows, self.bytes = [], 0, 0
        return made


def _from(block: Block, first: int) -> tuple[Block, Block | None]:
    """The block, and its part from `first` on; None when it ends before."""
    if block.last == TO_THE_END or first <= block.first:
        return block, block
    return (block, _slice(block, first, block.last)) if first < block.last else (block, None)


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
    return Block(first, last, ceil(block.rows * share), ceil(block.bytes * share), block.cuts)
