"""Compress jobs as both ends see them: how the weights of a version are to take less room, and what it may lose by that."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.evaluation import EvaluateRequest
from forebay.contract.requests.request import Request

INT8_WEIGHTS, INT8_DYNAMIC, BFLOAT16, PRUNE = "int8-weights", "int8-dynamic", "bfloat16", "prune"
MAX_LOSS = 0.01

WEIGHT_FILES = (  # the runtimes of safetensors files
    "safetensors", "recipe", "sentence-transformers", "transformers", "text-generation",
)  # fmt: skip
METHODS = {
    **dict.fromkeys((*WEIGHT_FILES, "torch-export"), (INT8_WEIGHTS, BFLOAT16, PRUNE)),
    "onnx": (INT8_WEIGHTS, INT8_DYNAMIC, PRUNE),
}
"""By runtime the methods that its artifacts can be compressed by."""


class CompressRequest(Request, frozen=True):
    """What a compression is to do, as its payload holds it. With an `evaluation`, the new version is registered only if its
    metric is at most `max_loss` worse.
    """  # fmt: skip

    method: Annotated[
        str, Meta(title="int8-weights, int8-dynamic, bfloat16, prune:0.5", description="how weights take less room")
    ] = INT8_WEIGHTS
    evaluation: EvaluateRequest | None = None
    max_loss: Annotated[float, Meta(ge=0, description="by how much the metric on the data set may be worse")] = MAX_LOSS
    alias: Annotated[str | None, Meta(description="moves to the new version")] = None
    replaces: int | None = None  # the version that the alias named when this was asked for; 0: none


def parse_method(method: str, ref: str, runtime: str) -> tuple[str, float]:
    """The method, and of prune the share of weights that become zero; InvalidInput for what the runtime does not have."""
    name, colon, text = method.partition(":")
    fitting = METHODS.get(runtime)
    if fitting is None:
        raise InvalidInput(f"{ref} has runtime {runtime!r}, which is not compressed; those of {', '.join(METHODS)} are")
    if name not in fitting or bool(colon) != (name == PRUNE):
        usable = ", ".join(f"{one}:0.5" if one == PRUNE else one for one in fitting)
        first = (
            f", or convert it first: forebay models convert {ref}, and then what that makes: forebay models compress"
        )
        convert = f"{first} {ref.partition('/')[0]} --method {INT8_DYNAMIC}" if name == INT8_DYNAMIC else ""
        raise InvalidInput(f"method {shown(method)}: for runtime {runtime!r} there are {usable}{convert}")
    try:
        share = float(text) if colon else 0.0
    except ValueError:
        share = 1.0
    if colon and not 0 < share < 1:
        raise InvalidInput(f"method {shown(method)}: the share of weights that become zero is a number between 0 and 1")
    return name, share
