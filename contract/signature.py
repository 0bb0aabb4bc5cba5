"""A model's signature: the names, dtypes and shapes of one sample's inputs and outputs.

Turns what users send into rows that workers can stack. Anything else is refused with the field, what was expected, what was
given, and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from forebay.contract.cells import category_cell, number_cell
from forebay.contract.errors import InvalidInput
from forebay.contract.numbers import ARRAY_DTYPES as ARRAY_DTYPES
from forebay.contract.numbers import VALUE_DTYPES as VALUE_DTYPES
from forebay.contract.numbers import check_field, check_range, exactly, flattened, shape_fits
from forebay.contract.references import described, shown
from forebay.contract.values import (
    as_array,
    canonical,
    is_array,
    named,
    plain_json,
    scalars,
    split_rows,
    zip_columns,
)

Row: TypeAlias = Any  # dict[field name, value] if fields are declared, else any value that can be carried

_ARRANGE = "arrange the values in the shape {}"
BATCH_HINT = "if this is a batch, pass batched=True, or send each row separately"
_VALUE_TYPES: Mapping[str, Any] = {"str": str, "bytes": (bytes, bytearray, memoryview), "json": object}


@dataclass(frozen=True, slots=True)
class Field:
    """A named input or output of one sample: an array (-1 in `shape` is a free dimension), or str, bytes or json.

    `allow_nan=False` refuses NaN and inf in an input. A `cell` takes what a table's column may hold, see contract.cells: a
    number, or as str a category; then `allow_nan` says whether gaps are taken. `classes` name the values of an output of shape
    [n], such as the probability of each. With a `sample_rate` it is sound: samples from -1 to 1, that many a second, of one
    channel, or `[length, channels]`. InvalidInput when the field is not valid.
    """

    name: str
    dtype: str
    shape: tuple[int, ...] = ()
    allow_nan: bool = True
    cell: bool = False
    classes: tuple[str, ...] = ()
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        check_field(self)

    @classmethod
    def parse(cls, name: str, spec: Any) -> Field:
        """From the JSON form, such as `{"dtype": "float32", "shape": [64], "nan": false}`."""
        known = {"dtype", "shape", "nan", "cell", "classes", "sample_rate"}
        if not isinstance(spec, Mapping) or "dtype" not in spec or not spec.keys() <= known:
            raise InvalidInput(
                f"{shown(name)}: expected dtype, shape and (optionally) nan, cell, classes and sample_rate, got {shown(spec)}"
            )
        if str(spec["dtype"]) in ARRAY_DTYPES and spec.get("shape") is None:
            raise InvalidInput(f"{shown(name)}: an array needs a shape; [] is a single number, -1 a free dimension")
        shape, classes = (
            tuple(x) if isinstance(x, list) else x for x in (spec.get("shape", ()), spec.get("classes", ()))
        )
        return cls(
            name, spec["dtype"], shape, spec.get("nan", True), spec.get("cell", False), classes, spec.get("sample_rate")
        )  # fmt: skip

    @property
    def media(self) -> Literal["image", "audio"] | None:
        """What kind of file an input takes in the place of its array: an image of its pixels, whose last dimension, or none, is
        the colors; or sound.
        """  # fmt: skip
        if self.sample_rate is not None:
            return "audio"
        pixels = self.dtype == "uint8" and len(self.shape) in (2, 3) and self.shape[2:] in ((), (1,), (3,), (-1,))
        return "image" if pixels else None

    def json(self) -> dict[str, Any]:
        shape = {"shape": list(self.shape)} if self.dtype in ARRAY_DTYPES else {}
        marks: dict[str, Any] = ({} if self.allow_nan else {"nan": False}) | ({"cell": True} if self.cell else {})
        marks |= {"classes": list(self.classes)} if self.classes else {}
        marks |= {"sample_rate": self.sample_rate} if self.sample_rate is not None else {}
        return {"dtype": self.dtype, **shape, **marks}

    def __str__(self) -> str:
        rate = "" if self.sample_rate is None else f" at {self.sample_rate:,} Hz"
        return f"{self.dtype} of shape {list(self.shape)}{rate}" if self.dtype in ARRAY_DTYPES else self.dtype


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of one sample. None: anything, unchecked."""

    inputs: tuple[Field, ...] | None = None
    outputs: tuple[Field, ...] | None = None

    def __post_init__(self) -> None:
        for side, fields in (("inputs", self.inputs), ("outputs", self.outputs)):
            if fields is not None and len({field.name for field in fields}) != max(1, len(fields)):
                raise InvalidInput(f"{side}: declare at least one field, each name once, or leave {side} out")
        if any(field.classes for field in self.inputs or ()):
            raise InvalidInput("inputs: classes name the values of an output; leave them out here")
        if any(field.sample_rate is not None for field in self.outputs or ()):
            raise InvalidInput("outputs: a sample_rate is for an input that takes sound; leave it out here")

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
        Python numbers where they fit; the bytes of an image or audio file pass as they are, see `Field.media`. Without declared
        inputs every value that can be carried passes.
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
        return zip_columns({field.name: _column(field, named[field.name]) for field in self.inputs})

    def output(self, row: Any) -> Any:
        """One row of a model's outputs, checked: the value itself for one declared output, a dict for several.

        Arrays must have exactly the declared dtype and shape, those without dimensions become scalars; NaN and inf pass.
        InvalidInput says what differs.
        """
        if self.outputs is None:
            return scalars(canonical(row))
        if type(row) is np.ndarray and len(self.outputs) == 1:
            only = self.outputs[0]
            if row.dtype == ARRAY_DTYPES.get(only.dtype) and row.shape == only.shape != () and row.flags.c_contiguous:
                return row
        named = _named(self.outputs, row, "output")
        made = {out.name: _checked(out, named[out.name], f"output {out.name!a}", exact=True) for out in self.outputs}
        made = {name: scalars(value) for name, value in made.items()}
        return made[self.outputs[0].name] if len(made) == 1 else made

    def differences(self, other: Signature) -> str:
        """What its callers would meet in the `other`: inputs of other names, other outputs; '' for nothing, or nothing known."""
        inputs, others = ([field.name for field in side or ()] for side in (self.inputs, other.inputs))
        if inputs and others and set(inputs) != set(others):
            return f"its inputs are {', '.join(map(shown, others))}, not {', '.join(map(shown, inputs))}"
        told = [_told(side.outputs) for side in (self, other)]
        return f"its outputs are {told[1]}, not {told[0]}" if all(told) and told[0] != told[1] else ""

    def by_class(self, result: Any) -> Any:
        """A result with the values of outputs that have classes by their names: `{class: value}`, and of a batch a list of
        those. All else is as it was.
        """  # fmt: skip
        classes = {field.name: field.classes for field in self.outputs or () if field.classes}
        if classes and len(self.outputs or ()) == 1:
            return named(result, *classes.values())
        if not classes or not isinstance(result, dict):
            return result
        return {name: named(value, classes[name]) if name in classes else value for name, value in result.items()}


