"""Arrow to NumPy and back: columns of numbers become arrays, and a model's outputs typed columns, without a Python object
for each row where the values allow it.
"""  # fmt: skip

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forebay.contract.numbers import shape_fits
from forebay.contract.signature import ARRAY_DTYPES, Field
from forebay.contract.values import jsonable
from forebay.datasets.widening import convert, widened

DEFAULT_INPUT, DEFAULT_OUTPUT = "input", "output"  # of a model that declares none
CLASSES = b"classes"  # in the metadata of an output's column

Column: TypeAlias = "pa.Array | list[Any]"  # as it is read: Arrow, or Python's values
Values: TypeAlias = (
    "NDArray[Any] | list[Any]"  # as it is computed with: one array `(rows, *shape)`, or a value for each row
)

_VALUE_TYPES = {"str": pa.string(), "bytes": pa.binary(), "json": pa.string()}


def is_number(kind: Any) -> bool:
    """Whether this is an Arrow type of numbers or truth values."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_list(kind: Any) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def list_lengths(kind: Any) -> tuple[list[int | None], Any]:
    """The lengths of nested lists, or of a tensor's dimensions, None where they vary, and the type of their elements."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return [kind.shape[i] for i in _order(kind)], kind.value_type
    lengths: list[int | None] = []
    if isinstance(kind, pa.BaseExtensionType):
        kind = pa.bool_() if isinstance(kind, pa.Bool8Type) else kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    while is_list(kind):
        lengths.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return lengths, kind


def shape_may_be(declared: Sequence[int], lengths: Sequence[int | None]) -> bool:
    """Whether such lists can be values of the declared shape: as `predict` compares them, or as one flat list of all values."""
    if shape_fits(declared, lengths):
        return True
    flat = len(lengths) == 1 < len(declared) and -1 not in declared
    return flat and lengths[0] in (None, math.prod(declared))


def plain(column: pa.Array) -> pa.Array:
    """The same values without codes or extension types: a tensor as nested lists, in the order of its dimensions."""
    if isinstance(column, pa.FixedShapeTensorArray):
        return _nested_lists(column)
    if isinstance(column, pa.ExtensionArray):
        boolean = isinstance(column.type, pa.Bool8Type)
        return pc.not_equal(column.storage, 0) if boolean else column.storage
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def to_numpy(column: pa.Array, *, nan_for_null: bool = False) -> NDArray[Any] | None:
    """A column of numbers, or of nested lists of one length, as an array `(rows, *shape)`; None for any other column.

    Nulls make it another column, unless missing numbers are to be NaN.
    """
    column = plain(column)
    shape = [len(column)]
    while is_list(column.type):
        if column.null_count:
            return None
        if pa.types.is_fixed_size_list(column.type):
            shape.append(column.type.list_size)
        else:
            lengths = np.asarray(pc.list_value_length(column))
            if not len(lengths) or (lengths != lengths[0]).any():
                return None
            shape.append(int(lengths[0]))
        column = column.flatten()
    if not is_number(column.type):
        return None
    if column.null_count:
        if not nan_for_null or pa.types.is_boolean(column.type):
            return None
        if pa.types.is_integer(column.type) and not _float_holds(column):
            return None
        column = column.cast(pa.float64())
    flat: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return flat.reshape(shape)


def _float_holds(column: pa.Array) -> bool:
    """Whether a double holds each of these whole numbers exactly."""
    least_most = pc.min_max(column).as_py()
    return least_most["min"] is None or (least_most["min"] >= -(2**53) and least_most["max"] <= 2**53)


def _nested_lists(tensors: pa.FixedShapeTensorArray) -> pa.Array:
    there = np.asarray(tensors.is_valid())
    kind, order = tensors.type, _order(tensors.type)
    leaves = tensors.storage.filter(pa.array(there)).flatten()
    if order != sorted(order):
        places = np.arange(len(leaves)).reshape(-1, *kind.shape).transpose(0, *(i + 1 for i in order))
        leaves = leaves.take(pa.array(places.reshape(-1)))
    for i in reversed(order):
        leaves = pa.FixedSizeListArray.from_arrays(leaves, kind.shape[i])
    return leaves if there.all() else leaves.take(pa.array(np.cumsum(there) - 1, mask=~there))


