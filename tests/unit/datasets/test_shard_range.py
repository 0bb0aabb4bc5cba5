"""A shard of which half is given away while it is read: every unit is read by one of the two, and by no more."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.contract.errors import InvalidInput
from forebay.contract.requests.batch import NPY, TO_THE_END, BatchRequest, InputFile, Piece
from forebay.datasets.formats.source import Chunk
from forebay.datasets.planning.cutting import middle
from forebay.datasets.reading.shard_range import Halves, ShardRange

MIDDLE = partial(middle, BatchRequest(50 * (InputFile("a.npy", 1),), "out", NPY, {"x": ("array",)}))


def read(pieces: tuple[Piece, ...], steps: list[int], splits: set[int]) -> tuple[list[tuple[int, int]], list[Piece]]:
    """The units that a reader takes who works in chunks of these sizes, and what was given away after some of them."""
    shard_range, taken, given_away = ShardRange(pieces), [], []
    clock = number = 0

    def give(halves: Halves) -> bool:
        given_away[:0] = halves.given
        assert halves.kept[0].first == pieces[0].first
        return True

    while (piece := shard_range.piece(number)) is not None:
        at = piece.first
        while at < piece.last:
            stop = min(piece.last, at + steps[clock % len(steps)])
            if clock in splits:
                shard_range.halve(MIDDLE, give)
            ours = shard_range.clip(number, Chunk({}, np.arange(at, stop)))
            clock += 1
            if ours is None:
                break
            taken += [(piece.file, int(unit)) for unit in ours.where]
            at = stop
        number += 1
    return taken, given_away


PIECES = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=5).map(
    lambda spans: tuple(Piece(i, first, first + units) for i, (first, units) in enumerate(spans))
)


@given(PIECES, st.lists(st.integers(1, 30), min_size=1, max_size=5), st.sets(st.integers(0, 30), max_size=6))
def test_what_is_kept_and_what_is_given_away_are_the_whole(
    pieces: tuple[Piece, ...], steps: list[int], splits: set[int]
) -> None:
    taken, given_away = read(pieces, steps, splits)
    rest = [(piece.file, unit) for piece in given_away for unit in range(piece.first, piece.last)]
    assert taken + rest == [(piece.file, unit) for piece in pieces for unit in range(piece.first, piece.last)]


def test_half_of_what_is_left_is_given_away() -> None:
    shard_range = ShardRange((Piece(0, 0, 100),))
    shard_range.clip(0, Chunk({}, np.arange(20)))
    asked: list[Halves] = []
    assert shard_range.halve(MIDDLE, lambda halves: bool(asked.append(halves)) or True)
    assert asked == [Halves((Piece(0, 0, 60),), (Piece(0, 60, 100),), 0.4)]
    assert shard_range.piece(0) == Piece(0, 0, 60)


def test_who_is_refused_keeps_everything() -> None:
    shard_range = ShardRange((Piece(0, 0, 100),))
    assert not shard_range.halve(MIDDLE, lambda _: False)
    assert shard_range.piece(0) == Piece(0, 0, 100)


def test_a_piece_that_can_only_be_read_whole_is_not_cut() -> None:
    assert not ShardRange((Piece(0, 0, TO_THE_END),)).halve(MIDDLE, lambda _: True)


def test_a_piece_with_other_rows_than_were_planned_is_refused_by_file_and_range() -> None:
    for piece, where, words in (
        (Piece(0, 10, 90, rows=3), [10, 50], r"a\.csv: bytes 10 to 90 held 3 rows .* and 2 when"),
        (Piece(0, 4, 8), [4, 5, 6], r"a\.csv: rows 4 to 8 held 4 rows .* and 3 when"),
    ):
        shard_range = ShardRange((piece,))
        shard_range.clip(0, Chunk({}, np.array(where)))
        with pytest.raises(InvalidInput, match=words):
            shard_range.check(0, "a.csv")
