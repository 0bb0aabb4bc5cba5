"""Rows to try a version on: those of a data set, or made ones, after the example that it was registered with, a row that its
runtime has, or its signature. The same seed gives the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput, Transient
from forebay.contract.requests.batch import BatchRequest
from forebay.contract.signature import ARRAY_DTYPES, Row
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.warm_up import run_row, sample_rows

WORDS = ("river", "stone", "quickly", "a", "the", "of", "engine", "blue", "and", "water", "seven", "runs", "under")
LEAST_WORDS, MOST_WORDS = 4, 24


class TrialRows(NamedTuple):
    """Rows as jobs bring them, before the model's `preprocess`, and where they come from, in words."""

    rows: list[Row]
    source: str


def trial_rows(
    loaded: LoadedModel, count: int, *, example: Row | None = None, data: BatchRequest | None = None, seed: int = 0
) -> TrialRows:
    """`count` rows, or as many as are good among the first ones of `data`.

    Made rows have the shapes of the `example`, or else of a row of the runtime's own, and values drawn from among its values;
    random ones where those are all the same: zeros would say nothing of any weight. InvalidInput, with what to do, when the
    model takes none that can be made.
    """
    if data is not None:
        return TrialRows(_read(data, loaded, count), "the data set")
    rng = np.random.default_rng(seed)
    if example is not None:
        rows = [example, *(_like(rng, example, loaded, known=True) for _ in range(count - 1))]
        return TrialRows(rows, "the registered example, and rows like it")
    failure: Exception | None = None
    for sample in sample_rows(loaded.model, loaded.spec):
        rows = [_like(rng, sample, loaded, known=False) for _ in range(count)]
        try:
            run_row(loaded.model, rows[0])
        except Transient:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a model raises, it does not take this row
            failure = failure or error
        else:
            return TrialRows(rows, "random values")
    why = "" if failure is None else f" ({type(failure).__name__}: {failure})"
    raise InvalidInput(
        f"no row can be made up that {loaded.spec.ref} takes{why}: register it with an example, or name a data set"
    )


def _read(data: BatchRequest, loaded: LoadedModel, count: int) -> list[Row]:
    from forebay.datasets.reading.inputs import convert  # Arrow, only where there is a data set
    from forebay.datasets.reading.rows import all_pieces, read_pieces
    from forebay.datasets.reading.shard_range import ShardRange

    rows: list[Row] = []
    error: Exception | None = None
    pieces, _ = all_pieces(data)
    for chunk in read_pieces(data, ShardRange(pieces), count) if pieces else ():
        inputs = convert(chunk, data.columns, loaded.spec.signature, data.format, oriented=loaded.spec.oriented)
        rows += inputs.rows()
        error = error or next(iter(inputs.bad.values()), None)
        if len(rows) >= count:
            break
    if not rows:
        raise error or InvalidInput("the data set holds no rows")
    return rows[:count]


def _like(rng: np.random.Generator, row: Row, loaded: LoadedModel, *, known: bool) -> Row:
    """Another row of the same shapes; where its values are `known` to be good, no others are made up."""
    if not isinstance(row, Mapping):
        return _value(rng, row, known)
    fields = loaded.spec.signature.inputs or ()
    kept = {field.name for field in fields if field.dtype in ("json", "bytes") or (known and field.cell)}
    return {name: value if name in kept else _value(rng, value, known) for name, value in row.items()}


def _value(rng: np.random.Generator, value: Any, known: bool) -> Any:
    if isinstance(value, str):
        words = value.split()
        if known or len(words) > 1:
            return " ".join(rng.permutation(words))
        return " ".join(rng.choice(WORDS, rng.integers(LEAST_WORDS, MOST_WORDS + 1)))
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.name not in ARRAY_DTYPES:
        return value
    if known and value.dtype.kind == "f" and value.size and value.min() == value.max():
        least = max(1.0, abs(float(value.max())))
        made = np.asarray(value) + least * rng.random(value.shape)  # rows that are alike would tell little
    else:
        made = rng.choice(value.reshape(-1), value.shape) if known or value.any() else _random(rng, value)
    return np.asarray(made, value.dtype)


def _random(rng: np.random.Generator, zeros: NDArray[Any] | np.generic) -> NDArray[Any]:
    """Random values that are likely to mean something: whole numbers may be indices, bytes pixels."""
    if zeros.dtype.kind == "f":
        return rng.standard_normal(zeros.shape)
    return rng.integers(0, 256 if zeros.dtype == np.uint8 else 2, zeros.shape)