def _order(kind: Any) -> list[int]:
    """Which stored dimension each dimension of a tensor is."""
    return list(kind.permutation or range(len(kind.shape)))


def from_numpy(values: NDArray[Any]) -> pa.Array:
    """An array `(rows, *shape)` as a column: fixed-size lists over the same bytes."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for length in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def cast_numbers(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """`array` as `dtype`; None when a number does not fit."""
    if array.dtype == dtype:
        return array
    if dtype.kind in "iu" and array.size:
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            return None
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f" and array.dtype.kind == "f" and bool((np.isinf(cast) != np.isinf(array)).any()):
        return None
    return cast


def take(values: Values, rows: NDArray[np.int64]) -> Values:
    return values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows]


def nested_type(dtype: np.dtype[Any], shape: Sequence[int]) -> pa.DataType:
    """The column type of samples of this dtype and shape; a free dimension (-1) is a list of any length."""
    kind = pa.from_numpy_dtype(dtype)
    for length in reversed(shape):
        kind = pa.list_(kind) if length == -1 else pa.list_(kind, length)
    return kind


def field_type(field: Field) -> pa.DataType:
    dtype = ARRAY_DTYPES.get(field.dtype)
    return _VALUE_TYPES[field.dtype] if dtype is None else nested_type(dtype, field.shape)


def output_column(field: Field) -> pa.Field:
    """The column of a declared output; the names of its classes, which writers use and Parquet keeps, are its metadata."""
    names = {CLASSES: json.dumps(field.classes, ensure_ascii=False).encode()} if field.classes else None
    return pa.field(field.name, field_type(field), metadata=names)


def classes_of(column: pa.Field) -> list[str]:
    """The names of the classes of an output's column, [] where it has none."""
    names: list[str] = json.loads((column.metadata or {}).get(CLASSES, b"[]"))
    return names


def value_type(value: Any) -> pa.DataType:
    """The column type for outputs like this one, where none is declared; JSON text for what has no Arrow type."""
    if value is None:
        return pa.null()
    if isinstance(value, np.generic | np.ndarray):
        return nested_type(value.dtype, value.shape) if value.dtype.kind in "biuf" else pa.string()
    for kind, arrow in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()), (bytes, pa.binary())):
        if type(value) is kind:
            return arrow
    return pa.string()


def values_type(values: Values) -> pa.DataType:
    """The type that holds all of these exactly; JSON text where there is none."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
        return nested_type(values.dtype, values.shape[1:])
    together: pa.DataType = pa.null()
    for kind in {_form(value): value_type(value) for value in values}.values():
        both = widened(together, kind)
        if both is None:
            return pa.string()
        together = both
    return together


def from_values(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Outputs one by one as a column of this type; ArrowInvalid or ArrowTypeError when it does not hold one exactly."""
    if pa.types.is_string(kind):
        return pa.array(
            [value if value is None or isinstance(value, str) else _as_json(value) for value in values], kind
        )
    forms = {_form(value): value for value in values}
    for value in forms.values():
        given = value_type(value)
        whole = pa.types.is_floating(given) and pa.types.is_integer(kind)  # such as 2.0: Arrow looks whether it is one
        if not whole and widened(given, kind) != kind:
            raise pa.ArrowTypeError(f"{kind} does not hold every value of {given}")
    if len(forms) == 1 and isinstance(values[0], np.ndarray):
        return convert(from_numpy(np.stack(list(values))), kind)
    return pa.array([value.tolist() if isinstance(value, np.ndarray | np.generic) else value for value in values], kind)


def _form(value: Any) -> Any:
    """Equal for values that have the same column type."""
    return (value.dtype, value.shape) if isinstance(value, np.ndarray | np.generic) else type(value)


def _as_json(value: Any) -> str:
    return json.dumps(jsonable(value), ensure_ascii=False)
