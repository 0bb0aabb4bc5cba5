"""How predictions are to be explained: what a user asks for, checked against the version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.model import GENERATES_TEXT, ModelVersion
from forebay.contract.references import shown
from forebay.contract.requests import explain
from forebay.contract.requests.explain import ExplainRequest, Target
from forebay.contract.requests.fields import check
from forebay.contract.signature import ARRAY_DTYPES, Row, Signature
from forebay.contract.values import as_array, is_array


def make_request(model: ModelVersion, asked: Mapping[str, Any]) -> ExplainRequest:
    """The request, with the class by its number; InvalidInput for what this version cannot do."""
    if model.runtime in GENERATES_TEXT:
        raise InvalidInput(f"runtime {model.runtime} gives text, and explain takes models that give numbers")
    given = {name: value for name, value in asked.items() if value is not None}
    target, baseline = given.pop("target", None), given.pop("baseline", None)
    if isinstance(given.get("method"), str | None):
        check({"method": "saliency"} | given, ExplainRequest)  # is there such a method?
        given["method"] = explain.check_method(model.runtime, model.signature, given.get("method"))
    request = check(given, ExplainRequest)
    explain.explained(model.signature)
    field = explain.explained_field(model.signature, request.output)
    try:
        place = explain.check_target(field, msgspec.convert(target, Target | None))
    except msgspec.ValidationError as error:
        raise InvalidInput(f"target: expected a class or its number, got {shown(target)}") from error
    _check_size(request, model.signature)
    return msgspec.structs.replace(request, target=place, baseline=_plain_baseline(model.signature, baseline))


def plain_request(model: ModelVersion, asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same as plain data."""
    made: dict[str, Any] = msgspec.to_builtins(make_request(model, asked))
    return made


def check_baseline(signature: Signature, rows: Sequence[Row], request: Mapping[str, Any]) -> None:
    """InvalidInput when the baseline has other shapes than these rows."""
    if request["baseline"] is not None:
        explain.baseline_row(signature, rows, request["baseline"])


def _check_size(request: ExplainRequest, signature: Signature) -> None:
    fields = signature.inputs or ()
    numbers = sum(math.prod(abs(length) for length in field.shape) for field in fields)
    if request.method == explain.ABLATION and numbers > explain.MAX_FEATURES:
        raise InvalidInput(
            f"{explain.ABLATION} takes out one number after the other, and a row has {numbers:,}; at most "
            f"{explain.MAX_FEATURES:,}: use {explain.OCCLUSION}, or {explain.GRADIENTS}"
        )


def _plain_baseline(signature: Signature, baseline: Any) -> Any:
    """A number, or a sample, as JSON."""
    if baseline is None:
        return None
    for field in signature.inputs or ():
        if field.dtype not in ARRAY_DTYPES and not field.cell:
            raise InvalidInput(
                f"baseline: {shown(field.name)} is {field.dtype}, whose parts are left out, or covered: leave baseline out"
            )
    plain: Any = {n: _listed(v) for n, v in baseline.items()} if isinstance(baseline, Mapping) else _listed(baseline)
    if explain.is_number(plain):
        if not math.isfinite(plain):
            raise InvalidInput(f"baseline: {plain} is not finite")
        return plain
    try:
        row = signature.row(plain)
    except InvalidInput as error:
        raise InvalidInput(f"baseline: {error}") from error
    for name, value in row.items() if isinstance(row, Mapping) else [("input", row)]:
        if is_array(value) and not all(map(math.isfinite, as_array(value).reshape(-1).tolist())):
            raise InvalidInput(f"baseline: {shown(name)} holds a number that is not finite")
    return plain


def _listed(value: Any) -> Any:
    """Arrays as lists; all else as it is."""
    return as_array(value).tolist() if is_array(value) else value
