"""From a file's columns to what a model takes: one array for each input where the rows allow it, and each bad row's error."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, without_frames
from forebay.contract.references import shown
from forebay.contract.requests.batch import MEDIA
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature
from forebay.contract.values import canonical
from forebay.datasets.columns import (
    Column,
    Values,
    cast_numbers,
    is_list,
    is_number,
    is_text,
    list_lengths,
    plain,
    shape_may_be,
    take,
    to_numpy,
)
from forebay.datasets.decoding import decode, for_each
from forebay.datasets.formats.media import PATH
from forebay.datasets.formats.source import Chunk


@dataclass(slots=True)
class Inputs:
    """A chunk's good rows, by input; their numbers `good`; and the errors of its bad rows by number."""

    values: dict[str, Values]
    good: NDArray[np.int64]
    bad: dict[int, Exception] = field(default_factory=dict)
    bare: bool = False  # no input is declared and there is one column: a row is the column's value

    @property
    def stacked(self) -> dict[str, NDArray[Any]] | None:
        arrays = {name: value for name, value in self.values.items() if isinstance(value, np.ndarray)}
        return arrays if len(arrays) == len(self.values) and not self.bare else None

    def rows(self) -> list[Any]:
        """The rows one by one, as a model's `predict` takes them."""
        if self.bare:
            (only,) = self.values.values()
            return list(only)
        return [dict(zip(self.values, row, strict=True)) for row in zip(*self.values.values(), strict=True)]


def convert(
    chunk: Chunk, columns: Mapping[str, Sequence[str]], signature: Signature, format: str, *, oriented: bool = True
) -> Inputs:
    """The inputs of a chunk's rows; `columns` names the columns that make each input. Images are turned as their tags say,
    unless they are not to be `oriented`.
    """  # fmt: skip
    bad = dict(chunk.bad)
    fields = {f.name: f for f in signature.inputs or ()}
    found: dict[str, Values] = {}
    for name, given in columns.items():
        parts = [chunk.columns[column] for column in given]
        declared = fields.get(name)
        files = plain(parts[0]) if isinstance(parts[0], pa.Array) and len(parts) == 1 else None
        if declared is not None and declared.dtype == "json" and len(given) > 1:
            found[name] = _each(declared, _objects(given, parts), chunk.bad, bad)
        elif files is not None and declared is not None and declared.media and holds_files(files.type):
            paths = [path.as_py() for path in chunk.columns[PATH]] if format in MEDIA else None
            found[name] = _each(declared, _decoded(files.to_pylist(), paths, declared, oriented), chunk.bad, bad)
        elif declared is not None and declared.media and isinstance(parts[0], list) and len(parts) == 1:
            there = {i: file for i, value in enumerate(parts[0]) if (file := _from_base64(value)) is not None}
            made = dict(zip(there, _decoded(list(there.values()), None, declared, oriented), strict=True))
            values = _python(declared, parts[0])
            found[name] = _each(declared, [made.get(i, value) for i, value in enumerate(values)], chunk.bad, bad)
        else:
            found[name] = _input(declared, parts, chunk.bad, bad)
    good = np.delete(np.arange(len(chunk)), list(bad))
    if len(good) < len(chunk):
        found = {name: take(values, good) for name, values in found.items()}
    found = {name: _stacked(values, fields.get(name)) for name, values in found.items()}
    return Inputs(found, good, bad, bare=not fields and len(found) == 1)


def _input(
    declared: Field | None, parts: Sequence[Column], skip: Mapping[int, Any], bad: dict[int, Exception]
) -> Values:
    """One input's values. Adds the errors of its bad rows to `bad`; the values of bad rows mean nothing."""
    column = plain(parts[0]) if isinstance(parts[0], pa.Array) else parts[0]
    if len(parts) > 1 or _makes_vector(declared, column):
        return _joined(declared, parts, skip, bad)
    if declared is not None and declared.cell and isinstance(column, pa.Array):
        numbers = _number_cells(declared, column)
        if numbers is None:
            return _each(declared, column.to_pylist(), skip, bad)
        _refuse_nan(declared, numbers, bad)
        return numbers
    if isinstance(column, pa.Array) and (declared is None or declared.dtype in ARRAY_DTYPES):
        whole = _whole(declared, column)
        if whole is not None:
            values, misfits = whole
            for i, error in misfits.items():
                bad.setdefault(i, error)
            _refuse_nan(declared, values, bad)
            return values
    return _each(declared, _python(declared, column), skip, bad)


