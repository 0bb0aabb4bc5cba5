"""Cutting a data set into shards: by rows and bytes, along the blocks a file is made of. Pure; reads no data.

A shard takes whole blocks while they fit, small files together. A block that is too large by itself is cut, but only as
often as it allows: to begin inside a Parquet row group, a reader must decode what lies before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from forebay.contract.requests.batch import TO_THE_END, Piece, Position, Shard

MAX_PIECES = 1024


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a file that can be read by itself: units from `first` up to `last`, its rows (about, in text) and bytes.

    `cuts` is into how many shards it may be cut. A block that ends TO_THE_END is the file's only one and is not cut.
    """

    first: int
    last: int
    rows: int
    bytes: int
    cuts: int = 1


@dataclass(frozen=True, slots=True)
class Size:
    """How large a shard should be at most."""

    rows: int
    bytes: int


Layout = Callable[[int], Sequence[Block]]


def shards(layout: Layout, files: int, position: Position, size: Size) -> Iterator[tuple[Shard, Position]]:
    """The shards from `position` on, each with the position behind it; `layout` gives a file's blocks in order."""
    gathered = _Gathered(position)
    for file in range(position.file, files):
        blocks = [_rest(b, position.first if file == position.file else 0) for b in layout(file)]
        for whole, begun in blocks:
            rest = begun
            while rest is not None:
                if not gathered.fits(rest, size):
                    yield gathered.take()
                taken, left = (rest, None) if gathered.pieces else _cut(whole, rest, size)
                gathered.add(file, taken)
                rest = left
                if rest is not None:
                    yield gathered.take()
        gathered.end_of(file)
    if gathered.pieces:
        yield gathered.take()


class _Gathered:
    """The shard that is being put together."""

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

    def end_of(self, file: int) -> None:
        self._position = Position(file + 1)

    def take(self) -> tuple[Shard, Position]:
        made = Shard(tuple(self.pieces), self.rows, self.bytes), self._position
        self.pieces, self.rows, self.bytes = [], 0, 0
        return made


def _rest(block: Block, first: int) -> tuple[Block, Block | None]:
    """The block, and what of it lies at or behind `first`; None when nothing does."""
    if block.last == TO_THE_END or first <= block.first:
        return block, block
    return (block, _slice(block, first, block.last)) if first < block.last else (block, None)


def _cut(whole: Block, rest: Block, size: Size) -> tuple[Block, Block | None]:
    """What a shard of its own takes of `rest`, and what is left; cuts are as even as they can be."""
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
