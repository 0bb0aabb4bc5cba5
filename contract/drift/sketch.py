"""Sketches: counts of each column's values in cells that a reference fixes.

A column of numbers is cut at the reference's deciles, one of texts into its most frequent values and the rest. Values beyond the
least and greatest number of the reference, texts that it did not have, and missing values have cells of their own. So a
sketch has one size however many rows it has seen, and two of them are merged by adding them up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from forebay.contract.drift.measures import Numbers, names_of, numbers_of, texts_of
from forebay.contract.signature import Field, Signature

MAX_COLUMNS = 128  # of the inputs, and as many of the outputs
MAX_ROWS = 20_000  # that a reference is made of
BINS = 10
MAX_VALUES = 20  # texts with a cell of their own
MAX_KNOWN = 200  # texts that are known as not new
FEW = 50  # a text input with no more different values in many rows is one of categories
MISSING, BELOW, ABOVE, FIRST = 0, 1, 2, 3  # the places in a column's counts; a text that is new is counted as ABOVE
WIDTH = FIRST + MAX_VALUES + 1

Side = Literal["input", "output"]
Counts = NDArray[np.int64]
Values = Mapping[str, Any]  # of many rows by field: arrays `(rows, *shape)`, or lists of values


class Column(Struct, frozen=True):
    """One watched column, as the reference fixes it: `counts` are those of its own rows.

    A number counts in the first cell whose edge it does not exceed. `values` are the most frequent texts, `known` all that are
    not new, none when there were too many to keep. `unseen` is how many more rows of as many would hold what these do not: by
    Good and Turing, the texts that were seen once; of numbers, one beyond each end.
    """

    name: str
    side: Side
    field: str
    kind: Literal["number", "category"]
    counts: tuple[int, ...] = ()
    edges: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    values: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    unseen: int = 2


class Reference(Struct, frozen=True):
    """What a version's inputs and outputs are held against. `source` says where the rows are from, `unwatched` which fields
    have no column, and why.
    """  # fmt: skip

    columns: tuple[Column, ...]
    source: str
    unwatched: tuple[str, ...] = ()


class Served(Struct, frozen=True):
    """What a worker has sketched of a version in one hour (of the epoch), against one revision of its reference.

    `counts` has a row of WIDTH numbers for each column of the reference; `rows` is how many rows were looked at.
    """

    name: str
    version: int
    revision: int
    hour: int
    rows: int
    counts: Any

    def __add__(self, other: Served) -> Served:
        return Served(
            self.name, self.version, self.revision, self.hour, self.rows + other.rows, self.counts + other.counts
        )


class Sketcher:
    """Counts rows in the cells of a reference."""

    def __init__(self, reference: Reference, signature: Signature) -> None:
        self.reference = reference
        self._fields = {"input": signature.inputs or (), "output": signature.outputs or ()}

    def zeros(self) -> Counts:
        return np.zeros((len(self.reference.columns), WIDTH), np.int64)

    def count(self, side: Side, values: Values, into: Counts) -> None:
        """Add these rows to `into`. Fields that `values` does not have are left out."""
        for field, counters in self._counters[side]:
            if field.name in values:
                for counter in counters:
                    counter.count(field, values[field.name], into)

    @cached_property
    def _counters(self) -> dict[str, list[tuple[Field, list[_Numbers | _Texts]]]]:
        return {
            side: [(field, list(self._of(side, field))) for field in fields] for side, fields in self._fields.items()
        }

    def _of(self, side: str, field: Field) -> Iterator[_Numbers | _Texts]:
        found = [(i, c) for i, c in enumerate(self.reference.columns) if (c.side, c.field) == (side, field.name)]
        yield from (_Texts(i, column) for i, column in found if column.kind == "category")
        numbers = [(i, column) for i, column in found if column.kind == "number"]
        if numbers:
            places = {name: place for place, name in enumerate(names_of(field))}
            yield _Numbers(numbers, [places[column.name] for _, column in numbers])


class _Numbers:
    """The columns of numbers of one field."""

    def __init__(self, columns: Sequence[tuple[int, Column]], places: Sequence[int]) -> None:
        self._rows, self._places = np.array([i for i, _ in columns]), places
        self._edges = np.full((len(columns), BINS - 1), np.inf)
        for edges, (_, column) in zip(self._edges, columns, strict=True):
            edges[: len(column.edges)] = column.edges
        self._low, self._high = (np.array([getattr(column, end) for _, column in columns]) for end in ("low", "high"))
        self._offsets = np.arange(len(columns)) * WIDTH

    def count(self, field: Field, values: Any, into: Counts, /) -> None:
        numbers = numbers_of(field, values)[:, self._places]
        cells = FIRST + (numbers[:, :, None] > self._edges).sum(2)
        cells[numbers < self._low] = BELOW
        cells[numbers > self._high] = ABOVE
        cells[~np.isfinite(numbers)] = MISSING
        counted = np.bincount((cells + self._offsets).ravel(), minlength=len(self._rows) * WIDTH)
        into[self._rows] += counted.reshape(-1, WIDTH)


class _Texts:
    """A column of texts."""

    def __init__(self, place: int, column: Column) -> None:
        rest = FIRST + len(column.values)
        self._place, self._other = place, ABOVE if column.known else rest
        self._cells: dict[str | None, int] = dict.fromkeys(column.known, rest)
        self._cells |= {text: FIRST + i for i, text in enumerate(column.values)} | {None: MISSING}

    def count(self, _: Field, values: Any, into: Counts, /) -> None:
        cells = [self._cells.get(text, self._other) for text in texts_of(values)]
        into[self._place] += np.bincount(cells, minlength=WIDTH)


class ReferenceBuilder:
    """Makes the columns of one side of a reference from rows, of which it takes the first MAX_ROWS."""

    def __init__(self, side: Side, fields: Sequence[Field] | None) -> None:
        self._side, self._fields = side, fields or ()
        self._numbers: dict[str, list[Numbers]] = {field.name: [] for field in self._fields}
        self._texts: dict[str, list[str | None]] = {field.name: [] for field in self._fields}
        self._rows = {field.name: 0 for field in self._fields if field.dtype != "json"}
        self.unwatched = [] if fields else [f"{side}s: the version declares none"]

    @property
    def full(self) -> bool:
        """Whether more rows would be of no use."""
        return all(rows >= MAX_ROWS for rows in self._rows.values())

    def add(self, values: Values) -> None:
        """Rows by field; of a field that is not there no column is made."""
        for field in self._fields:
            if field.name in values and field.dtype != "json":
                few = values[field.name][: MAX_ROWS - self._rows[field.name]]
                if len(few):
                    self._numbers[field.name].append(numbers_of(field, few))
                    self._texts[field.name] += texts_of(few) if field.dtype == "str" else ()
                    self._rows[field.name] += len(few)

    def columns(self) -> list[Column]:
        """The columns, with the counts of these rows."""
        made: list[Column] = []
        for field in self._fields:
            of_field = list(self._columns(field)) if self._rows.get(field.name) else []
            if not of_field:
                self.unwatched.append(f"{self._side} {field.name}: {_why_not(field)}")
            elif len(made) + len(of_field) > MAX_COLUMNS:
                self.unwatched.append(f"{self._side} {field.name}: beyond {MAX_COLUMNS} columns")
            else:
                made += of_field
        return made

    def _columns(self, field: Field) -> Iterator[Column]:
        texts = self._texts[field.name]
        found = Counter(text for text in texts if text is not None)
        if (field.cell and field.dtype == "str") or (found and len(found) <= min(FEW, len(texts) // 5)):
            yield from self._of_texts(field, texts, found)
            return
        numbers = np.concatenate(self._numbers[field.name])
        for place, name in enumerate(names_of(field)):
            yield from self._of_numbers(field, name, numbers[:, place])

    def _of_numbers(self, field: Field, name: str, numbers: Numbers) -> Iterator[Column]:
        there = numbers[np.isfinite(numbers)]
        if not len(there):
            return
        edges = np.unique(np.quantile(there, np.arange(1, BINS) / BINS, method="inverted_cdf"))
        cells, counts = np.searchsorted(edges, there, "left"), np.zeros(WIDTH, np.int64)
        counts[FIRST : FIRST + BINS] = np.bincount(cells, minlength=BINS)
        counts[MISSING] = len(numbers) - len(there)
        low, high = float(there.min()), float(there.max())
        yield Column(
            name, self._side, field.name, "number", tuple(counts.tolist()), tuple(edges.tolist()), low, high
        )  # fmt: skip

    def _of_texts(self, field: Field, texts: Sequence[str | None], found: Counter[str]) -> Iterator[Column]:
        if not found:
            return
        common = sorted(found, key=lambda text: (-found[text], text))
        # Rarer ones are the most frequent by chance, and would be less frequent in any other rows.
        values = [text for text in common[:MAX_VALUES] if found[text] >= max(5, len(texts) / 100)]
        known = common if len(common) <= MAX_KNOWN else []
        counts = [0] * WIDTH
        counts[FIRST : FIRST + len(values)] = [found[text] for text in values]
        counts[FIRST + len(values)] += found.total() - sum(found[text] for text in values)
        counts[MISSING] = len(texts) - found.total()
        once = sum(count == 1 for count in found.values()) if known else 0  # else new ones count with the rest
        yield Column(
            field.name, self._side, field.name, "category", tuple(counts), values=tuple(values), known=tuple(known),
            unseen=once,
        )  # fmt: skip


def _why_not(field: Field) -> str:
    return "json is not watched" if field.dtype == "json" else "the rows hold no values that could be watched"