def _objects(names: Sequence[str], parts: Sequence[Column]) -> list[Any]:
    """Several columns as an object for each row, or the error that one of its values has."""
    columns = [column.to_pylist() if isinstance(column, pa.Array) else column for column in parts]
    rows = (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))
    return [next((value for value in row.values() if isinstance(value, Exception)), row) for row in rows]


def _number_cells(declared: Field, column: pa.Array) -> NDArray[Any] | None:
    """A column of numbers with its gaps as NaN; None where cells have to be looked at one by one."""
    if declared.dtype == "str":
        return None
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not is_number(column.type):
        return None
    there = np.asarray(column.is_valid())
    zero = pa.scalar(False if pa.types.is_boolean(column.type) else 0, column.type)
    numbers = column.fill_null(zero).to_numpy(zero_copy_only=False).astype(np.float64)
    return cast_numbers(np.where(there, numbers, np.nan), ARRAY_DTYPES[declared.dtype])


def holds_files(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold image or audio files: their bytes, or structs with `bytes`, as Hugging Face keeps
    them.
    """  # fmt: skip
    if isinstance(kind, pa.StructType):
        return kind.get_field_index("bytes") >= 0 and holds_files(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _decoded(files: Sequence[Any], paths: Sequence[str] | None, declared: Field, oriented: bool) -> list[Any]:
    """Each file's array; None for one that is missing, or its error, which names its file where it has one."""

    def decoded(i: int) -> Any:
        data = files[i]["bytes"] if isinstance(files[i], dict) else files[i]
        if data is None:
            return None
        try:
            return decode(declared, data, oriented=oriented)
        except InvalidInput as error:
            return InvalidInput(f"{shown(paths[i])}: {error}") if paths is not None else without_frames(error)

    return for_each(decoded, range(len(files)))


def _from_base64(value: Any) -> bytes | None:
    """The file in JSON's form of bytes, `{"base64": "…"}`; None for any other value."""
    if not isinstance(value, dict) or [*value] != ["base64"]:
        return None
    try:
        return base64.b64decode(value["base64"], validate=True)
    except (TypeError, ValueError):
        return None


def _whole(declared: Field | None, column: pa.Array) -> tuple[NDArray[Any], dict[int, Exception]] | None:
    """A column of numbers or of lists of one length as one array, with zeros in its bad rows; None for any other column."""
    lengths, leaf = list_lengths(column.type)
    if not is_number(leaf) or (declared is not None and not casts_safely(leaf, declared)):
        return None
    bad, good = _misfits(declared, column, lengths)
    whole = _declared_array(declared, column.filter(pa.array(good)) if bad else column)
    if whole is None or not bad:
        return None if whole is None else (whole, bad)
    values = np.zeros((len(column), *whole.shape[1:]), whole.dtype)
    values[good] = whole
    return values, bad


def _misfits(
    declared: Field | None, column: pa.Array, lengths: Sequence[int | None]
) -> tuple[dict[int, Exception], NDArray[np.bool_]]:
    """The errors of rows that are null or whose list does not have the declared length, and a mask of the other rows."""
    good = np.asarray(column.is_valid())
    bad: dict[int, Exception] = {int(i): _null() for i in np.flatnonzero(~good)}
    if list(lengths) == [None] and declared is not None and -1 not in declared.shape:
        sizes = np.asarray(pc.list_value_length(column).fill_null(-1))
        for i in np.flatnonzero(good & (sizes != math.prod(declared.shape))):
            bad[int(i)] = InvalidInput(f"input {declared.name!a}: expected {declared}, got {sizes[i]} values")
        good &= sizes == math.prod(declared.shape)
    return bad, good


def _declared_array(declared: Field | None, column: pa.Array) -> NDArray[Any] | None:
    array = to_numpy(column)
    if array is None or declared is None:
        return array
    cast = cast_numbers(array, ARRAY_DTYPES[declared.dtype])
    if cast is None or not shape_may_be(declared.shape, array.shape[1:]):
        return None
    return cast if cast.ndim == 1 + len(declared.shape) else cast.reshape(len(column), *declared.shape)


def _makes_vector(declared: Field | None, column: Column) -> bool:
    """Whether a column of single values is a vector of length 1."""
    return declared is not None and declared.shape == (1,) and isinstance(column, pa.Array) and not is_list(column.type)


def casts_safely(kind: Any, declared: Field) -> bool:
    """Whether numbers of this type can be the declared ones: floats do not become integers, nor numbers truth values."""
    wanted = ARRAY_DTYPES[declared.dtype].kind
    given = "b" if pa.types.is_boolean(kind) else "f" if pa.types.is_floating(kind) else "i"
    return given == wanted or (given == "i" and wanted in "iuf")


def _refuse_nan(declared: Field | None, values: NDArray[Any], bad: dict[int, Exception]) -> None:
    if declared is None or declared.allow_nan or values.dtype.kind != "f":
        return
    finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    for i in np.flatnonzero(~finite):
        bad.setdefault(int(i), InvalidInput(f"input {declared.name!a}: it holds NaN or infinity"))


def _python(declared: Field | None, column: Column) -> list[Any]:
    """A column as Python's values; text is read as numbers where numbers are declared."""
    text = isinstance(column, pa.Array) and is_text(column.type)
    values = column.to_pylist() if isinstance(column, pa.Array) else column
    if text and declared is not None and declared.dtype in ARRAY_DTYPES:
        return [_parse_number(value) for value in values]
    if declared is None or declared.dtype not in ARRAY_DTYPES:
        return values
    return [_as_array(value, declared) for value in values]


def _as_array(value: Any, declared: Field) -> Any:
    """A flat list of numbers as an array of the declared shape; any other value as it is."""
    if not isinstance(value, list) or len(declared.shape) < 2 or -1 in declared.shape:
        return value
    flat = np.array(value) if value and all(type(item) in (int, float) for item in value) else None
    if flat is None or flat.dtype.kind not in "if" or flat.size != math.prod(declared.shape):
        return value
    if flat.dtype.kind == "f" and ARRAY_DTYPES[declared.dtype].kind != "f":
        return value
    cast = cast_numbers(flat, ARRAY_DTYPES[declared.dtype])
    return value if cast is None else cast.reshape(declared.shape)


def _parse_number(text: Any) -> Any:
    if text is None or isinstance(text, Exception):
        return text
    try:
        return float(text) if not text.strip().lstrip("+-").isdigit() else int(text)
    except ValueError:
        return InvalidInput(f"{shown(text)} is not a number")


def _each(
    declared: Field | None, values: Sequence[Any], skip: Mapping[int, Any], bad: dict[int, Exception]
) -> list[Any]:
    """The values, each checked as `predict` checks an input."""
    signature = Signature((declared,)) if declared is not None else None
    made: list[Any] = [None] * len(values)
    for i, value in enumerate(values):
        if i in skip:
            continue
        try:
            if isinstance(value, Exception):
                raise value
            if value is None and (declared is None or not (declared.cell or declared.dtype == "json")):
                raise _null()
            made[i] = canonical(value) if signature is None else signature.row({declared.name: value})[declared.name]  # type: ignore[union-attr]
        except InvalidInput as error:
            bad.setdefault(i, without_frames(error))
    return made


def _joined(
    declared: Field | None, parts: Sequence[Column], skip: Mapping[int, Any], bad: dict[int, Exception]
) -> Values:
    """Several columns of numbers as one column of vectors."""
    scalar = Field("value", declared.dtype if declared is not None else "float64")
    columns = [_input(scalar, [part], skip, bad) for part in parts]
    rows = len(parts[0])
    vectors = np.zeros((rows, len(columns)), ARRAY_DTYPES[scalar.dtype])
    for i, column in enumerate(columns):
        if isinstance(column, list):
            column = np.array([0 if value is None else value for value in column], vectors.dtype)
        vectors[:, i] = column
    _refuse_nan(declared, vectors, bad)
    return vectors


def _stacked(values: Values, declared: Field | None) -> Values:
    """A list of arrays of equal shapes as one array."""
    if isinstance(values, np.ndarray) or not values or declared is None or declared.dtype not in ARRAY_DTYPES:
        return values
    shapes = {value.shape for value in values}
    return np.stack(values) if len(shapes) == 1 else values


def _null() -> InvalidInput:
    return InvalidInput("the value is missing (null)")
