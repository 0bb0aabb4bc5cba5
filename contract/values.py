"""The values that a job may carry, and their one canonical form: plain Python, and little-endian NumPy arrays in C order.

Tensors are recognised by their methods, so that torch is not imported here. Every value is treated as hostile: what cannot
be carried is InvalidInput, whatever it is. wire.codec turns canonical values into bytes; signature says what a model takes.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import described, shown

Leaf: TypeAlias = Callable[[Any], Any]

MAX_DEPTH = 64  # lists and dicts within one another
MAX_DIMS = 32  # NumPy 1's own limit
MAX_EMPTY = 1 << 20  # rows of an array without elements: they cost nothing to send, but much to list

_CARRIED = frozenset(
    np.dtype(code).newbyteorder("<") for code in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
)
_PLAIN = frozenset({float, bool, type(None)})
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1
_TAKES = "send arrays, tensors, str, bytes, numbers, bools, None, or lists and dicts of those"


def canonical(value: Any) -> Any:
    """`value` as it is after encoding and decoding, but without copying arrays needlessly; InvalidInput likewise."""
    return walk(value, _normal_leaf)


def plain_json(value: Any) -> Any:
    """`value` as JSON data: NumPy scalars become Python's; InvalidInput for arrays and bytes. NaN and inf pass."""
    return walk(value, _json_leaf)


