"""A model's signature: the names, dtypes and shapes of one sample's inputs and outputs.

Turns what users send into rows that workers can stack. Anything else is refused with the field, what was expected, what was
given, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forebay.contract.cells import category_cell, number_cell
from forebay.contract.errors import InvalidInput
from forebay.contract.numbers import check_range, exactly, flattened
from forebay.contract.references import described, shown
from forebay.contract.values import MAX_DIMS, as_array, canonical, is_array, plain_json

Row: TypeAlias = Any  # dict[field name, value] if fields are declared, else any value that can be carried

_INTEGERS = (f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))
_NUMERIC = ("bool", *_INTEGERS, "float16", "float32", "float64")
ARRAY_DTYPES: Mapping[str, np.dtype[Any]] = {name: np.dtype(name) for name in _NUMERIC}
_ARRANGE = "arrange the values in the shape {}"
BATCH_HINT = "if this is a batch, pass batched=True, or send each row separately"
VALUE_DTYPES = ("str", "bytes", "json")
_VALUE_TYPES: Mapping[str, Any] = {"str": str, "bytes": (bytes, bytearray, memoryview), "json": object}


@dataclass(frozen=True, slots=True)
class Field:
    """A named input or output of one sample: an array (-1 in `shape` is a free dimension), or str, bytes or json.

    `allow_nan=False` refuses NaN and inf in an input. A `cell` takes what a table's column may hold, see contract.cells: a
    number, or as str a category; then `allow_nan` says whether gaps are taken. InvalidInput when the field is not valid.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    allow_nan: bool = True
    cell: bool = False

    def __post_init__(self) -> None:
        _check_field(self)

    @classmethod
    def parse(cls, name: str, spec: Any) -> Field:
        """From the JSON form, such as `{"dtype": "float32", "shape": [64], "nan": false}`."""
        if not isinstance(spec, Mapping) or "dtype" not in spec or not spec.keys() <= {"dtype", "shape", "nan", "cell"}:
            raise InvalidInput(f"{shown(name)}: expected dtype, shape and (optionally) nan and cell, got {shown(spec)}")
        if str(spec["dtype"]) in ARRAY_DTYPES and spec.get("shape") is None:
            raise InvalidInput(f"{shown(name)}: an array needs a shape; [] is a single number, -1 a free dimension")
        shape = spec.get("shape", ())
        shape = tuple(shape) if isinstance(shape, list) else shape
        return cls(name, spec["dtype"], shape, spec.get("nan", True), spec.get("cell", False))

    def json(self) -> dict[str, Any]:
        shape = {"shape": list(self.shape)} if self.dtype in ARRAY_DTYPES else {}
        marks = ({} if self.allow_nan else {"nan": False}) | ({"cell": True} if self.cell else {})
        return {"dtype": self.dtype, **shape, **marks}

    def __str__(self) -> str:
        return f"{self.dtype} of shape {list(self.shape)}" if self.dtype in ARRAY_DTYPES else self.dtype


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of one sample. None: anything, unchecked."""

    inputs: tuple[Field, ...] | None = None
    outputs: tuple[Field, ...] | None = None

    def __post_init__(self) -> None:
        for side, fields in (("inputs", self.inputs), ("outputs", self.outputs)):
            if fields is not None and len({field.name for field in fields}) != max(1, len(fields)):
                raise InvalidInput(f"{side}: declare at least one field, each name once, or leave {side} out")

    @classmethod
    def parse(cls, inputs: Mapping[str, Any] | None = None, outputs: Mapping[str, Any] | None = None) -> Signature:
        """From the JSON form `{name: {"dtype": …, "shape": […], "nan": …}}`; InvalidInput names the field that is not valid."""
        return cls(_parse_fields("inputs", inputs), _parse_fields("outputs", outputs))

    def inputs_json(self) -> dict[str, Any] | None:
        return None if self.inputs is None else {field.name: field.json() for field in self.inputs}

    def outputs_json(self) -> dict[str, Any] | None:
        return None if self.outputs is None else {field.name: field.json() for field in self.outputs}

    def row(self, value: Any) -> Row:
        """One sample, checked: `{input name: value}`, with C-contiguous arrays of exactly the declared dtype and shape.

        A model with one input accepts the value itself or `{name: value}`. Arrays are converted where NumPy calls that safe,
        Python numbers where they fit. Without declared inputs every value that can be carried passes.
        """
        if self.inputs is None:
            return canonical(value)
        named = _named(self.inputs, value, "input")
        return {field.name: _checked(field, named[field.name], f"input {field.name!a}") for field in self.inputs}

    def rows(self, value: Any) -> list[Row]:
        """The n ≥ 1 samples of a batch, each as `row` returns it; their arrays may be views of the batch.

        Array inputs have a leading dimension n; str, bytes and json inputs are lists of n. Without declared inputs a batch is
        an array with at least one dimension, a list, or a dict of those of equal length.
        """
        if self.inputs is None:
            return _free_rows(canonical(value))
        named = _named(self.inputs, value, "input")
        return _zipped({field.name: _column(field, named[field.name]) for field in self.inputs})

    def output(self, row: Any) -> Any:
        """One row of a model's outputs, checked: the value itself for one declared output, a dict for several.

        Arrays must have exactly the declared dtype and shape, those without dimensions become scalars; NaN and inf pass.
        InvalidInput says what differs.
        """
        if self.outputs is None:
            return _scalars(canonical(row))
        named = _named(self.outputs, row, "output")
        made = {out.name: _checked(out, named[out.name], f"output {out.name!a}", exact=True) for out in self.outputs}
        made = {name: _scalars(value) for name, value in made.items()}
        return made[self.outputs[0].name] if len(made) == 1 else made


def shape_fits(declared: Sequence[int], given: Sequence[int | None]) -> bool:
    """Whether values of the given shape are of the declared one, dimension by dimension; None, a length that varies, may be."""
    pairs = zip(declared, given, strict=False)
    return len(declared) == len(given) and all(length is None or d in (-1, length) for d, length in pairs)


def stack_key(row: Row) -> Hashable:
    """Equal for rows that can be stacked: equal names, dtypes and shapes of arrays, and types of other values."""
    if isinstance(row, dict):
        return tuple(sorted((name, _kind(value)) for name, value in row.items()))
    return _kind(row)


def _kind(value: Any) -> tuple[str, tuple[int, ...]]:
    return (value.dtype.str, value.shape) if isinstance(value, np.ndarray) else (type(value).__name__, ())


def _check_field(field: Any) -> None:
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


def _is_length(length: object) -> bool:
    return type(length) is int and (length == -1 or 1 <= length < 2**31)


def _parse_fields(side: str, mapping: Any) -> tuple[Field, ...] | None:
    if mapping is None:
        return None
    if not isinstance(mapping, Mapping):
        raise InvalidInput(f"{side}: expected {{'x': {{'dtype': 'float32', 'shape': [64]}}}}, got {shown(mapping)}")
    return tuple(Field.parse(name, spec) for name, spec in mapping.items())


def _named(fields: tuple[Field, ...], value: Any, side: str) -> Mapping[str, Any]:
    """`value` by field name, with exactly the declared fields."""
    names = [field.name for field in fields]
    if len(fields) == 1 and (not isinstance(value, Mapping) or (fields[0].dtype == "json" and [*value] != names)):
        return {names[0]: value}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{side}s: expected a dict with {shown(names)}, got {described(value)}")
    missing, unknown = [name for name in names if name not in value], [name for name in value if name not in names]
    if missing or unknown:
        raise InvalidInput(f"{side}s: missing {shown(missing)}, unknown {shown(unknown)}; give exactly {shown(names)}")
    return value


def _checked(field: Field, value: Any, where: str, exact: bool = False) -> Any:
    if field.cell and not exact:
        value = (category_cell if field.dtype == "str" else number_cell)(value, field.allow_nan, where)
    if field.dtype in ARRAY_DTYPES:
        return _array(field, value, where, exact)
    if not isinstance(value, _VALUE_TYPES[field.dtype]):
        raise InvalidInput(f"{where}: expected {field}, got {described(value)}")
    try:
        return bytes(value) if field.dtype == "bytes" else plain_json(value)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _array(field: Field, value: Any, where: str, exact: bool) -> NDArray[Any]:
    if type(value) is np.ndarray and value.dtype == ARRAY_DTYPES[field.dtype]:
        array: NDArray[Any] = value
    else:
        array = (_cast if is_array(value) else _from_numbers)(field, value, where, exact)
    if array.shape != field.shape and not shape_fits(field.shape, array.shape):
        raise _mismatch(field, where, described(array), _hint(field, array.shape, exact))
    if not array.flags.c_contiguous:
        array = np.asarray(array, order="C")
    if not (field.allow_nan or exact or np.isfinite(array).all()):
        index = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
        raise InvalidInput(f"{where}: holds {array[tuple(index)]} at {index}; this model takes finite numbers only")
    return array


def _cast(field: Field, value: Any, where: str, exact: bool) -> NDArray[Any]:
    dtype = ARRAY_DTYPES[field.dtype]
    try:
        array = as_array(value)
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error
    if array.dtype.newbyteorder("=") == dtype or (not exact and np.can_cast(array.dtype, dtype, "safe")):
        return array.astype(dtype, copy=False)
    if not exact and array.dtype.kind in "iuf" and dtype.kind in "iuf":  # as lists of the same numbers are
        check_range(array, dtype, where)
        return array.astype(dtype)
    convert = f".astype({field.dtype!r})" if isinstance(value, np.ndarray | np.generic) else f".to(torch.{field.dtype})"
    raise _mismatch(field, where, described(array), f"convert it with {convert}")


def _from_numbers(field: Field, value: Any, where: str, exact: bool) -> NDArray[Any]:
    """A Python number, or nested lists of them, as an array of the field's dtype."""
    if not isinstance(value, (list, tuple, int, float)):
        raise InvalidInput(f"{where}: expected {field}, got {described(value)}")
    dtype, (shape, flat) = ARRAY_DTYPES[field.dtype], flattened(value, len(field.shape) + 1, where)
    if not shape_fits(field.shape, shape):
        given = f"{type(value).__name__} of shape {list(shape)}"
        raise _mismatch(field, where, given, _hint(field, shape, exact, _ARRANGE))
    legal = (bool, np.bool_) if dtype.kind == "b" else (int, float, np.integer, np.floating)
    bad = {kind for kind in set(map(type, flat)) if not issubclass(kind, legal) or (kind is bool and dtype.kind != "b")}
    if bad:
        wrong = next(item for item in flat if type(item) in bad)
        hint = "join arrays with np.stack first" if is_array(wrong) else "every value must be of the declared kind"
        raise _mismatch(field, where, f"{described(wrong)} among the values", hint)
    return exactly(flat, dtype, where).reshape(shape)


