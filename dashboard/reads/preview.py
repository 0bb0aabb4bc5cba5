"""A preview of a job's input and result: dtype, shape and the first values, a few lines at most whatever the bytes hold; of a
job that generates text, what was said.

The bytes are untrusted: they go through the codec, which rejects what it did not write, and only the values shown are
turned into text. Loads nothing from the blob store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import INPUTS, parse_generation
from forebay.contract.job import JobKind
from forebay.contract.references import shown
from forebay.contract.requests.request import decode
from forebay.contract.wire import codec
from forebay.contract.wire.payload import unpack_input

MAX_VALUES = 8  # of an array or a list
MAX_TEXT = 200  # characters of a text
MAX_LINES = 24
MAX_FIELDS = 20  # of a request
MAX_DEPTH = 3
MAX_TURNS, MAX_SAID = 50, 8_000  # of a conversation, and characters of each
EMPTY: tuple[Any, ...] = (None, "", [], {})  # what was not given


@dataclass(frozen=True, slots=True)
class PreviewLine:
    """One value: where it is, its type, and how it begins."""

    name: str
    type: str
    value: str
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A part of a conversation, or a text that was generated: who said it, and why it ended."""

    who: str
    text: str
    more: str = ""


def preview_prompts(data: bytes) -> list[Turn]:
    """What the rows of a job for text said; nothing for any other job."""
    try:
        rows = unpack_input(data).rows
        if not all(isinstance(row, dict) and row.keys() == INPUTS.keys() for row in rows):
            return []
        asked = [parse_generation(row["request"]) for row in rows[:MAX_TURNS]]
    except InvalidInput:
        return []
    said = [
        turn
        for one in asked
        for turn in [Turn(message.role, message.content) for message in one.messages or ()]
        or [Turn("prompt", one.prompt if isinstance(one.prompt, str) else f"tokens {shown(list(one.prompt))}")]
    ]
    return _short(said)


def preview_texts(data: bytes) -> list[Turn]:
    """The texts in the result of such a job; nothing when it holds none."""
    try:
        value = codec.decode(data)
    except InvalidInput:
        return []
    rows = value if isinstance(value, list) else [value]
    choices = [choice for row in rows if isinstance(row, dict) for choice in _choices(row)]
    told = [(choice.get("text"), choice.get("finish_reason")) for choice in choices]
    return _short([Turn("text", text, f"ended by {why}") for text, why in told if isinstance(text, str)])


def _choices(row: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The choices of a row, or of several rows that were joined."""
    found = row.get("choices", [row])
    flat = [c for one in found for c in (one if isinstance(one, list) else [one])] if isinstance(found, list) else []
    split = []
    for choice in (c for c in flat if isinstance(c, dict)):
        texts, whys = choice.get("text"), choice.get("finish_reason")
        if isinstance(texts, list) and isinstance(whys, list):
            split += [{"text": text, "finish_reason": why} for text, why in zip(texts, whys, strict=False)]
        else:
            split.append(choice)
    return split


def _short(said: list[Turn]) -> list[Turn]:
    shown_turns = [Turn(turn.who, _truncate(turn.text, MAX_SAID), turn.more) for turn in said[:MAX_TURNS]]
    more = len(said) - MAX_TURNS
    return [*shown_turns, Turn("…", f"{more:,} more")] if more > 0 else shown_turns


def preview_input(data: bytes, kind: JobKind = JobKind.PREDICT) -> list[PreviewLine]:
    """Rows of a prediction; of a job of any other kind its request, which is JSON."""
    try:
        if not kind.of_rows:
            given = {name: value for name, value in decode(data, dict[str, Any]).items() if value not in EMPTY}
            return _limited(_items("request", "", given.items(), len(given), 0, most=MAX_FIELDS))
        rows = unpack_input(data).rows
    except InvalidInput as error:
        return [PreviewLine("input", "unreadable", str(error))]
    return _limited(_rows(rows))


def preview_result(data: bytes) -> list[PreviewLine]:
    try:
        value = codec.decode(data)
    except InvalidInput as error:
        return [PreviewLine("result", "unreadable", str(error))]
    return _limited(_value("result", value, 0))


def _rows(rows: list[Any]) -> Iterator[PreviewLine]:
    for i, row in enumerate(rows[:MAX_VALUES]):
        yield from _value(f"row {i + 1} of {len(rows):,}", row, 0)
    if len(rows) > MAX_VALUES:
        yield PreviewLine("…", "", f"{len(rows) - MAX_VALUES:,} more rows")


def _limited(lines: Iterator[PreviewLine]) -> list[PreviewLine]:
    found = list(islice(lines, MAX_LINES + 1))
    return found if len(found) <= MAX_LINES else [*found[:MAX_LINES], PreviewLine("…", "", "more values are not shown")]


def _value(name: str, value: Any, depth: int) -> Iterator[PreviewLine]:
    if isinstance(value, np.ndarray):
        yield PreviewLine(name, f"{value.dtype.name} of shape {list(value.shape)}", _numbers(value), depth)
    elif isinstance(value, str):
        yield PreviewLine(name, f"text of {len(value):,} characters", _truncate(value), depth)
    elif isinstance(value, bytes):
        yield PreviewLine(name, f"{len(value):,} bytes", shown(value[:32]), depth)
    elif isinstance(value, dict):
        yield from _items(name, f"dict of {len(value):,}", value.items(), len(value), depth)
    elif isinstance(value, list):
        items = ((f"[{i}]", item) for i, item in enumerate(value))
        yield from _items(name, f"list of {len(value):,}", items, len(value), depth)
    else:
        yield PreviewLine(name, type(value).__name__, _truncate(str(value)), depth)


def _items(name: str, type: str, items: Any, length: int, depth: int, most: int = MAX_VALUES) -> Iterator[PreviewLine]:
    if depth >= MAX_DEPTH:
        yield PreviewLine(name, type, "…", depth)
        return
    yield PreviewLine(name, type, "", depth)
    for key, item in islice(items, most):
        yield from _value(_truncate(key, 60), item, depth + 1)
    if length > most:
        yield PreviewLine("…", "", f"{length - most:,} more", depth + 1)


def _numbers(array: Any) -> str:
    first = [_truncate(str(item), 40) for item in array.reshape(-1)[:MAX_VALUES]]
    return ", ".join(first) + (", …" if array.size > MAX_VALUES else "")


def _truncate(text: str, limit: int = MAX_TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
