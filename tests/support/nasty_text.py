"""Text files as unpleasant as they come, each told by its seed, and what an independent reader makes of them.

The independent readers: Python's csv module and its json, which know nothing of bytes; a record's offset is that of the line at
which they began to read it.
"""

import csv
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BOM = b"\xef\xbb\xbf"
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
_WORDS = (
    "valve",
    "bolt",
    'pipe 5"',
    '5" x 3"',
    "x",
    "é",
    "日本",
    "🜂",
    " ",
    "a b",
    "\t'",
    "#",
    "\\",
    "=1+1",
    "NULL",
    "0",
    "\0",
)


@dataclass(frozen=True)
class Row:
    """One record: the byte at which it begins, and its values; None where they cannot be right."""

    offset: int
    values: Any


@dataclass(frozen=True)
class NastyCsv:
    data: bytes
    delimiter: str
    names: list[str]
    regular: bool  # each reader there is should make the same of it


def nasty_csv(seed: int) -> NastyCsv:
    """A CSV file whose quotes are all closed."""
    draw = random.Random(seed)
    regular = draw.random() < 0.4
    delimiter = draw.choice([",", ";", "\t", "|"])
    width = draw.randint(1, 4)
    breaks = draw.choice([["\n"], ["\r\n"]] if regular else [["\n"], ["\r\n"], ["\r"], ["\n", "\r\n", "\r"]])
    names = [f"c{i}" for i in range(width)]
    if width > 1 and draw.random() < 0.3:
        names[0] = "a;, b" if regular else 'a"\n;, b'
    header = delimiter.join(_quoted(name) if not name.isalnum() else name for name in names)
    delimiter = delimiter if width > 1 else ","
    text = header + draw.choice(breaks)
    lines = draw.randint(0, 12)
    for number in range(lines):
        text += _row(draw, delimiter, width, regular)
        if number < lines - 1 or draw.random() < 0.7:
            text += draw.choice(breaks)
    data = text.encode()
    return NastyCsv(BOM + data if draw.random() < 0.2 else data, delimiter, names, regular)


def _row(draw: random.Random, delimiter: str, width: int, regular: bool) -> str:
    kind = 1.0 if regular else draw.random()
    if kind < 0.08:
        return draw.choice(["", " ", "\t ", "  "])
    if kind < 0.16:
        width = draw.choice([max(1, width - 1), width + 1, width + 3])
    values = [_value(draw, delimiter, regular) for _ in range(width)]
    if regular and not any(value.strip() for value in values):
        values[0] = "x"
    return delimiter.join(values)


def _value(draw: random.Random, delimiter: str, regular: bool) -> str:
    kind = draw.random()
    text = "".join(draw.choice(_WORDS) for _ in range(draw.randint(0, 3))).replace(delimiter, "")
    if kind < 0.03:
        text *= draw.randint(1, 2000)
    if regular:
        text = text.replace('"', "").replace("\0", "").replace("\\", "").replace("#", "").strip() or "y"
    if kind < 0.5:
        return text.lstrip('"')
    inside = "".join(draw.choice([text, '"', "\n", "\r", "\r\n", delimiter, " "]) for _ in range(draw.randint(0, 4)))
    if regular:
        inside = inside.replace("\r", "").strip() + "z"
    quoted = _quoted(inside)
    if regular or kind < 0.9:
        return quoted
    return quoted + draw.choice(["x", ' 5" ', " ", 'y"z'])  # what follows a closing quote belongs to the value


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def rows_of_csv(data: bytes, delimiter: str) -> list[Row]:
    """What the csv module makes of the records behind the header. Those are wrong that have too few or too many values, and those
    of several lines that only a lenient reader takes.
    """  # fmt: skip
    begins = len(BOM) if data.startswith(BOM) else 0
    text, consumed = data[begins:].decode(), 0

    def lines() -> Iterator[str]:
        nonlocal consumed
        for line in _LINE.findall(text):
            consumed += len(line.encode())
            yield line

    before, found = 0, []
    for values in csv.reader(lines(), delimiter=delimiter):
        if values:
            found.append((begins + before, values, data[begins + before : begins + consumed].decode()))
        before = consumed
    width = len(found[0][1])
    return [
        Row(at, values if len(values) == width and not _is_torn(record, delimiter) else None)
        for at, values, record in found[1:]
    ]


def _is_torn(record: str, delimiter: str) -> bool:
    lines = _LINE.findall(record)
    try:
        return len(lines) > 1 and not list(csv.reader(lines, delimiter=delimiter, strict=True))
    except csv.Error:
        return True


def nasty_jsonl(seed: int) -> bytes:
    draw = random.Random(seed)
    data = BOM if draw.random() < 0.2 else b""
    count = draw.randint(0, 12)
    for number in range(count):
        data += _line(draw)
        if number < count - 1 or draw.random() < 0.7:
            data += draw.choice([b"\n", b"\n", b"\r\n", b" \r\n"])
    return data


def _line(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.15:
        return draw.choice([b"", b" ", b"\t", b"\r", b" \r "])
    value: Any = draw.choice(
        [None, 1, -0.5, 2**53 + 1, True, [1, [2]], {"a": "\n"}, "", "null", "a\rb\u2028c", "é🜂" * draw.randint(1, 9)]
    )
    if draw.random() < 0.05:
        value = "long" * draw.randint(1, 5000)
    record = {"x": value, "n": draw.randint(0, 9)} if draw.random() < 0.9 else {"n": 1}
    line = json.dumps(record, ensure_ascii=draw.random() < 0.5).encode()
    if kind < 0.25:
        return draw.choice([line[:-1], line + line, b"[1]", b"7", b"\xff", line.replace(b"{", b"\xe9{"), b"nothing"])
    return draw.choice([b"", b"", b"  "]) + line


def rows_of_jsonl(data: bytes) -> list[Row]:
    """What the json module makes of the lines that are not blank; those are wrong that are no objects."""
    begins = len(BOM) if data.startswith(BOM) else 0
    found, at = [], begins
    for line in data[begins:].split(b"\n"):
        if line.strip(b" \t\r"):
            found.append(Row(at, _object(line)))
        at += len(line) + 1
    return found


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode())
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
