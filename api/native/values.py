"""A job's inputs from JSON, and its result as JSON: exact both ways, or refused.

JSON has no NaN, no infinity and no bytes. They are written "NaN", "Infinity", "-Infinity" where a number may stand, and
`{"base64": "…"}`. Into a model with a declared signature they go by what it declares; one without takes JSON as it is.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.signature import ARRAY_DTYPES, Field, Signature

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_BASE64 = "base64"


def inputs_from_json(signature: Signature, value: Any, batched: bool) -> Any:
    """One sample (or, `batched`, one batch) as Client.predict takes it; InvalidInput where bytes are not in their form."""
    fields = signature.inputs
    if fields is None:
        return value
    if len(fields) == 1 and not (isinstance(value, Mapping) and [*value] == [fields[0].name]):
        file = fields[0].media and _holds_file(value) and [*value] == [_BASE64]
        if isinstance(value, Mapping) and fields[0].dtype not in ("json", "bytes") and not file:
            return value  # the signature says what is wrong with its names
        value = {fields[0].name: value}
    if not isinstance(value, Mapping):
        return value
    by_name = {field.name: field for field in fields}
    return {name: _input(by_name[name], item, batched) if name in by_name else item for name, item in value.items()}


def result_as_json(value: Any) -> Any:
    """A result as plain JSON data: arrays as nested lists, bytes as {"base64": …}, NaN and infinity as texts."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "bui" or (value.dtype.kind == "f" and np.isfinite(value).all()):
            return value.tolist()
        return result_as_json(value.tolist())
    if isinstance(value, np.generic):
        return result_as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return {_BASE64: base64.b64encode(value).decode("ascii")}
    if isinstance(value, list):
        return [result_as_json(item) for item in value]
    if isinstance(value, dict):
        return {key: result_as_json(item) for key, item in value.items()}
    return value


def _input(field: Field, value: Any, batched: bool) -> Any:
    if field.dtype == "bytes" or (field.media and _holds_file(value)):
        where = f"input {field.name!a}"
        return [_bytes(where, item) for item in value] if batched and isinstance(value, list) else _bytes(where, value)
    if field.dtype in ARRAY_DTYPES and ARRAY_DTYPES[field.dtype].kind == "f" and not field.cell:
        return _floats(value)
    return value


def _holds_file(value: Any) -> bool:
    """Whether an image or sound comes as a file, or files, in the place of its numbers."""
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def _bytes(where: str, value: Any) -> bytes:
    if not isinstance(value, dict) or [*value] != [_BASE64] or not isinstance(value[_BASE64], str):
        raise InvalidInput(f'{where}: bytes are written {{"base64": "…"}} in JSON, got {shown(value)}')
    try:
        return base64.b64decode(value[_BASE64], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(f"{where}: {shown(value[_BASE64])} is not base64: {error}") from error


def _floats(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, list) and not {float, int}.issuperset(map(type, value)):
        return [_floats(item) for item in value]
    return value
