"""Where the records of a CSV file begin: the one definition of a record, as Python's csv module, pandas and pyarrow have it.

A quote opens a value only where a field begins; anywhere else it is a character like others. In a quoted value two quotes are
one, and line breaks belong to the value. LF, CR and CRLF end a record. An empty line is none; one of spaces is.

A mebibyte is looked at as a whole, by NumPy: without quotes only its line ends, else also its quotes, of which every second one
closes as long as the quoting is regular. Where it is not they are followed one by one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.datasets.formats.lines import Records, whole

_QUOTE, _LF, _CR = ord('"'), ord("\n"), ord("\r")
_NEVER = np.iinfo(np.int64).max
_TORN = "a value of several lines has text behind its closing quote: a quote is missing, or one too many"


def scan_csv(data: bytes, final: bool, delimiter: str) -> Records:
    """The records in bytes that begin with one."""
    bytes_ = np.frombuffer(data, np.uint8)
    breaks = _breaks(data, bytes_, final)
    if b'"' not in data:
        return whole(data, breaks + 1, final, b"\r\n")
    opened, closed = _quoted(bytes_, breaks, ord(delimiter))
    inside = _inside(breaks, opened, closed)
    unclosed = int(opened[-1]) if len(closed) and closed[-1] == _NEVER else None
    records = whole(data, breaks[~inside] + 1, final and unclosed is None, b"\r\n")
    if inside.any():
        torn = _torn(bytes_, records, breaks[inside], closed, delimiter)
        records = replace(records, multiline=True, bad={int(i): InvalidInput(_TORN) for i in torn})
    return replace(records, open_at=unclosed)


def _breaks(data: bytes, bytes_: NDArray[np.uint8], final: bool) -> NDArray[np.int64]:
    """The last byte of each line break; a CR at the end may be half of one."""
    lf = np.flatnonzero(bytes_ == _LF)
    if b"\r" not in data:
        return lf
    cr = np.flatnonzero(bytes_ == _CR)
    followed = cr[cr + 1 < len(bytes_)]
    alone = followed[bytes_[followed + 1] != _LF]
    if final and data.endswith(b"\r"):
        alone = np.append(alone, len(data) - 1)
    return np.sort(np.concatenate([lf, alone])) if len(alone) else lf


def _quoted(
    bytes_: NDArray[np.uint8], breaks: NDArray[np.int64], delimiter: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where quoted stretches begin and end; a doubled quote may end one and begin the next. One that is not closed never ends."""
    quotes = np.flatnonzero(bytes_ == _QUOTE)
    before = bytes_[quotes - 1]
    begins = (before == delimiter) | (before == _LF) | (before == _CR)
    begins[0] |= quotes[0] == 0
    irregular = _irregular(quotes, begins)
    if irregular is None:
        return _stretches(quotes)
    line = np.searchsorted(breaks, quotes)
    may_open = np.zeros(len(breaks) + 1, bool)
    may_open[line[begins]] = True
    kept = may_open[line]  # in other lines there may be none that opens a value, as in 5" x 3"
    if not kept.any():
        return quotes[:0], quotes[:0]
    if _irregular(quotes[kept], begins[kept]) is None:
        opened, closed = _stretches(quotes[kept])
        if not _inside(quotes[~kept], opened, closed).any():
            return opened, closed
    opened, closed = _stretches(quotes[:irregular])
    later = _followed(quotes[irregular:], begins[irregular:])
    return np.concatenate([opened, later[0]]), np.concatenate([closed, later[1]])


def _irregular(quotes: NDArray[np.int64], begins: NDArray[np.bool_]) -> int | None:
    """The first of the quotes that would open a value, were the quoting regular, and cannot; None when it is regular."""
    possible = begins.copy()
    possible[1:] |= quotes[1:] == quotes[:-1] + 1
    found = np.flatnonzero(~possible[0::2])
    return 2 * int(found[0]) if len(found) else None


def _stretches(quotes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every second quote opens a stretch, and the one after it ends it."""
    return quotes[0::2], quotes[1::2] if len(quotes) % 2 == 0 else np.append(quotes[1::2], _NEVER)


def _followed(quotes: NDArray[np.int64], begins: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same for any quotes, one by one; the first lies outside."""
    places, may_open, count = quotes.tolist(), begins.tolist(), len(quotes)
    opened, closed, i = [], [], 0
    while i < count:
        if not may_open[i]:
            i += 1
            continue
        opened.append(places[i])
        i += 1
        while i + 1 < count and places[i + 1] == places[i] + 1:
            i += 2
        closed.append(places[i] if i < count else _NEVER)
        i += 1
    return np.array(opened, np.int64), np.array(closed, np.int64)


def _inside(breaks: NDArray[np.int64], opened: NDArray[np.int64], closed: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which line breaks lie within quotes."""
    if not len(opened):
        return np.zeros(len(breaks), bool)
    last = np.searchsorted(opened, breaks) - 1
    inside: NDArray[np.bool_] = (last >= 0) & (closed[np.maximum(last, 0)] > breaks)
    return inside


def _torn(
    bytes_: NDArray[np.uint8], records: Records, inside: NDArray[np.int64], closed: NDArray[np.int64], delimiter: str
) -> NDArray[np.int64]:
    """Records of several lines with text behind a closing quote: no writer makes them, but a stray quote does."""
    behind = closed[closed < len(bytes_) - 1] + 1
    text = behind[~np.isin(bytes_[behind], np.frombuffer(f'{delimiter}"\r\n'.encode(), np.uint8))]
    several = np.searchsorted(records.starts, inside[inside < records.end], side="right") - 1
    with_text = np.searchsorted(records.starts, text[text < records.end], side="right") - 1
    return np.intersect1d(several, with_text)
