"""A job's result as an answer of the protocol: one tensor for each output, in JSON or as binary data behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from forebay.api.inference.requests import Wanted
from forebay.api.inference.tensors import Array, datatype_of, objects, to_binary, to_json
from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.references import shown
from forebay.contract.signature import Signature
from forebay.contract.values import plain_json

ONLY = "output"  # what a model's only output is called when it declares none


class OutputTensor(Struct):
    """One output. Its data, flat in row-major order, is here or in `parameters.binary_data_size` bytes behind the JSON."""

    name: str
    datatype: str
    shape: Sequence[int]
    parameters: Mapping[str, int] | UnsetType = UNSET
    data: list[Any] | UnsetType = UNSET


class InferenceResponse(Struct):
    """An answer. `parameters.job_id` is the job that gave it."""

    model_name: str
    model_version: str
    outputs: Sequence[OutputTensor]
    parameters: Mapping[str, str]
    id: str | UnsetType = UNSET


class Answer(NamedTuple):
    """A body, and how many of its first bytes are JSON when binary data follows."""

    body: bytes
    header_length: int | None


def check_outputs(wanted: Wanted, signature: Signature) -> None:
    """InvalidInput when an output is asked for that the model will not have, or cannot be told in JSON."""
    if signature.outputs is None:
        return
    declared = {field.name: field.dtype for field in signature.outputs}
    for name, binary in (wanted.outputs or dict.fromkeys(declared, wanted.binary)).items():
        if name not in declared:
            raise InvalidInput(f"there is no output {shown(name)}; there are {', '.join(map(shown, declared))}")
        if declared[name] == "float16" and not binary:
            raise InvalidInput(f"output {shown(name)}: JSON cannot carry FP16; ask for it as binary data")


def answer(wanted: Wanted, model: ModelVersion, job_id: str, result: Any, rows: int) -> Answer:
    """The answer to a request of `rows` rows whose job has this result; InvalidInput when it cannot be told as it is wanted."""
    try:
        columns = _columns(model.signature, result, rows)
        forms = wanted.outputs or dict.fromkeys(columns, wanted.binary)
        tensors, blobs = [], []
        for name, binary in forms.items():
            if name not in columns:
                raise InvalidInput(f"there is no output {shown(name)}; there are {', '.join(map(shown, columns))}")
            tensor, blob = _tensor(name, columns[name], binary)
            tensors.append(tensor)
            blobs.append(blob)
    except InvalidInput as error:
        raise InvalidInput(f"{error}; job {job_id} has the result") from error
    response = InferenceResponse(model.name, str(model.version), tensors, {"job_id": job_id}, wanted.id or UNSET)
    head = msgspec.json.encode(response)
    return Answer(b"".join([head, *blobs]), len(head) if any(forms.values()) else None)


def _tensor(name: str, array: Array, binary: bool) -> tuple[OutputTensor, bytes]:
    tensor = OutputTensor(name, datatype_of(array), array.shape)
    if binary:
        blob = to_binary(array)
        tensor.parameters = {"binary_data_size": len(blob)}
        return tensor, blob
    tensor.data = to_json(array, f"output {shown(name)}")
    return tensor, b""


def _columns(signature: Signature, result: Any, count: int) -> dict[str, Array]:
    """Each output's values for all `count` rows, by name."""
    if signature.outputs is None:
        named = result if isinstance(result, dict) else {ONLY: result}
        return {name: _array(name, value, None, count) for name, value in named.items()}
    fields = signature.outputs
    named = {fields[0].name: result} if len(fields) == 1 else result
    return {field.name: _array(field.name, named[field.name], field.dtype, count) for field in fields}


def _array(name: str, values: Any, dtype: str | None, count: int) -> Array:
    """Values, one for each row, as a tensor: what no tensor holds as BYTES, each a JSON text."""
    where = f"output {shown(name)}"
    if isinstance(values, np.ndarray):
        return values if values.dtype.kind not in "US" else _encoded(values)
    rows = _rows(values, count)
    kinds = {*map(type, rows)}
    if dtype != "json" and kinds == {str}:
        return objects([row.encode() for row in rows])
    if dtype != "json" and kinds == {bytes}:
        return objects(rows)
    if any(isinstance(row, np.ndarray) for row in rows):
        raise InvalidInput(f"{where}: its rows differ in shape or dtype; send them one by one")
    if dtype is None and kinds in ({bool}, {float}):
        return np.array(rows)
    if dtype is None and kinds == {int} and max(rows) < 2**63:
        return np.array(rows, np.int64)
    try:
        return objects([json.dumps(plain_json(row), allow_nan=False, ensure_ascii=False).encode() for row in rows])
    except ValueError as error:
        raise InvalidInput(f"{where}: {error}") from error


def _rows(values: Any, count: int) -> list[Any]:
    """The rows again that `join_rows` has made a dict of columns from."""
    if not isinstance(values, dict):
        return list(values)
    columns = {name: _rows(value, count) for name, value in values.items()}
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def _encoded(texts: Array) -> Array:
    elements = objects([text if isinstance(text, bytes) else text.encode() for text in texts.reshape(-1).tolist()])
    return elements.reshape(texts.shape)
