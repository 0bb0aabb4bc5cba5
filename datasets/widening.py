"""Which type holds the values of several column types, every one exactly. Nothing is cast that this does not allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FINENESS = ("s", "ms", "us", "ns")
_MAX_DIGITS = 38  # of a decimal that DuckDB and Polars can read


def plain_type(kind: Any) -> pa.DataType:
    """The type in which parts hold such a column: values instead of codes, in lists and structs too."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind):
        return pa.binary()
    if types.is_decimal32(kind) or types.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    if types.is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(plain_type(kind.value_type))
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    return kind


def widened(one: Any, other: Any) -> pa.DataType | None:
    """The type that holds the values of both, which are plain; None when there is none.

    A double among whole numbers of 64 bits is the one case that only the values decide: `convert` refuses those that
    a double does not hold exactly.
    """
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if _both(one, other, lambda kind: types.is_integer(kind) or types.is_floating(kind)):
        return _number(one, other)
    if _both(one, other, types.is_decimal):
        return _decimal(one, other)
    if _both(one, other, lambda kind: types.is_string(kind) or types.is_large_string(kind)):
        return pa.large_string()
    if _both(one, other, _is_bytes):
        return pa.large_binary() if types.is_large_binary(one) or types.is_large_binary(other) else pa.binary()
    if _both(one, other, types.is_timestamp):
        return pa.timestamp(_finer(one, other), one.tz) if one.tz == other.tz else None
    if _both(one, other, types.is_duration):
        return pa.duration(_finer(one, other))
    if _both(one, other, types.is_time):
        return pa.time64(_finer(one, other)) if _finer(one, other) in ("us", "ns") else pa.time32("ms")
    return _nested(one, other)


def settled(kind: Any) -> pa.DataType:
    """The type of a column about which no more will be known: where there are only nulls, text, which every reader takes."""
    types = pa.types
    if types.is_null(kind):
        return pa.string()
    if types.is_fixed_size_list(kind):
        return pa.list_(settled(kind.value_type), kind.list_size)
    if types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if types.is_large_list(kind):
        return pa.large_list(settled(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([(field.name, settled(field.type)) for field in kind])
    return kind


def convert(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The column as this type; ArrowTypeError when the type does not hold it, ArrowInvalid when a value is not held exactly."""
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if column.type == kind:
        return column
    if widened(plain_type(column.type), kind) != kind:
        raise pa.ArrowTypeError(f"{kind} does not hold every value of {column.type}")
    return column.cast(kind)


def _both(one: Any, other: Any, test: Any) -> bool:
    return bool(test(one) and test(other))


def _number(one: Any, other: Any) -> pa.DataType | None:
    wide = np.promote_types(one.to_pandas_dtype(), other.to_pandas_dtype())
    if wide.kind == "f" and _both(one, other, pa.types.is_integer):  # int64 and uint64
        return None
    return pa.from_numpy_dtype(wide)


def _decimal(one: Any, other: Any) -> pa.DataType | None:
    scale = max(one.scale, other.scale)
    digits = scale + max(one.precision - one.scale, other.precision - other.scale)
    return pa.decimal128(digits, scale) if digits <= _MAX_DIGITS else None


def _is_bytes(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _finer(one: Any, other: Any) -> str:
    return _FINENESS[max(_FINENESS.index(one.unit), _FINENESS.index(other.unit))]


def _nested(one: Any, other: Any) -> pa.DataType | None:
    types = pa.types
    if _both(one, other, _is_list):
        inner = widened(one.value_type, other.value_type)
        if inner is None:
            return None
        if _both(one, other, types.is_fixed_size_list) and one.list_size == other.list_size:
            return pa.list_(inner, one.list_size)
        large = types.is_large_list(one) or types.is_large_list(other)
        return pa.large_list(inner) if large else pa.list_(inner)
    if _both(one, other, types.is_map):
        key, item = widened(one.key_type, other.key_type), widened(one.item_type, other.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if _both(one, other, types.is_struct) and _names(one) == _names(other):
        inner_types = [widened(a.type, b.type) for a, b in zip(one, other, strict=True)]
        return None if None in inner_types else pa.struct(list(zip(_names(one), inner_types, strict=True)))
    return None


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _names(kind: Any) -> Sequence[str]:
    return [field.name for field in kind]