def _scalars(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _scalars(item) for name, item in value.items()}
    return value[()] if isinstance(value, np.ndarray) and not value.ndim else value


def _column(field: Field, value: Any) -> list[Any]:
    if field.dtype in ARRAY_DTYPES and not field.cell:
        return _split(_checked(replace(field, shape=(-1, *field.shape)), value, f"input {field.name!a}"), field.name)
    items = _split(as_array(value).tolist() if is_array(value) else value, field.name)
    return [_checked(field, item, f"input {field.name!a}[{i}]") for i, item in enumerate(items)]


def _free_rows(value: Any) -> list[Row]:
    if isinstance(value, dict):
        return _zipped({name: _split(column, name) for name, column in value.items()})
    return [row["inputs"] for row in _zipped({"inputs": _split(value, "inputs")})]


def _split(value: Any, name: str) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim:
        return [value[i, ...] for i in range(len(value))]
    if isinstance(value, (list, tuple)):
        return list(value)
    raise InvalidInput(f"{name!a}: a batch is an array with a leading dimension, or a list, got {described(value)}")


def _zipped(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        counts = ", ".join(f"{shown(name)} has {length}" for name, length in lengths.items()) or "it has none"
        raise InvalidInput(f"a batch needs the same number of rows, at least 1, in every input; {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _hint(field: Field, given: tuple[int, ...], exact: bool, reshape: str = "use .reshape({})") -> str:
    if exact:
        return "correct the model or its signature"
    if given and shape_fits(field.shape, given[1:]):
        return BATCH_HINT
    if -1 not in field.shape and math.prod(field.shape) == math.prod(given):
        return reshape.format(list(field.shape))
    return "send it in the declared shape"


def _mismatch(field: Field, where: str, given: str, hint: str) -> InvalidInput:
    return InvalidInput(f"{where}: expected {field}, got {given}; {hint}")
