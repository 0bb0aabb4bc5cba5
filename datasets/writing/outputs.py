"""A model's outputs as the columns of a part: by the schema of the batch, or the types that its first outputs have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import described, shown
from forebay.contract.signature import Field
from forebay.contract.values import named
from forebay.datasets.columns import DEFAULT_OUTPUT, Values, from_numpy, from_values, values_type
from forebay.datasets.widening import convert, settled

Outputs: TypeAlias = Mapping[str, Values] | list[Any]
Agree: TypeAlias = Callable[[pa.Schema], pa.Schema]

_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, OverflowError)


@dataclass(slots=True)
class ModelOutputs:
    """A model's outputs for the rows `ok` of a chunk, as columns by name or one by one, the errors of other rows, and the tokens
    of prompts and of what was made of them.
    """  # fmt: skip

    ok: NDArray[np.int64]
    outputs: Outputs
    errors: dict[int, Exception]
    tokens: Sequence[int] | NDArray[np.int64] = (0, 0)


class PartSchema:
    """The schema that all parts of a batch have: as many `kept` columns, then the outputs.

    Those that the model does not declare get the types of the first that any shard has: `agree` gives a schema to all shards,
    and the one that came first back.
    """

    def __init__(
        self, schema: pa.Schema, kept: int, outputs: Sequence[Field] | None, agree: Agree = lambda schema: schema
    ) -> None:
        self.names = None if outputs is None else [field.name for field in outputs]
        self.classes = {field.name: field.classes for field in outputs or () if field.classes}
        self.kept = list(schema)[:kept]
        self.schema = schema
        self._agree = agree

    @property
    def outputs(self) -> list[pa.Field]:
        return list(self.schema)[len(self.kept) :]

    def settle(self, outputs: Outputs) -> None:
        """See to it that there are outputs in the schema; these are the first ones of this shard."""
        if self.outputs:
            return
        columns = dict(outputs) if isinstance(outputs, Mapping) else _by_key(outputs)
        clash = next((name for name in columns if name in self.schema.names), None)
        if clash is not None:
            raise InvalidInput(f"the model's output {shown(clash)} has the name of a kept column; rename the column")
        found = [(name, settled(values_type(values))) for name, values in columns.items()]
        self.schema = self._agree(pa.schema([*self.schema, *(pa.field(*one) for one in found)]))

    def columns(self, outputs: Outputs, ok: NDArray[np.int64], errors: dict[int, Exception]) -> list[pa.Array]:
        """A column for each output; where an output does not fit there is a null, and its row gets an error."""
        named = self._named(outputs, ok, errors)
        return [
            fitted(named[field.name], field.type, ok, errors, f"output {shown(field.name)}")
            if field.name in named
            else pa.nulls(len(ok), field.type)
            for field in self.outputs
        ]

    def _named(self, outputs: Outputs, ok: NDArray[np.int64], errors: dict[int, Exception]) -> Mapping[str, Values]:
        names = [field.name for field in self.outputs]
        if isinstance(outputs, Mapping):
            for name in (name for name in outputs if name not in names):
                _refuse_unknown(name, outputs[name], ok, errors)
            return outputs
        if self.names is not None and len(names) == 1:
            return {names[0]: outputs}
        if names == [DEFAULT_OUTPUT]:
            return {DEFAULT_OUTPUT: [_only(row) for row in outputs]}
        rows = [{names[0]: row} if len(names) == 1 and not isinstance(row, dict) else row for row in outputs]
        for i, row in zip(ok, rows, strict=True):
            unknown = [key for key in row if key not in names] if isinstance(row, dict) else None
            if unknown is None:
                errors.setdefault(
                    int(i), InvalidInput(f"output: expected a dict, as the first was, got {described(row)}")
                )
            elif unknown:
                errors.setdefault(int(i), _unknown(unknown[0]))
        return {name: [row.get(name) if isinstance(row, dict) else None for row in rows] for name in names}


def as_rows(outputs: Outputs, schema: PartSchema) -> list[dict[str, Any]]:
    """The outputs of each row by name, their values by class where they have any; one without a name is called `output`."""
    rows = _rows(outputs, schema.names)
    for name, classes in schema.classes.items():
        for row in rows:
            row[name] = named(row[name], classes)
    return rows


def _rows(outputs: Outputs, names: Sequence[str] | None) -> list[dict[str, Any]]:
    if isinstance(outputs, Mapping):
        return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    if names is not None and len(names) == 1:
        return [{names[0]: row} for row in outputs]
    return [row if isinstance(row, dict) else {DEFAULT_OUTPUT: row} for row in outputs]


def fitted(
    values: Values, kind: pa.DataType, ok: NDArray[np.int64], errors: dict[int, Exception], what: str
) -> pa.Array:
    """Values as a column of this type; for one that does not fit there is a null, and its row gets an error."""
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or pa.types.is_string(kind):
        rows = list(values)
        return _fitted(lambda at: from_values(rows[at], kind), rows, kind, ok, errors, what)
    array = from_numpy(values)
    return fitted_column(array, kind, ok, errors, what)


def fitted_column(
    array: pa.Array, kind: pa.DataType, ok: NDArray[np.int64], errors: dict[int, Exception], what: str
) -> pa.Array:
    """A column as one of this type, in the same way."""
    return _fitted(lambda at: convert(array[at], kind), array, kind, ok, errors, what)


def _fitted(
    make: Callable[[slice], pa.Array],
    values: Sequence[Any],
    kind: pa.DataType,
    ok: NDArray[np.int64],
    errors: dict[int, Exception],
    what: str,
) -> pa.Array:
    try:
        return make(slice(0, len(values)))
    except _MISFITS:
        made = []
    for at, row in enumerate(ok):
        try:
            made.append(make(slice(at, at + 1)))
        except _MISFITS:
            errors.setdefault(int(row), InvalidInput(f"{what}: expected {kind}, got {_told(values[at])}"))
            made.append(pa.nulls(1, kind))
    return pa.concat_arrays(made)


def _told(value: Any) -> str:
    if isinstance(value, pa.Scalar):
        return f"{shown(value.as_py())} ({value.type})"
    return described(value) if isinstance(value, np.ndarray) else f"{shown(value)}"


def _by_key(outputs: Sequence[Any]) -> dict[str, Values]:
    """Rows as columns: by their keys in the order they come up if every row is a dict, else as one."""
    if not all(isinstance(row, dict) for row in outputs) or not any(outputs):
        return {DEFAULT_OUTPUT: list(outputs)}
    names = dict.fromkeys(name for row in outputs for name in row)
    return {name: [row.get(name) for row in outputs] for name in names}


def _only(row: Any) -> Any:
    return row[DEFAULT_OUTPUT] if isinstance(row, dict) and [*row] == [DEFAULT_OUTPUT] else row


def _refuse_unknown(name: str, values: Values, ok: NDArray[np.int64], errors: dict[int, Exception]) -> None:
    for i, value in zip(ok, values, strict=True):
        if value is not None:
            errors.setdefault(int(i), _unknown(name))


def _unknown(name: Any) -> InvalidInput:
    return InvalidInput(
        f"output {shown(name)} is not among those that the batch's first rows had; declare the model's outputs, or give "
        "all of them for every row"
    )