def jsonable(value: Any) -> Any:
    """A decoded value as strict JSON data: arrays as nested lists, bytes as {"base64": …}, NaN and inf as None."""
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode("ascii")}
    if isinstance(value, list):
        return [jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    return value


def scalars(value: Any) -> Any:
    """`value` with arrays without dimensions as NumPy's scalars."""
    if isinstance(value, dict):
        return {name: scalars(item) for name, item in value.items()}
    return value[()] if isinstance(value, np.ndarray) and not value.ndim else value


def named(values: Any, names: Sequence[str]) -> Any:
    """An array `(n,)` as `{name: value}` by n names, one of more dimensions as lists of those; all else as it is."""
    if not isinstance(values, np.ndarray) or values.shape[-1:] != (len(names),):
        return values
    return dict(zip(names, values.tolist(), strict=True)) if values.ndim == 1 else [named(row, names) for row in values]


def is_array(value: Any) -> bool:
    """Whether `value` is an array, a NumPy scalar, a tensor, or something else that NumPy reads as an array."""
    return isinstance(value, (np.ndarray, np.generic)) or (
        not isinstance(value, type) and (hasattr(value, "__array__") or is_tensor(value))
    )


def as_array(value: Any) -> NDArray[Any]:
    """An array-like or tensor (any device, with or without gradient) as a NumPy array, sharing memory where it can."""
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidInput("a masked array cannot be carried; fill it first with .filled(value)")
    try:
        return np.asarray(value.detach().cpu().numpy() if is_tensor(value) else value)
    except (TypeError, ValueError, RuntimeError) as error:  # bfloat16, sparse, ragged: the text says which
        kind = f"{type(value).__name__} of {getattr(value, 'dtype', 'unknown dtype')}"
        raise InvalidInput(f"a {kind} cannot become a NumPy array ({shown(str(error))}); convert it first") from error


def walk(value: Any, leaf: Leaf, depth: int = 0) -> Any:
    """`value` rebuilt from plain parts, with `leaf` applied to its arrays, NumPy scalars and bytes."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is np.ndarray or kind is bytes:
        return leaf(value)
    if kind is str:
        return _text(value)
    if kind is int:
        return _integer(value)
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the value is nested more than {MAX_DEPTH} deep, or contains itself; flatten it")
    if isinstance(value, (list, tuple)):
        return _walk_list(value, leaf, depth + 1)
    if isinstance(value, dict):
        return {_key(key): walk(item, leaf, depth + 1) for key, item in value.items()}
    return _walk_other(value, leaf)


def normal_array(array: NDArray[Any]) -> NDArray[Any]:
    """`array` in C order and little-endian, itself where it is so already; InvalidInput for what cannot be carried."""
    dtype = array.dtype if array.dtype in _CARRIED else _carried(array.dtype)
    if array.ndim > MAX_DIMS or not (array.size or few_rows(array.shape)):
        raise InvalidInput(f"an array of shape {list(array.shape)} cannot be carried")
    normal = array.astype(dtype, order="C", copy=False)
    if dtype.kind == "U" and not is_unicode(normal):
        raise InvalidInput("an array of str holds a lone surrogate; decode it properly first")
    return normal


def few_rows(shape: tuple[int, ...]) -> bool:
    return math.prod(length for length in shape if length) <= MAX_EMPTY


def is_unicode(array: NDArray[Any]) -> bool:
    points = array.reshape(-1).view("<u4")
    return not bool(((points > 0x10FFFF) | ((points >= 0xD800) & (points <= 0xDFFF))).any())


def is_tensor(value: Any) -> bool:
    return hasattr(value, "detach") and hasattr(value, "cpu") and hasattr(value, "numpy")


def _walk_list(value: list[Any] | tuple[Any, ...], leaf: Leaf, depth: int) -> list[Any]:
    kinds = set(map(type, value))
    if kinds <= _PLAIN:  # long lists of numbers are common, and this checks them in C
        return list(value)
    if kinds == {int} and min(value) >= _INT_MIN and max(value) <= _INT_MAX:
        return list(value)
    return [walk(item, leaf, depth) for item in value]


def _walk_other(value: Any, leaf: Leaf) -> Any:
    if isinstance(value, str):  # np.str_, StrEnum
        return _text(str.__str__(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return leaf(bytes(value))
    if isinstance(value, np.generic):
        return leaf(value)
    if isinstance(value, int):
        return _integer(int.__int__(value))
    if isinstance(value, float):
        return float.__float__(value)
    if is_array(value):
        return leaf(as_array(value))
    raise InvalidInput(f"a value of type {type(value).__name__!a} cannot be carried; {_TAKES}")


def _text(value: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidInput(f"text {shown(value)} holds a lone surrogate; decode it properly first") from error
    return value


def _integer(value: int) -> int:
    if not _INT_MIN <= value <= _INT_MAX:
        raise InvalidInput(f"the integer {shown(value)} does not fit 64 bits; send it as a str")
    return value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise InvalidInput(f"a dict's keys must be str, got {shown(key)}; use str(key)")
    return _text(key if type(key) is str else str.__str__(key))


def _normal_leaf(value: Any) -> Any:
    if isinstance(value, bytes):
        return value
    return normal_array(value) if isinstance(value, np.ndarray) else normal_array(np.asarray(value))[()]


def _json_leaf(value: Any) -> Any:
    if isinstance(value, np.generic):
        return normal_array(np.asarray(value)).item()
    hint = "use .tolist()" if isinstance(value, np.ndarray) else "use str or base64"
    raise InvalidInput(f"{type(value).__name__} is not JSON data; {hint}")


def _carried(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind in "US" and dtype.names is None:
        return dtype.newbyteorder("<") if dtype.itemsize else np.dtype(f"<{dtype.kind}1")
    if dtype.newbyteorder("<") in _CARRIED:
        return dtype.newbyteorder("<")
    raise InvalidInput(
        f"an array of dtype {shown(str(dtype))} cannot be carried; "
        "convert it with .astype() to bool, an integer, a float of at most 64 bits, or fixed-width str or bytes"
    )


def split_rows(value: Any, name: str) -> list[Any]:
    """The rows of a batch of one input: an array with a leading dimension, or a list."""
    if isinstance(value, np.ndarray) and value.ndim:
        return [value[i, ...] for i in range(len(value))]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise InvalidInput(f"{name!a}: a batch is an array with a leading dimension, or a list, got {described(value)}")


def zip_columns(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """Columns as rows; InvalidInput unless all have as many, and one at least."""
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        counts = ", ".join(f"{shown(name)} has {length}" for name, length in lengths.items()) or "it has none"
        raise InvalidInput(f"a batch needs the same number of rows, at least 1, in every input; {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def stack_key(row: Any) -> Hashable:
    """Equal for rows that can be stacked: equal names, dtypes and shapes of arrays, and types of other values."""
    if isinstance(row, dict):
        if len(row) == 1:
            [(name, value)] = row.items()
            return name, _kind(value)
        return tuple(sorted((name, _kind(value)) for name, value in row.items()))
    return _kind(row)


def _kind(value: Any) -> tuple[str, tuple[int, ...]]:
    return (value.dtype.str, value.shape) if isinstance(value, np.ndarray) else (type(value).__name__, ())
