"""The cells of a table, as training reads them and serving takes them: what is missing, what is a number, what is a category.

A field that is a `cell` takes what a column of training data may hold, whatever format it came from: null, NaN, an empty text and
`NA` are all the same gap; true, 1 and "1" the same number; 3, 3.0 and "3" the same category.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Collection
from decimal import Decimal
from typing import Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.references import described, shown

MISSING_TEXTS = frozenset({"", "NA", "N/A", "NaN", "nan"})
_CATEGORIES = (str, bool, int, float, Decimal, datetime.date, datetime.time)


def is_missing(value: Any) -> bool:
    """Whether a cell has no value: null, NaN, infinity, or a text that stands for one of them."""
    if isinstance(value, str):
        return value.strip() in MISSING_TEXTS
    return value is None or (isinstance(value, float | np.floating) and not math.isfinite(value))


def label_text(value: Any) -> str:
    """A label as text, the same whatever format it was read from: 3, 3.0 and "3" are "3", True is "true"."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else str(value)


def label_among(known: Collection[str], value: Any) -> str:
    """A value as one of these labels if it is one; text from CSV such as '3.0' may be the number that a label stands for."""
    text = label_text(value)
    if text in known or not isinstance(value, str):
        return text
    try:
        same = label_text(float(value))
        exact = "_" not in value and Decimal(value) == Decimal(same)  # no float is every whole number
    except (ValueError, ArithmeticError):
        return text
    return same if exact else text


def number_cell(value: Any, gaps: bool, where: str) -> Any:
    """A cell of a column of numbers as a number, NaN for a gap; what is neither unchanged. InvalidInput for a gap unless
    `gaps` are taken.
    """  # fmt: skip
    if is_missing(value):
        _check_gap(gaps, where)
        return math.nan
    if isinstance(value, bool | np.bool_ | Decimal):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value.replace("_", "?"))  # 1_000 is a number in Python only
        except ValueError as error:
            raise InvalidInput(f"{where}: {shown(value)} is not a number") from error
    return value


def category_cell(value: Any, gaps: bool, where: str) -> str:
    """A cell of a column of categories as text, empty for a gap."""
    if is_missing(value):
        _check_gap(gaps, where)
        return ""
    if not isinstance(value, (*_CATEGORIES, np.generic)):
        raise InvalidInput(f"{where}: expected a category (text, a number, true or false), got {described(value)}")
    return label_text(value)


def _check_gap(gaps: bool, where: str) -> None:
    if not gaps:
        raise InvalidInput(f"{where}: the value is missing; this model was trained on rows without gaps (missing=drop)")