def _told(outputs: tuple[Field, ...] | None) -> str:
    """Outputs as a caller meets them: one by itself has no name."""
    fields = sorted(outputs or (), key=lambda f: f.name)
    described = (f"{shown(f.name)}: {f}" if len(fields) > 1 else f"{f}" for f in fields)
    classes = [shown(list(f.classes)) for f in fields if f.classes]
    return "; ".join([*described, *(f"classes {one}" for one in classes)])


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
    if isinstance(value, _VALUE_TYPES["bytes"]) and field.media and not exact:
        return bytes(value)  # a file, which the worker reads
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


def checked_column(field: Field, value: Any) -> NDArray[Any]:
    """An array `(n, *shape)` for an input that is no cell; its rows are those that `Signature.row` gives."""
    array: NDArray[Any] = _checked(replace(field, shape=(-1, *field.shape)), value, f"input {field.name!a}")
    return array


def _column(field: Field, value: Any) -> list[Any]:
    files = field.media and isinstance(value, list | tuple) and any(type(item) is bytes for item in value)
    if field.dtype in ARRAY_DTYPES and not field.cell and not files:
        return split_rows(checked_column(field, value), field.name)
    items = split_rows(as_array(value).tolist() if is_array(value) else value, field.name)
    return [_checked(field, item, f"input {field.name!a}[{i}]") for i, item in enumerate(items)]


def _free_rows(value: Any) -> list[Row]:
    if isinstance(value, dict):
        return zip_columns({name: split_rows(column, name) for name, column in value.items()})
    return [row["inputs"] for row in zip_columns({"inputs": split_rows(value, "inputs")})]


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
