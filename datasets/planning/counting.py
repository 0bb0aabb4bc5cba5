"""Counting the rows of files that were read, to hold them against what came of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.source import get_source, get_text_source


def count_rows(format: str, file: InputFile, ranges: Sequence[tuple[int, int]]) -> tuple[int, list[int]]:
    """How many rows the file holds, and how many lie in each of these ranges, in their order, that do not overlap.

    InvalidInput or OSError when it cannot be read, or has not the size it had.
    """
    text = get_text_source(format)
    if text is None:
        rows = _rows(format, file)
        return rows, [max(0, (rows if last == TO_THE_END else min(last, rows)) - first) for first, last in ranges]
    first = np.array([first for first, _ in ranges], np.int64)
    last = np.array([np.iinfo(np.int64).max if last == TO_THE_END else last for _, last in ranges], np.int64)
    rows, found = 0, np.zeros(len(ranges), np.int64)
    for starts in text.starts(file, 0, TO_THE_END):
        rows += len(starts)
        found += np.searchsorted(starts, last) - np.searchsorted(starts, first)
    return rows, found.tolist()


def _rows(format: str, file: InputFile) -> int:
    source = get_source(format)
    columns = list(source.sample(file).types)
    blocks = source.layout(file, columns, 1)
    if all(block.last != TO_THE_END for block in blocks):
        return sum(block.rows for block in blocks)
    return sum(len(chunk) for chunk in source.read(file, 0, TO_THE_END, columns))
