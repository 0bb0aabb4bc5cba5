"""How far the outputs of two versions for the same rows are apart."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.signature import Row
from forebay.contract.values import stack_key
from forebay.worker.execution.engine import cut, forward
from forebay.worker.execution.model_cache import LoadedModel

_TINY = np.finfo(np.float64).tiny


class Difference(Struct, frozen=True):
    """How far the outputs for `rows` rows are apart, at most, over all values of all outputs.

    `absolute` is a difference of two values, `relative` is it divided by the largest magnitude in that output of that row.
    `scaled` is what a tolerance is held against: `relative` where that magnitude is above 1, else the difference divided by the
    largest magnitude in that output of all rows, or by 1 if that is less. They are infinite where texts differ, a value is NaN,
    or one is infinite and the other is not the same; of JSON, where anything but its floats differs.
    `same_argmax` is the share of rows whose largest value, of each output that is a vector, is at the same place; `least_cosine`
    and `mean_cosine` are of those vectors. None where no output is one.
    """

    rows: int
    absolute: float
    relative: float
    scaled: float
    same_argmax: float | None = None
    least_cosine: float | None = None
    mean_cosine: float | None = None

    def within(self, tolerance: float) -> bool:
        return self.scaled <= tolerance  # false for what is not a number

    def __str__(self) -> str:
        same = "" if self.same_argmax is None else f", the same largest value in {100 * self.same_argmax:.4g} % of them"
        return f"{self.rows} rows, at most {self.absolute:.3g} apart ({self.relative:.3g} of the largest value){same}"


def difference(before: Sequence[Any], after: Sequence[Any]) -> Difference:
    """Of the same rows' outputs, each as `LoadedModel.output` gives it: a value, or one for each name.

    InvalidInput when they cannot be compared: other names or shapes, values that are neither numbers, texts nor JSON.
    """
    if len(before) != len(after) or not before:
        raise InvalidInput(f"{len(before)} and {len(after)} rows cannot be compared")
    measured: dict[str, list[tuple[float, float]]] = {}  # by output, of each row
    same: list[bool] = []
    cosines: list[float] = []
    for one, other in zip(before, after, strict=True):
        vectors = []
        for name, a, b in _pairs(one, other):
            measured.setdefault(name, []).append(_apart(name, a, b))
            if isinstance(a, np.ndarray) and a.ndim == 1 and len(a) > 1:
                vectors.append((a.astype(np.float64), b.astype(np.float64)))
        if vectors:
            same.append(all(int(a.argmax()) == int(b.argmax()) for a, b in vectors))
            cosines += [_cosine(a, b) for a, b in vectors]
    found = [float(np.mean(same)), min(cosines), float(np.mean(cosines))] if cosines else [None] * 3
    absolute = relative = scaled = 0.0
    for pairs in measured.values():
        gaps, sizes = np.array(pairs).T
        usual = min(1.0, sizes.max())  # what is always small is not near because of that
        absolute = max(absolute, float(gaps.max()))
        relative = max(relative, float((gaps / np.maximum(sizes, _TINY)).max()))
        scaled = max(scaled, float((gaps / np.maximum(sizes, max(usual, _TINY))).max()))
    return Difference(len(before), absolute, relative, scaled, *found)


def _pairs(one: Any, other: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(one, Mapping) != isinstance(other, Mapping) or (
        isinstance(one, Mapping) and one.keys() != other.keys()
    ):
        raise InvalidInput(f"the outputs are {_names(one)} and {_names(other)}, and cannot be compared")
    if not isinstance(one, Mapping):
        yield "output", one, other
        return
    for name in one:
        yield name, one[name], other[name]


def _names(output: Any) -> str:
    return ", ".join(map(str, output)) if isinstance(output, Mapping) else "a single one"


def _apart(name: str, one: Any, other: Any) -> tuple[float, float]:
    """The largest difference of two values, infinite where that is no number, and the largest magnitude among them."""
    if isinstance(one, str) and isinstance(other, str):
        return (0.0 if one == other else math.inf), 1.0
    a, b = (np.asarray(value) for value in (one, other))
    if isinstance(one, list | dict) and isinstance(other, list | dict) and "O" in a.dtype.kind + b.dtype.kind:
        return _json_apart(dict(_leaves(one)), dict(_leaves(other)))
    if a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf" or a.shape != b.shape:
        raise InvalidInput(
            f"output {name!r} is {a.dtype} of shape {a.shape} and {b.dtype} of shape {b.shape}: only numbers of one shape, and "
            "texts, can be compared"
        )
    equal = np.array_equal(a, b)
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gaps: NDArray[np.float64] = np.where(a == b, 0.0, np.abs(a - b))
    # Not equal, and yet the same floats: whole numbers beyond 2^53.
    largest = 0.0 if equal else float(gaps.max()) or 1.0
    both = np.concatenate([a.reshape(-1), b.reshape(-1)])
    size = float(np.abs(both[np.isfinite(both)]).max(initial=0.0))
    return (largest if math.isfinite(largest) else math.inf), size  # a NaN among them is the largest, too


def _json_apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """Of two values by their places: all but floats must be the same."""
    if one.keys() != other.keys():
        return math.inf, 1.0
    floats = {p for p in one if all(isinstance(values[p], float | np.floating) for values in (one, other))}
    if any(one[place] != other[place] for place in one.keys() - floats):
        return math.inf, 1.0
    gaps = [abs(float(one[place]) - float(other[place])) for place in floats if one[place] != other[place]]
    sizes = [size for place in floats for values in (one, other) if math.isfinite(size := abs(float(values[place])))]
    largest = max((gap if math.isfinite(gap) else math.inf for gap in gaps), default=0.0)
    return largest, max(sizes, default=0.0)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values in a JSON value, each under its place; a list or an object that holds nothing is one."""
    inner = value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {}
    if not inner:
        yield place, value
    for key, item in inner.items():
        yield from _leaves(item, f"{place}/{key}")


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if np.array_equal(a, b):
        return 1.0
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths and math.isfinite(lengths) else 0.0


class TrialRun(NamedTuple):
    """Every row's output, or the error that it alone causes, and how many rows a second the model took."""

    outputs: list[Any]
    rows_per_s: float


def try_rows(loaded: LoadedModel, rows: Sequence[Row]) -> TrialRun:
    """Rows through a version that may be yet to be registered: nothing is counted, and no ceiling is learned."""
    prepared, outputs = dict[int, Row](), dict[int, Any]()
    for i, row in enumerate(rows):
        try:
            [prepared[i]] = loaded.preprocess([row])
        except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its row
            outputs[i] = error
    batches = list(
        cut([*prepared], loaded.spec.max_batch_size, key=lambda i: stack_key(prepared[i]), alone=lambda _: None)
    )
    seconds = 0.0
    for batch in batches:
        started = time.perf_counter()
        made = forward(loaded.model.predict, [prepared[i] for i in batch])
        seconds += time.perf_counter() - started
        for i, output in zip(batch, made, strict=True):
            outputs[i] = _checked(loaded, output)
    return TrialRun([outputs[i] for i in range(len(rows))], len(rows) / seconds if seconds else math.inf)


def _checked(loaded: LoadedModel, made: Any) -> Any:
    try:
        return loaded.output(made)
    except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its row
        return error
