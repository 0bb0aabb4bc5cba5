"""From a file's columns to what a model takes: whole arrays where the rows allow it, and for each bad row its error.

Arrow lists of numbers become one NumPy array without a Python object for each row. Also says at submit whether a column's
type can meet the model's signature at all.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, MissingExtra
from forebay.contract.references import shown
from forebay.contract.requests.batch import IMAGES
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature
from forebay.contract.values import canonical
from forebay.datasets.formats.source import Chunk, Column

Values = NDArray[Any] | list[Any]
FREE = "input"  # what the only input is called when the model declares none


@dataclass(slots=True)
class Inputs:
    """The good rows of a chunk: by input an array `(good rows, *shape)` or a list; which rows they are; the bad ones."""

    values: dict[str, Values]
    good: NDArray[np.int64]
    bad: dict[int, Exception] = field(default_factory=dict)
    bare: bool = False  # no input is declared and there is one column: a row is the value itself

    @property
    def stacked(self) -> dict[str, NDArray[Any]] | None:
        """The arrays, when every input is one."""
        arrays = {name: value for name, value in self.values.items() if isinstance(value, np.ndarray)}
        return arrays if len(arrays) == len(self.values) and not self.bare else None

    def rows(self) -> list[Any]:
        """The rows one by one, as a model's `predict` takes them."""
        if self.bare:
            (only,) = self.values.values()
            return list(only)
        return [dict(zip(self.values, row, strict=True)) for row in zip(*self.values.values(), strict=True)]


def convert(chunk: Chunk, columns: Mapping[str, Sequence[str]], signature: Signature, format: str) -> Inputs:
    """The inputs of a chunk's rows; `columns` names the columns that make each input."""
    bad = dict(chunk.bad)
    fields = {f.name: f for f in signature.inputs or ()}
    found: dict[str, Values] = {}
    for name, given in columns.items():
        parts = [chunk.columns[column] for column in given]
        found[name] = _input(fields.get(name), parts, format, chunk.bad, bad)
    good = others(len(chunk), bad)
    if len(good) < len(chunk):
        found = {name: _picked(values, good) for name, values in found.items()}
    found = {name: _stacked(values, fields.get(name)) for name, values in found.items()}
    return Inputs(found, good, bad, bare=not fields and len(found) == 1)


def others(count: int, but: Collection[int]) -> NDArray[np.int64]:
    """The numbers below `count` that are not among `but`."""
    stay = np.ones(count, bool)
    stay[list(but)] = False
    return np.flatnonzero(stay)


def misfit(declared: Field, types: Sequence[pa.DataType | None], format: str) -> str | None:
    """What was found instead, when columns of these types can never make the declared input; None when they may."""
    if any(kind is None for kind in types):
        return None
    if len(types) > 1:
        wrong = [str(kind) for kind in types if not _is_number(kind)]
        if declared.dtype not in ARRAY_DTYPES or len(declared.shape) != 1:
            return f"{len(types)} columns"
        short = declared.shape[0] not in (-1, len(types))
        return f"a column of {wrong[0]}" if wrong else f"{len(types)} columns" if short else None
    kind = types[0]
    if format == IMAGES:
        return None if declared.dtype == "bytes" or _takes_pixels(declared) else "images"
    return None if _may_hold(declared, kind) else str(kind)


