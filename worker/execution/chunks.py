"""A chunk of a data set through a model: as whole arrays where the model takes them, else row by row; in the rows' order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import Transient, without_frames
from forebay.contract.model import ModelVersion
from forebay.contract.signature import ARRAY_DTYPES
from forebay.datasets.columns import Values, take
from forebay.datasets.formats.source import CHUNK_ROWS
from forebay.datasets.reading.inputs import Inputs
from forebay.datasets.writing.outputs import ModelOutputs, Outputs
from forebay.worker.execution.engine import Columns, Engine
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.runtimes import Interrupted

CHUNK_BATCHES = 32  # the device's batches in a chunk: texts of like length are looked for among so many
# Of a chunk's arrays, unless those of a batch are more: the device then begins early, and has little left at the end.
CHUNK_BYTES = 8 << 20

Ran = Callable[[int, float], None]


def chunk_rows(spec: ModelVersion) -> int:
    """How many rows to read at once for this model, at most: whole batches."""
    fields = [field for field in spec.signature.inputs or () if field.dtype in ARRAY_DTYPES]
    row_bytes = sum(ARRAY_DTYPES[f.dtype].itemsize * math.prod(max(1, n) for n in f.shape) for f in fields)
    batches = CHUNK_BYTES // max(1, row_bytes * spec.max_batch_size)
    return min(CHUNK_ROWS, max(1, min(batches, CHUNK_BATCHES)) * spec.max_batch_size)


def run_chunk(
    engine: Engine, loaded: LoadedModel, inputs: Inputs, ran: Ran, stopped: Callable[[], bool] = lambda: False
) -> ModelOutputs:
    """The outputs of a chunk's good rows, and the errors of the others; a Transient one is no row's own, and is raised.

    `ran` is called after each batch with its rows and seconds; it may raise to stop. `stopped` is asked after each batch,
    and while rows run side by side; Interrupted is raised when `ran` does not.
    """
    if not len(inputs.good):
        return ModelOutputs(inputs.good, [], dict(inputs.bad))
    made: Outputs
    tokens = np.zeros(2, np.int64)
    if inputs.stacked is not None and hasattr(loaded.model, "predict_columns"):
        made, errors = _by_columns(engine, loaded, inputs.stacked, ran)
    else:
        made, errors = _by_rows(engine, loaded, inputs.rows(), ran, stopped, tokens)
    for error in errors.values():
        if isinstance(error, Transient):
            raise error
    if not errors:
        return ModelOutputs(inputs.good, made, dict(inputs.bad), tokens)
    stay = np.delete(np.arange(len(inputs.good)), list(errors))
    bad = inputs.bad | {int(inputs.good[i]): error for i, error in errors.items()}
    if isinstance(made, list):
        return ModelOutputs(inputs.good[stay], [made[i] for i in stay], bad, tokens)
    return ModelOutputs(inputs.good[stay], {name: take(values, stay) for name, values in made.items()}, bad, tokens)


def _by_columns(
    engine: Engine, loaded: LoadedModel, columns: Columns, ran: Ran
) -> tuple[Outputs, dict[int, Exception]]:
    """Outputs by name, with anything where a row has an error."""
    pieces: list[tuple[int, int, Columns]] = []
    errors: dict[int, Exception] = {}
    count = len(next(iter(columns.values())))
    with closing(engine.run_columns(loaded, columns)) as batches:
        for batch in batches:
            for start, stop, result in batch.pieces:
                if isinstance(result, Exception):
                    errors[start] = result
                else:
                    pieces.append((start, stop, result))
            ran(batch.stop - batch.start, batch.seconds)
    names = dict.fromkeys(name for _, _, result in pieces for name in result)
    return {name: _joined(name, pieces, count) for name in names} or [None] * count, errors


def _joined(name: str, pieces: Sequence[tuple[int, int, Columns]], count: int) -> Values:
    """One array if every batch gave the same dtype and shape; else each row's own value, None where there is none."""
    found = [(start, stop, result[name]) for start, stop, result in pieces if name in result]
    forms = {(array.dtype, array.shape[1:]) for _, _, array in found}
    if len(found) == 1 and len(found[0][2]) == count:
        return found[0][2]
    alike = len(forms) == 1 and len(found) == len(pieces)
    first = found[0][2]
    rows: Values = np.empty((count, *first.shape[1:]), first.dtype) if alike else [None] * count
    for start, stop, array in found:
        rows[start:stop] = array
    return rows


def _by_rows(
    engine: Engine,
    loaded: LoadedModel,
    rows: list[Any],
    ran: Ran,
    stopped: Callable[[], bool],
    tokens: NDArray[np.int64],
) -> tuple[list[Any], dict[int, Exception]]:
    made: list[Any] = [None] * len(rows)
    errors: dict[int, Exception] = {}
    for i, row in enumerate(rows):
        try:
            [rows[i]] = loaded.preprocess([row])
        except Exception as error:  # noqa: BLE001 - this row's own error
            errors[i] = without_frames(error)
    good = [i for i in range(len(rows)) if i not in errors]
    left = len(good)
    running = engine.run_rows(
        loaded, good, rows.__getitem__, insist=True, recut=stopped, skip=lambda _: stopped()
    )  # fmt: skip
    with closing(running) as batches:
        for batch in batches:
            tokens += batch.generated
            for i, output in zip(batch.items, batch.outputs, strict=True):
                try:
                    made[i] = loaded.output(output)
                except Exception as error:  # noqa: BLE001 - this row's own error
                    errors[i] = without_frames(error)
            ran(len(batch.items), batch.seconds)
            left -= len(batch.items)
    if left:
        raise Interrupted
    return made, errors
