"""Whether the parts of a batch cover what was planned exactly once: no row of the input twice, and none left out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf

from forebay.contract.requests.batch import TO_THE_END, Piece

Span = tuple[float, float]


@dataclass(frozen=True, slots=True)
class CoveredPart:
    """A part, the pieces that its shard has read, and how many rows it has, those that failed included."""

    name: str
    pieces: tuple[Piece, ...]
    rows: int

    def planned_rows(self, *, by_row: bool) -> int | None:
        """How many rows its pieces have: as they were counted, or by their positions if those are of rows; None where neither
        tells.
        """  # fmt: skip
        if not all(piece.counted or (by_row and piece.last != TO_THE_END) for piece in self.pieces):
            return None
        return sum(piece.rows if piece.counted else piece.last - piece.first for piece in self.pieces)


def coverage_faults(
    planned: Iterable[Piece], parts: Iterable[CoveredPart], files: Sequence[str], *, by_row: bool
) -> Iterator[str]:
    """What does not agree, in words. `by_row`: positions in the `files` are numbers of rows, so that rows can be counted."""
    covered: list[Piece] = []
    for part in parts:
        covered += part.pieces
        wanted = part.planned_rows(by_row=by_row)
        if wanted is not None and part.rows != wanted:
            yield f"{part.name}: it has {part.rows} rows, and its shard covers {wanted}"
    unit = "rows" if by_row else "bytes"
    wanted_spans, twice = _spans(planned)
    found_spans, doubled = _spans(covered)
    for file, span in [*twice, *doubled]:
        yield f"{unit} {_words(span)} of {files[file]} are covered twice"
    for file in sorted({*wanted_spans, *found_spans}):
        ours, theirs = wanted_spans.get(file, []), found_spans.get(file, [])
        if ours != theirs:
            yield f"of {files[file]} {unit} {_all(ours)} were planned, and the parts cover {_all(theirs)}"


def _spans(pieces: Iterable[Piece]) -> tuple[dict[int, list[Span]], list[tuple[int, Span]]]:
    """The pieces of each file joined into as few spans as may be, and what is in more than one of them."""
    joined: defaultdict[int, list[Span]] = defaultdict(list)
    twice: list[tuple[int, Span]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.file, piece.first)):
        first, last = float(piece.first), inf if piece.last == TO_THE_END else float(piece.last)
        spans = joined[piece.file]
        if spans and first < spans[-1][1]:
            twice.append((piece.file, (first, min(last, spans[-1][1]))))
        if spans and first <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(last, spans[-1][1]))
        else:
            spans.append((first, last))
    return dict(joined), twice


def _all(spans: Sequence[Span]) -> str:
    return ", ".join(map(_words, spans)) or "none"


def _words(span: Span) -> str:
    return f"{span[0]:.0f} to {'the end' if span[1] == inf else f'{span[1]:.0f}'}"
