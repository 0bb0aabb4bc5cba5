"""Numbers that a user sent, as the dtype that a model declares: converted when each fits, refused by name when one does not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown


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
