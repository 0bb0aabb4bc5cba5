"""What an explanation is to be, as both ends see it: the method, the output that is explained, what inputs are held against."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.request import Request
from forebay.contract.signature import ARRAY_DTYPES, Field, Row, Signature

GRADIENTS, SALIENCY, OCCLUSION, ABLATION = "integrated-gradients", "saliency", "occlusion", "feature-ablation"
BY_GRADIENT = (GRADIENTS, SALIENCY)
DIFFERENTIABLE = ("torch-export", "safetensors", "recipe")  # the runtimes that give gradients
EXPLANATION = "explanation"  # beside the inputs in a result: what was explained, and how well
MAX_FEATURES = 4096  # of a row that are taken out one after the other

Target = Annotated[int, Meta(ge=0)] | str


class ExplainRequest(Request, frozen=True):
    """How predictions are to be explained. `baseline` is JSON: a number, or a sample as nested lists."""

    method: Annotated[
        Literal["integrated-gradients", "saliency", "occlusion", "feature-ablation"],
        Meta(description="how; none: integrated-gradients where the model gives gradients, else feature-ablation"),
    ]
    target: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="the class that is explained, or its number; none: each row's most probable one"),
    ] = None
    output: Annotated[str | None, Meta(description="the output that is explained; none: the one with classes")] = None
    baseline: Annotated[
        Any,
        Meta(description="what inputs are held against: a number, or a sample; none: zeros, a trained column's mean"),
    ] = None
    steps: Annotated[
        int, Meta(ge=2, le=1000, description="points of integrated-gradients between baseline and input")
    ] = 50
    tolerance: Annotated[
        float, Meta(gt=0, le=1, description="of the outputs' difference: by so much integrated-gradients may miss it")
    ] = 0.05
    window: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        Meta(description="the side of what occlusion covers; none: an eighth of the longest side"),
    ] = None

    @property
    def by_gradient(self) -> bool:
        return self.method in BY_GRADIENT


def check_method(runtime: str, signature: Signature, method: str | None) -> str:
    """The method, by default the best that the runtime can do; InvalidInput for one that it cannot."""
    inputs = signature.inputs or ()
    reason, file = (
        next(_no_gradients(runtime, inputs), None),
        next((f.name for f in inputs if f.dtype == "bytes"), None),
    )
    if method is None:
        return GRADIENTS if reason is None else OCCLUSION if file or any(map(_is_large, inputs)) else ABLATION
    if method == ABLATION and file:
        raise InvalidInput(f"input {shown(file)} is an image file: use {OCCLUSION}, whose window covers a part of it")
    if method in BY_GRADIENT and reason:
        raise InvalidInput(f"{method} does not work here: {reason}; use {ABLATION}")
    if method == SALIENCY and (category := next((f.name for f in inputs if f.dtype == "str"), None)):
        raise InvalidInput(f"saliency is the gradient by a number, and {shown(category)} is none; use {GRADIENTS}")
    if method == OCCLUSION and (flat := next((f.name for f in inputs if not _has_sides(f)), None)):
        raise InvalidInput(
            f"occlusion slides a window over arrays and images, and {shown(flat)} is none; use {ABLATION}"
        )
    return method


def _is_large(field: Field) -> bool:
    """Whether it is an image, or another array whose numbers are too many to be taken out one by one."""
    return len(field.shape) > 1 and (-1 in field.shape or math.prod(field.shape) > MAX_FEATURES)


def _has_sides(field: Field) -> bool:
    return field.dtype == "bytes" or bool(field.shape)


def _no_gradients(runtime: str, inputs: Sequence[Field]) -> Iterator[str]:
    """Why a version gives no gradients by its inputs."""
    if runtime not in DIFFERENTIABLE:
        yield f"runtime {runtime} gives no gradients"
    if runtime != "recipe":
        for field in inputs:
            if not field.dtype.startswith("float"):
                yield f"input {shown(field.name)} is {field.dtype}, and gradients are by floating-point numbers"


def explained_field(signature: Signature, output: str | None) -> Field | None:
    """The output that is explained; None where none is declared. InvalidInput when it has to be named, or holds no numbers."""
    fields = signature.outputs
    if fields is None:
        return None
    known = {field.name: field for field in fields if field.dtype in ARRAY_DTYPES and len(field.shape) <= 1}
    if not known:
        there = ", ".join(f"{field.name} ({field})" for field in fields)
        raise InvalidInput(f"explain takes an output that is a number or a vector; there are {there}")
    if output is None:
        found = [field for field in known.values() if field.classes] or [*known.values()]
        if len(found) == 1:
            return found[0]
    if output not in known:
        raise InvalidInput(f"output {shown(output)}: name one of {', '.join(known)}")
    return known[output]


def check_target(field: Field | None, target: int | str | None) -> int | None:
    """The number of a class; InvalidInput when the output has none of this name or number."""
    if target is None or field is None:
        if isinstance(target, str):
            raise InvalidInput(
                f"target {shown(target)}: the version declares no classes; give the number of the output's value"
            )
        return target
    classes = field.classes
    if isinstance(target, str):
        if target not in classes:
            there = f"its classes are {', '.join(classes):.300}" if classes else "it declares no classes; give a number"
            raise InvalidInput(f"target {shown(target)} is not a class of output {shown(field.name)}: {there}")
        return classes.index(target)
    length = field.shape[0] if field.shape else 1
    if length != -1 and target >= length:
        raise InvalidInput(f"target {target}: output {shown(field.name)} has {length} values, numbered from 0")
    return target


def baseline_row(signature: Signature, rows: Sequence[Row], baseline: Any) -> Row:
    """The sample that these rows are held against; InvalidInput unless it has the shapes that they have."""
    if is_number(baseline):
        row = rows[0]
        if isinstance(row, Mapping):
            return {name: _filled(name, value, baseline) for name, value in row.items()}
        return _filled("input", row, baseline)
    try:
        made = signature.row(baseline)
    except InvalidInput as error:
        raise InvalidInput(f"baseline: {error}") from error
    for row in rows:
        for name, value, other in (
            [(n, row[n], made[n]) for n in row] if isinstance(row, Mapping) else [("input", row, made)]
        ):
            if np.shape(value) != np.shape(other):
                given, wanted = list(np.shape(other)), list(np.shape(value))
                raise InvalidInput(f"baseline: {shown(name)} has the shape {given}, the input {wanted}")
    return made


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _filled(name: str, value: Any, number: float) -> Any:
    if not isinstance(value, np.ndarray | np.generic | int | float):
        raise InvalidInput(f"baseline: {number:g} is a number, and input {shown(name)} holds none; leave baseline out")
    array = np.asarray(value)
    if array.dtype.kind in "iu" and (
        number != int(number) or not np.can_cast(np.min_scalar_type(int(number)), array.dtype)
    ):
        raise InvalidInput(f"baseline: {number:g} is not a number that input {shown(name)}, {array.dtype}, can hold")
    return np.full_like(array, number)


def explained(signature: Signature) -> Signature:
    """The signature of explanations: beside each input's attributions, EXPLANATION says what was explained."""
    inputs = signature.inputs
    if inputs is None:
        return Signature()
    if any(field.name == EXPLANATION for field in inputs):
        raise InvalidInput(
            f"an explanation has the name {EXPLANATION!r} beside its inputs; rename the input of this name"
        )
    return Signature(inputs, (*map(_attributions, inputs), Field(EXPLANATION, "json")))


def _attributions(field: Field) -> Field:
    """What there is of an input: numbers of its shape, of an image those of its height and width, of a text [word, number]."""
    if field.dtype == "bytes":
        return Field(field.name, "float32", (-1, -1))
    if field.dtype == "json" or (field.dtype == "str" and not field.cell):
        return Field(field.name, "json")
    return Field(field.name, "float64" if field.dtype == "float64" else "float32", field.shape)
