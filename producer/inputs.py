"""Inputs in the forms that people have them in: rows and frames of pandas or polars, Arrow tables, PIL images.

They become the plain values and arrays that a signature checks. None of those packages is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import INPUTS, parse_generation
from forebay.contract.model import GENERATES_TEXT, ModelVersion
from forebay.contract.references import shown
from forebay.contract.signature import ARRAY_DTYPES, BATCH_HINT, Field, Row, Signature, checked_column
from forebay.contract.values import is_tensor
from forebay.contract.wire import codec

# PIL's modes whose pixels are what an image shows; those of the others are indices, or not red, green and blue.
PIXEL_MODES = ("1", "L", "I", "F", "I;16", "RGB", "RGBA")
MAX_EXAMPLE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class InputsFor:
    """Inputs that depend on the version they are for: `read` gives them once a submit knows which one that is."""

    read: Callable[[ModelVersion], Any]


def for_model(model: ModelVersion, value: Any) -> Any:
    """The value itself, or what InputsFor reads for this version."""
    return value.read(model) if isinstance(value, InputsFor) else value


def sample(signature: Signature, value: Any) -> Any:
    """One sample as plain values and arrays; InvalidInput for what has many rows, or no plain form."""
    if type(value) is np.ndarray:
        return value
    if _table_rows(value) is not None:
        raise InvalidInput("a table holds many samples: use predict_many for a job each, or batched=True for one job")
    return _row(signature, _labelled(value)) if is_a(value, "pandas", "Series") else _plain(value)


def batch(signature: Signature, value: Any) -> Any:
    """A batch as plain values and arrays: a table as its columns, or as one array for a model with one input."""
    rows = _table_rows(value)
    if rows is None:
        return _plain(value)
    samples = [_row(signature, row) for row in rows]
    only = _only_field(signature, rows[0]) if rows else None
    if only is None and samples:
        return {name: [row[name] for row in samples] for name in samples[0]}
    return samples


def several(signature: Signature, inputs: Any) -> Iterable[Any]:
    """The samples in `inputs`; those of a table are its rows."""
    rows = _table_rows(inputs)
    if rows is not None:
        return [_row(signature, row) for row in rows]
    try:
        if not isinstance(inputs, str | bytes | Mapping):
            return (sample(signature, value) for value in inputs)
    except TypeError:  # nothing to iterate over, or an array without a dimension
        pass
    raise InvalidInput(f"predict_many takes a sequence of inputs, got one {type(inputs).__name__}; use predict")


def check_requests(model: ModelVersion, rows: Iterable[Row]) -> None:
    """InvalidInput naming the field, for rows of a language model that are no requests for text."""
    if model.runtime in GENERATES_TEXT and model.signature.inputs_json() == INPUTS:
        for row in rows:
            parse_generation(row["request"])


def column(signature: Signature, value: Any) -> tuple[str, NDArray[Any]] | None:
    """The samples in an array or tensor `(n, *shape)` for the model's only input, checked together, and the input's name. None
    where each has to be looked at by itself, which also says what is wrong with which.
    """  # fmt: skip
    fields = signature.inputs or ()
    if not (type(value) is np.ndarray or is_tensor(value)) or len(fields) != 1:
        return None
    [field] = fields
    if field.cell or field.dtype not in ARRAY_DTYPES:
        return None
    try:
        array = checked_column(field, value)
    except InvalidInput:
        return None
    return (field.name, array) if array.size else None


def _table_rows(value: Any) -> list[dict[Any, Any]] | None:
    """A table's rows by column; None when `value` is no table."""
    if is_a(value, "pandas", "DataFrame"):
        names, rows_of = list(value.columns), partial(value.to_dict, "records")
    elif is_a(value, "polars", "DataFrame"):
        names, rows_of = value.columns, value.to_dicts
    elif is_a(value, "pyarrow", "Table", "RecordBatch"):
        names, rows_of = value.schema.names, value.to_pylist
    else:
        return None
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:  # a row by column would hold one of the two
        raise InvalidInput(f"the table has two columns called {shown(twice)}; rename one")
    rows: list[dict[Any, Any]] = rows_of()
    return rows


def _row(signature: Signature, row: Mapping[Any, Any]) -> Any:
    """A row by column as a sample: a dict of the inputs, or what a model's only input takes when no column has its name."""
    only = _only_field(signature, row)
    if only is not None and only.dtype != "json":  # for which the row itself is a value
        values = list(row.values())
        if len(values) > 1 and -1 in only.shape:  # whichever columns there are would fit
            raise InvalidInput(
                f"the model's only input {shown(only.name)} takes vectors of any length, and no column has its name, so that "
                f"columns cannot be told from one another: of {shown(list(row))} send those you mean as an array (.to_numpy())"
            )
        return values[0] if len(values) == 1 else values
    return {name: _plain(value) for name, value in row.items()}


def _only_field(signature: Signature, row: Mapping[Any, Any]) -> Field | None:
    """The only input of a model, to which a whole row goes because no column has its name; None when columns are inputs."""
    fields = signature.inputs or ()
    return fields[0] if len(fields) == 1 and fields[0].name not in row else None


def _labelled(series: Any) -> dict[Any, Any]:
    values: dict[Any, Any] = series.to_dict()
    if len(values) != len(series):
        raise InvalidInput("a Series whose labels repeat is no row; send its values with .to_numpy()")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, Path):
        return _file_bytes(value)
    if not is_a(value, "PIL", "Image"):
        return value
    if value.mode not in PIXEL_MODES:
        raise InvalidInput(f"the image is of mode {value.mode}; convert it first with .convert('RGB') or .convert('L')")
    return np.asarray(value)


def _file_bytes(path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise InvalidInput(f"the file {shown(str(path))} cannot be read: {error.strerror or error}") from error


def is_a(value: Any, package: str, *names: str) -> bool:
    """Whether `value` is an instance of one of these classes of a package, which is not imported for it."""
    return any(kind.__module__.partition(".")[0] == package and kind.__name__ in names for kind in type(value).__mro__)


def pack_example(model: ModelVersion, example: Any) -> bytes:
    """A sample as it is kept with a version."""
    try:
        data = codec.encode(model.signature.row(sample(model.signature, for_model(model, example))))
    except InvalidInput as error:
        raise InvalidInput(f"example: {str(error).replace(BATCH_HINT, 'give one sample')}") from error
    if len(data) > MAX_EXAMPLE_BYTES:
        raise InvalidInput(f"example: {len(data):,} bytes; at most {MAX_EXAMPLE_BYTES:,} are kept: give a smaller one")
    return data
