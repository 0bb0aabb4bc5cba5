"""What is watched of a version's fields: the numbers and texts that a column of a sketch counts.

Of a number, and of each element of a short vector, the value; of a larger array its mean and deviation, and its size where that
is free; of bytes the length; of a text what it says or how long it is. `json` is not watched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.signature import ARRAY_DTYPES, Field

MAX_ELEMENTS = 64  # of a vector, each a column of its own
MAX_TEXT = 100  # characters of a category; what is longer is told apart by its beginning

Numbers = NDArray[np.float64]


def names_of(field: Field) -> list[str]:
    """The columns of numbers that `numbers_of` gives; [] for what has none."""
    if field.dtype in ("str", "bytes"):
        return [f"{field.name} (length)"]
    if field.dtype not in ARRAY_DTYPES:
        return []
    if field.shape in ((), (1,)):
        return [field.name]
    if _by_element(field):
        return [f"{field.name}[{each}]" for each in field.classes or range(field.shape[0])]
    return [f"{field.name} ({what})" for what in ("mean", "deviation", "size")[: 3 if -1 in field.shape else 2]]


def numbers_of(field: Field, values: Any) -> Numbers:
    """`(rows, columns)` of an array `(rows, *shape)` or a list of rows; NaN where a value is missing.

    They are cast to the declared dtype first: a float64 and the float32 that is served of it may be on two sides of an edge.
    """
    if field.dtype in ("str", "bytes"):
        return np.array([len(value) if value else np.nan for value in values], np.float64).reshape(-1, 1)
    dtype = ARRAY_DTYPES[field.dtype]
    with np.errstate(over="ignore", invalid="ignore"):
        if -1 in field.shape and not isinstance(values, np.ndarray):
            return np.array([_summary(np.asarray(value, dtype).reshape(1, -1), free=True)[0] for value in values])
        flat = np.asarray(values, dtype).reshape(len(values), -1)
        one_each = field.shape in ((), (1,)) or _by_element(field)
        return flat.astype(np.float64) if one_each else _summary(flat, free=-1 in field.shape)


def texts_of(values: Sequence[Any]) -> list[str | None]:
    """Of each row the text; None where it is missing."""
    return [value[:MAX_TEXT] if isinstance(value, str) and value else None for value in values]


def _by_element(field: Field) -> bool:
    return len(field.shape) == 1 and 1 < field.shape[0] <= MAX_ELEMENTS


def _summary(flat: NDArray[Any], *, free: bool) -> Numbers:
    size = flat.shape[1]
    if not size:
        return np.array([[np.nan, np.nan, 0.0]] * len(flat))
    mean, deviation = flat.mean(1, dtype=np.float64), flat.std(1, dtype=np.float64)
    return np.stack([mean, deviation, *([np.full(len(flat), float(size))] if free else [])], 1)
