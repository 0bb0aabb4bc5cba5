"""The dtypes and shapes that a model may declare, and numbers that a user sent as one of them: converted when each fits, refused
by name when one does not.
"""  # fmt: skip

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.values import MAX_DIMS

_INTEGERS = (f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_NUMERIC = ("bool", *_INTEGERS, "float16", "float32", "float64")
ARRAY_DTYPES: Mapping[str, np.dtype[Any]] = {name: np.dtype(name) for name in _NUMERIC}
VALUE_DTYPES = ("str", "bytes", "json")
MIN_RATE, MAX_RATE = 1_000, 384_000  # samples of sound a second


def flattened(value: Any, levels: int, where: str) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and elements of a nested list, at most `levels` deep, because a list may contain itself."""
    shape: list[int] = []
    flat = [value]
    while flat and isinstance(flat[0], (list, tuple)) and len(shape) < levels:
        shape.append(len(flat[0]))
        if not all(isinstance(item, (list, tuple)) and len(item) == shape[-1] for item in flat):
            raise InvalidInput(f"{where}: the list is ragged: its parts differ in length; pad them")
        flat = list(chain.from_iterable(flat))
    return tuple(shape), flat


def exactly(flat: list[Any], dtype: np.dtype[Any], where: str) -> NDArray[Any]:
    """Numbers as `dtype`; InvalidInput for a number out of its range, or a fraction among integers."""
    flat, bad = [item.item() if isinstance(item, np.generic) else item for item in flat], []
    if dtype.kind == "f":
        high = float(np.finfo(dtype).max)
        bad = [item for item in flat if abs(item) > high and abs(item) != math.inf]
    elif dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        bad = [item for item in flat if not (low <= item <= high and item == int(item))]
    if bad:
        raise InvalidInput(f"{where}: {shown(bad[0])} does not fit {dtype}")
    return np.array(flat, dtype)


def check_range(array: NDArray[Any], dtype: np.dtype[Any], where: str) -> None:
    """InvalidInput when a number is out of the range of `dtype`, or a fraction where it is of integers."""
    if dtype.kind == "f":
        bad = np.isfinite(array) & (np.abs(array.astype(np.float64)) > float(np.finfo(dtype).max))
    else:
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if array.dtype.kind == "f":  # 2**63 - 1 is no float64: the first number above is
            wide = array.astype(np.float64)
            bad = ~((wide >= float(low)) & (wide < float(high + 1)) & (wide == np.trunc(wide)))
        else:
            own = np.iinfo(array.dtype)
            bad = (array < max(low, int(own.min))) | (array > min(high, int(own.max)))
    if bad.any():
        raise InvalidInput(f"{where}: {shown(array[bad][0].item())} does not fit {dtype}")


def shape_fits(declared: Sequence[int], given: Sequence[int | None]) -> bool:
    """Whether values of the given shape are of the declared one, dimension by dimension; None, a length that varies, may be."""
    pairs = zip(declared, given, strict=False)
    return len(declared) == len(given) and all(length is None or d in (-1, length) for d, length in pairs)


def check_field(field: Any) -> None:
    """InvalidInput when a signature's field is not valid."""
    name, dtype, shape = field.name, field.dtype, field.shape
    if not isinstance(name, str) or not name.isprintable() or not 1 <= len(name) <= 100:
        raise InvalidInput(f"a field's name is 1 to 100 printable characters, got {shown(name)}")
    legal = (*ARRAY_DTYPES, *VALUE_DTYPES)
    if not isinstance(dtype, str) or dtype not in legal:
        raise InvalidInput(f"{name!a}: dtype is one of {', '.join(legal)}, got {shown(dtype)}")
    if not isinstance(shape, tuple) or len(shape) >= MAX_DIMS or not all(map(_is_length, shape)):
        rule = f"shape is a list of fewer than {MAX_DIMS} lengths from 1, or -1 for a free one"
        raise InvalidInput(f"{name!a}: {rule}, got {shown(shape)}")
    if shape and dtype in VALUE_DTYPES:
        raise InvalidInput(f"{name!a}: {dtype} takes no shape, got {shown(shape)}; leave it out")
    if not isinstance(field.allow_nan, bool):
        raise InvalidInput(f"{name!a}: nan is true or false, got {shown(field.allow_nan)}")
    if field.cell not in (False, True) or (field.cell and (shape or dtype not in ("float32", "float64", "str"))):
        raise InvalidInput(f"{name!a}: a cell is a single float32, float64 or str, got {dtype} and {shown(field.cell)}")
    rate, form = field.sample_rate, shape[1:] != (-1,) and 1 <= len(shape) <= 2 and dtype == "float32"
    if rate is not None and not (type(rate) is int and MIN_RATE <= rate <= MAX_RATE and form):
        rule = f"sample_rate is from {MIN_RATE:,} to {MAX_RATE:,}, for float32 of shape [length], or [length, channels]"
        raise InvalidInput(f"{name!a}: {rule}; got {shown(rate)} for {dtype} of shape {list(shape)}")
    if field.classes != () and not _are_classes(field.classes, shape, dtype):
        rule = "classes are different texts, one for each value of an array of shape [n]"
        raise InvalidInput(f"{name!a}: {rule}; got {shown(field.classes)} for {field}")


def _are_classes(names: Any, shape: tuple[int, ...], dtype: str) -> bool:
    texts = isinstance(names, tuple) and all(isinstance(name, str) for name in names)
    return texts and dtype in ARRAY_DTYPES and shape == (len(names),) == (len(set(names)),)


def _is_length(length: object) -> bool:
    return type(length) is int and (length == -1 or 1 <= length < 2**31)
