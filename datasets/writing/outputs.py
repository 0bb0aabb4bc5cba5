"""From what a model gives to typed Arrow columns: vectors as fixed-size lists, no JSON where a type is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.signature import ARRAY_DTYPES, Field
from forebay.contract.values import jsonable

LONE = "output"  # what the only output is called when the model declares none
_VALUES = {"str": pa.string(), "bytes": pa.binary(), "json": pa.string()}


def arrow_type(field: Field) -> pa.DataType:
    """The column that holds a declared output."""
    if field.dtype not in ARRAY_DTYPES:
        return _VALUES[field.dtype]
    return _nested_type(pa.from_numpy_dtype(ARRAY_DTYPES[field.dtype]), field.shape)


def type_of(value: Any) -> pa.DataType:
    """The column that holds outputs like this one, where nothing is declared; JSON text for what has no type of its own."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return _nested_type(pa.from_numpy_dtype(value.dtype), value.shape)
    if isinstance(value, np.generic):
        return pa.from_numpy_dtype(value.dtype)
    for kind, arrow in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()), (str, pa.string())):
        if type(value) is kind:
            return arrow
    return pa.binary() if isinstance(value, bytes) else pa.string()


def whole_array(values: NDArray[Any]) -> pa.Array:
    """`(rows, *shape)` as a column, without a Python object for each row."""
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for length in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, length)
    return array


def from_values(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Outputs one by one as a column of this type; ArrowInvalid or ArrowTypeError when one does not fit."""
    arrays = bool(values) and all(isinstance(value, np.ndarray) for value in values)
    if arrays and pa.types.is_fixed_size_list(kind) and len({value.shape for value in values}) == 1:
        return whole_array(np.stack(list(values))).cast(kind)
    if pa.types.is_string(kind):
        return pa.array([value if isinstance(value, str) else _as_json(value) for value in values], kind)
    return pa.array([value.tolist() if isinstance(value, np.ndarray | np.generic) else value for value in values], kind)


def by_name(outputs: Sequence[Any], names: Sequence[str] | None) -> Mapping[str, list[Any]]:
    """Rows of outputs as columns: by the declared names, by their keys where every row is a dict with the same, else one."""
    if names is not None and len(names) == 1:
        return {names[0]: list(outputs)}
    keys = names or (list(outputs[0]) if outputs and isinstance(outputs[0], dict) else None)
    if keys and all(isinstance(row, dict) and [*row] == [*keys] for row in outputs):
        return {str(name): [row[name] for row in outputs] for name in keys}
    return {LONE: list(outputs)}


def _nested_type(leaf: pa.DataType, shape: Sequence[int]) -> pa.DataType:
    kind = leaf
    for length in reversed(shape):
        kind = pa.list_(kind) if length == -1 else pa.list_(kind, length)
    return kind


def _as_json(value: Any) -> str:
    return json.dumps(jsonable(value), ensure_ascii=False)
