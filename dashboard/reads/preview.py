"""A look into a job's input and result: dtype, shape and the first values, a few lines at most whatever the bytes hold.

The bytes are a stranger's: they go through the codec, which refuses what it did not write, and only what is looked at is
turned into text. Loads nothing from the blob store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.wire import codec
from forebay.contract.wire.payload import unpack_input

VALUES = 8  # of an array or a list
TEXT = 200  # characters of a text
LINES = 24
DEPTH = 3


@dataclass(frozen=True, slots=True)
class Line:
    """One value: where it is, what it is, and how it begins."""

    name: str
    what: str
    value: str
    depth: int = 0


def look_at_input(data: bytes) -> list[Line]:
    """An input's rows."""
    try:
        rows, _ = unpack_input(data)
    except InvalidInput as error:
        return [Line("input", "unreadable", str(error))]
    return _cut(_look_at_rows(rows))


def look_at_result(data: bytes) -> list[Line]:
    """A result."""
    try:
        value = codec.decode(data)
    except InvalidInput as error:
        return [Line("result", "unreadable", str(error))]
    return _cut(_look("result", value, 0))


def _look_at_rows(rows: list[Any]) -> Iterator[Line]:
    for i, row in enumerate(rows[:VALUES]):
        yield from _look(f"row {i + 1} of {len(rows):,}", row, 0)
    if len(rows) > VALUES:
        yield Line("…", "", f"{len(rows) - VALUES:,} more rows")


def _cut(lines: Iterator[Line]) -> list[Line]:
    seen = list(islice(lines, LINES + 1))
    return seen if len(seen) <= LINES else [*seen[:LINES], Line("…", "", "more is not shown")]


def _look(name: str, value: Any, depth: int) -> Iterator[Line]:
    if isinstance(value, np.ndarray):
        yield Line(name, f"{value.dtype.name} of shape {list(value.shape)}", _numbers(value), depth)
    elif isinstance(value, str):
        yield Line(name, f"text of {len(value):,} characters", _begin(value), depth)
    elif isinstance(value, bytes):
        yield Line(name, f"{len(value):,} bytes", shown(value[:32]), depth)
    elif isinstance(value, dict):
        yield from _look_into(name, f"dict of {len(value):,}", value.items(), len(value), depth)
    elif isinstance(value, list):
        items = ((f"[{i}]", item) for i, item in enumerate(value))
        yield from _look_into(name, f"list of {len(value):,}", items, len(value), depth)
    else:
        yield Line(name, type(value).__name__, _begin(str(value)), depth)


def _look_into(name: str, what: str, items: Any, length: int, depth: int) -> Iterator[Line]:
    if depth >= DEPTH:
        yield Line(name, what, "…", depth)
        return
    yield Line(name, what, "", depth)
    for key, item in islice(items, VALUES):
        yield from _look(_begin(key, 60), item, depth + 1)
    if length > VALUES:
        yield Line("…", "", f"{length - VALUES:,} more", depth + 1)


def _numbers(array: Any) -> str:
    first = [_begin(str(item), 40) for item in array.reshape(-1)[:VALUES]]
    return ", ".join(first) + (", …" if array.size > VALUES else "")


def _begin(text: str, limit: int = TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
