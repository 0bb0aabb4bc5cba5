"""The request of a conversion: whether the version can be converted, and the rows that are to show that nothing has changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from forebay.contract.errors import InvalidInput
from forebay.contract.model import ModelVersion
from forebay.contract.references import check_alias
from forebay.contract.requests.fields import check
from forebay.contract.requests.versions.convert import ConvertRequest
from forebay.contract.signature import ARRAY_DTYPES
from forebay.producer.requests.trial import trial_data
from forebay.producer.session import Session

_INTO = {
    "torch-export": ("onnx",),
    "sentence-transformers": ("onnx",),
    "transformers": ("onnx",),
    "safetensors": ("onnx", "torch-export"),
    "recipe": ("onnx", "torch-export"),
}
_WHY_NOT = {
    "onnx": "an ONNX file is converted into nothing else; register the module that it was exported from",
    "python": "a class of your own has no graph; export the module in it with torch.export.export",
    "openai": "another server runs it",
    "text-generation": "it generates text in a loop, which no graph holds",
    "sentence-transformers": "its tokenizer is no part of a torch program; only onnx keeps it beside the graph",
    "transformers": "its tokenizer or processor is no part of a torch program; only onnx keeps it beside the graph",
    "torch-export": "it is one already",
}


def make_request(
    session: Session, model: ModelVersion, asked: Mapping[str, Any], dataset: Any, columns: Any, format: str | None
) -> ConvertRequest:
    """The request, checked; `dataset`, where there is one, against the model's signature."""
    request = check(asked, ConvertRequest)
    check_convertible(model, request.to)
    if request.alias is not None:
        check_alias(request.alias)
        request = replace(request, replaces=session.registry.alias_version(model.name, request.alias))
    return replace(request, data=trial_data(session, model, dataset, columns, format))


def check_convertible(model: ModelVersion, to: str) -> None:
    """InvalidInput, with the reason, for a version that is not converted into this form."""
    if to in _INTO.get(model.runtime, ()):
        inputs = model.signature.inputs
        if inputs is None:
            raise InvalidInput(
                f"{model.ref} declares no inputs, of which its graph would be made: register it again with inputs="
            )
        odd = next((field for field in inputs if field.dtype not in ARRAY_DTYPES), None)
        if odd is None or model.runtime in ("sentence-transformers", "transformers"):
            return
        reason = f"its input {odd.name!r} is {odd.dtype}, which its own code turns into numbers outside of the graph"
    else:
        reason = _WHY_NOT.get(model.runtime, f"runtime {model.runtime!r} has its own code around the graph")
    raise InvalidInput(f"{model.ref} cannot be converted to {to}: {reason}")
