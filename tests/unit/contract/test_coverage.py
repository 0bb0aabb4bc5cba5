"""Whether parts cover what was planned exactly once."""

import random
from itertools import pairwise

import pytest

from forebay.contract.requests.batch import TO_THE_END, Piece
from forebay.contract.requests.coverage import CoveredPart, coverage_faults

FILES = ["a", "b", "c"]


def faults(planned: list[Piece], parts: list[tuple[Piece, ...]], by_row: bool = True, more: int = 0) -> list[str]:
    covered = [
        CoveredPart(f"part-{i}", pieces, sum(p.last - p.first for p in pieces) + more) for i, pieces in enumerate(parts)
    ]
    return list(coverage_faults(planned, covered, FILES, by_row=by_row))


@pytest.mark.parametrize("seed", range(50))
def test_cuts_at_any_place_are_found_whole_and_any_piece_left_out_or_doubled_is_not(seed: int) -> None:
    chance = random.Random(seed)
    planned = [Piece(file, 0, chance.randrange(2, 1000)) for file in range(3)]
    pieces = []
    for piece in planned:
        cuts = sorted({0, piece.last, *(chance.randrange(1, piece.last) for _ in range(chance.randrange(6)))})
        pieces += [Piece(piece.file, a, b) for a, b in pairwise(cuts)]
    chance.shuffle(pieces)
    assert faults(planned, [(piece,) for piece in pieces]) == []
    lost = chance.choice(pieces)
    [missing] = faults(planned, [(piece,) for piece in pieces if piece != lost])
    assert missing.startswith(f"of {FILES[lost.file]} rows 0 to")
    [doubled] = faults(planned, [(piece,) for piece in [*pieces, lost]])
    assert doubled == f"rows {lost.first} to {lost.last} of {FILES[lost.file]} are covered twice"


def test_an_end_that_is_open_is_an_end() -> None:
    text = [Piece(0, 0, 500), Piece(0, 500, TO_THE_END)]
    assert faults(text, [(text[0],), (text[1],)], by_row=False) == []
    assert faults(text, [(text[0],)], by_row=False) == [
        "of a bytes 0 to the end were planned, and the parts cover 0 to 500"
    ]


def test_a_part_with_more_rows_than_its_shard_covers_is_named() -> None:
    planned = [Piece(0, 0, 10)]
    assert faults(planned, [(planned[0],)], more=5) == ["part-0: it has 15 rows, and its shard covers 10"]
    assert faults(planned, [(planned[0],)], by_row=False, more=5) == []


def test_rows_that_were_counted_in_text_are_counted_in_its_parts() -> None:
    [fault] = coverage_faults(
        [Piece(0, 0, 90, 7)], [CoveredPart("part-0", (Piece(0, 0, 90, 7),), 6)], FILES, by_row=False
    )
    assert fault == "part-0: it has 6 rows, and its shard covers 7"
