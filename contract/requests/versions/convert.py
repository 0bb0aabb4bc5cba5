"""Conversions as both ends see them: a version in another form, and how far its outputs may be from the original's."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from forebay.contract.requests.batch import BatchRequest
from forebay.contract.requests.request import Request

TOLERANCE = 1e-4


class ConvertRequest(Request, frozen=True):
    """What a conversion is to do, as its payload holds it.

    Both versions run `rows` rows: of `data` where it is given, else made ones. The new one is registered when all outputs are
    within `tolerance` of the original's. An output with a value above 1 is compared relative to its largest value, a smaller one
    absolutely; an output that is below 1 in all rows relative to the largest of these.
    """

    to: Annotated[Literal["onnx", "torch-export"], Meta(description="the form of the new version")] = "onnx"
    tolerance: Annotated[float, Meta(gt=0, le=1, description="how far outputs may be from the original's")] = TOLERANCE
    rows: Annotated[int, Meta(ge=1, le=100_000, description="rows that both versions run")] = 100
    alias: Annotated[str | None, Meta(description="an alias to point at the new version")] = None
    replaces: int | None = None  # the version that the alias named when this was asked for; 0: none
    data: BatchRequest | None = None