def _may_hold(declared: Field, kind: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if declared.dtype == "json" or pa.types.is_null(kind):
        return declared.dtype == "json"
    if declared.dtype == "str":
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
    if declared.dtype == "bytes":
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
    lengths, leaf = _lengths(kind)
    if not _is_number(leaf) or not _safe(leaf, declared):
        return False
    if None in lengths:  # lists of any length: each row will tell
        return bool(declared.shape)
    if any(length == -1 for length in declared.shape):
        return len(lengths) == len(declared.shape) or len(declared.shape) == 1
    return math.prod(length or 0 for length in lengths) == math.prod(declared.shape)


def _lengths(kind: Any) -> tuple[list[int | None], Any]:
    """The lengths of nested lists (None: any), and the type within."""
    lengths: list[int | None] = []
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    while pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return lengths, kind


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _safe(kind: Any, declared: Field) -> bool:
    """Whether numbers of this type can be the declared ones: floats do not become integers, numbers not bool."""
    wanted = ARRAY_DTYPES[declared.dtype].kind
    given = "b" if pa.types.is_boolean(kind) else "f" if pa.types.is_floating(kind) else "i"
    return given == wanted or (given == "i" and wanted in "iuf")


def _takes_pixels(declared: Field) -> bool:
    return declared.dtype == "uint8" and len(declared.shape) in (2, 3) and declared.shape[2:] in ((), (1,), (3,), (-1,))


def _input(
    declared: Field | None, parts: Sequence[Column], format: str, skip: Mapping[int, Any], bad: dict[int, Exception]
) -> Values:
    """One input's values, a row's error noted in `bad`; what stands in the place of a bad row does not matter."""
    if format == IMAGES and declared is not None and declared.dtype != "bytes":
        return _each(declared, [_pixels(declared, data.as_py()) for data in parts[0]], skip, bad)
    if len(parts) > 1:
        return _joined(declared, parts, skip, bad)
    column = parts[0]
    if isinstance(column, pa.Array) and (declared is None or declared.dtype in ARRAY_DTYPES):
        whole = _whole(declared, column)
        if whole is not None:
            values, misfits = whole
            for i, error in misfits.items():
                bad.setdefault(i, error)
            _refuse_nan(declared, values, bad)
            return values
    return _each(declared, _python(declared, column), skip, bad)


def _whole(declared: Field | None, column: pa.Array) -> tuple[NDArray[Any], dict[int, Exception]] | None:
    """A column of numbers, or of lists of one length, as one array, and its bad rows, which hold zeros; None if neither."""
    lengths, leaf = _lengths(column.type)
    if not _is_number(leaf) or (declared is not None and not _safe(leaf, declared)):
        return None
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    bad, good = _misfits(declared, column, lengths)
    whole = _array(declared, column.filter(pa.array(good)) if bad else column, lengths)
    if whole is None or not bad:
        return None if whole is None else (whole, bad)
    values = np.zeros((len(column), *whole.shape[1:]), whole.dtype)
    values[good] = whole
    return values, bad


def _misfits(
    declared: Field | None, column: pa.Array, lengths: Sequence[int | None]
) -> tuple[dict[int, Exception], NDArray[np.bool_]]:
    """The rows that are null, or whose list has not the declared length; and a mask of the others."""
    good = np.asarray(column.is_valid())
    bad: dict[int, Exception] = {int(i): _null() for i in np.flatnonzero(~good)}
    if list(lengths) == [None] and declared is not None and -1 not in declared.shape:
        sizes = np.asarray(pc.list_value_length(column).fill_null(-1))
        for i in np.flatnonzero(good & (sizes != math.prod(declared.shape))):
            bad[int(i)] = InvalidInput(f"input {declared.name!a}: expected {declared}, got {sizes[i]} values")
        good &= sizes == math.prod(declared.shape)
    return bad, good


def _array(declared: Field | None, column: pa.Array, lengths: Sequence[int | None]) -> NDArray[Any] | None:
    count, shape = len(column), []
    for fixed in lengths:
        length = fixed
        if column.null_count:
            return None
        if length is None:
            sizes = pc.list_value_length(column)
            length = sizes[0].as_py() if len(sizes) else 0
            if not pc.all(pc.equal(sizes, length)).as_py():
                return None
        column = column.flatten()
        shape.append(length)
    if column.null_count:
        return None
    flat: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if declared is None:
        return flat.reshape(count, *shape)
    wanted = declared.shape if -1 not in declared.shape else tuple(shape)
    cast = _cast(flat, ARRAY_DTYPES[declared.dtype])
    if cast is None or len(wanted) != len(declared.shape) or cast.size != count * math.prod(wanted):
        return None
    return cast.reshape(count, *wanted)


def _cast(flat: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """`flat` as `dtype`; None when a number does not fit."""
    if flat.dtype == dtype:
        return flat
    if dtype.kind in "iu" and len(flat):
        bounds = np.iinfo(dtype)
        if int(flat.min()) < bounds.min or int(flat.max()) > bounds.max:
            return None
    with np.errstate(over="ignore"):
        cast = flat.astype(dtype)
    if dtype.kind == "f" and flat.dtype.kind == "f" and bool((np.isinf(cast) != np.isinf(flat)).any()):
        return None
    return cast


def _refuse_nan(declared: Field | None, values: NDArray[Any], bad: dict[int, Exception]) -> None:
    if declared is None or declared.allow_nan or values.dtype.kind != "f":
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    for i in np.flatnonzero(~finite):
        bad.setdefault(int(i), InvalidInput(f"input {declared.name!a}: it holds NaN or infinity"))


def _python(declared: Field | None, column: Column) -> list[Any]:
    """A column's values as Python's, text that stands for numbers as numbers."""
    text = isinstance(column, pa.Array) and (pa.types.is_string(column.type) or pa.types.is_large_string(column.type))
    values = column.to_pylist() if isinstance(column, pa.Array) else column
    if text and declared is not None and declared.dtype in ARRAY_DTYPES:
        return [_number(value) for value in values]
    if declared is None or declared.dtype not in ARRAY_DTYPES:
        return values
    return [_as_floats(value, declared) for value in values]


def _as_floats(value: Any, declared: Field) -> Any:
    """A list of numbers as an array, where it is one; flat lists take the declared shape."""
    if not isinstance(value, list) or -1 in declared.shape:
        return value
    flat = np.array(value) if value and all(type(item) in (int, float) for item in value) else None
    if flat is None or flat.dtype.kind not in "if" or flat.size != math.prod(declared.shape):
        return value
    if flat.dtype.kind == "f" and ARRAY_DTYPES[declared.dtype].kind != "f":
        return value
    cast = _cast(flat, ARRAY_DTYPES[declared.dtype])
    return value if cast is None else cast.reshape(declared.shape)


def _number(text: Any) -> Any:
    if text is None or isinstance(text, Exception):
        return text
    try:
        return float(text) if not text.strip().lstrip("+-").isdigit() else int(text)
    except ValueError:
        return InvalidInput(f"{shown(text)} is no number")


def _each(
    declared: Field | None, values: Sequence[Any], skip: Mapping[int, Any], bad: dict[int, Exception]
) -> list[Any]:
    """Each value checked as `predict` checks it."""
    signature = Signature((declared,)) if declared is not None else None
    made: list[Any] = [None] * len(values)
    for i, value in enumerate(values):
        if i in skip:
            continue
        try:
            if isinstance(value, Exception):
                raise value
            if value is None and (declared is None or declared.dtype != "json"):
                raise _null()
            made[i] = canonical(value) if signature is None else signature.row({declared.name: value})[declared.name]  # type: ignore[union-attr]
        except InvalidInput as error:
            bad.setdefault(i, error)
    return made


def _joined(
    declared: Field | None, parts: Sequence[Column], skip: Mapping[int, Any], bad: dict[int, Exception]
) -> Values:
    """Several columns of numbers as one vector for each row."""
    scalar = Field("value", declared.dtype if declared is not None else "float64")
    columns = [_input(scalar, [part], "", skip, bad) for part in parts]
    rows = len(parts[0])
    vectors = np.zeros((rows, len(columns)), ARRAY_DTYPES[scalar.dtype])
    for i, column in enumerate(columns):
        if isinstance(column, list):
            column = np.array([0 if value is None else value for value in column], vectors.dtype)
        vectors[:, i] = column
    _refuse_nan(declared, vectors, bad)
    return vectors


def _pixels(declared: Field, data: bytes) -> Any:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtra("reading images needs Pillow: pip install 'forebay[batch]'") from error
    try:
        with Image.open(io.BytesIO(data)) as image:
            gray = len(declared.shape) == 2 or declared.shape[2] == 1
            array = np.asarray(image.convert("L" if gray else "RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        return InvalidInput(f"it is no image that Pillow can read: {error}")
    return array[..., None] if gray and len(declared.shape) == 3 else array


def _picked(values: Values, good: NDArray[np.int64]) -> Values:
    return values[good] if isinstance(values, np.ndarray) else [values[i] for i in good]


def _stacked(values: Values, declared: Field | None) -> Values:
    """A list of arrays of one declared shape as one array."""
    if isinstance(values, np.ndarray) or not values or declared is None or declared.dtype not in ARRAY_DTYPES:
        return values
    shapes = {value.shape for value in values}
    return np.stack(values) if len(shapes) == 1 else values


def _null() -> InvalidInput:
    return InvalidInput("the value is missing (null)")
