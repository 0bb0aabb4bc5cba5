"""A chunk's rows through a model, in its batches: as whole arrays where the model takes them, else row by row.

Row by row they are cut by worker.batcher, texts of like length together, and come back in their order. A bad row is found by
halving, and memory that runs out lowers the version's ceiling, as for predict jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.contract.errors import Transient
from forebay.contract.model import ModelVersion
from forebay.contract.signature import stack_key
from forebay.datasets.reading.inputs import Inputs, others
from forebay.datasets.writing.parts import ModelOutputs
from forebay.worker.execution.batcher import cut
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.forward import is_out_of_memory, outputs
from forebay.worker.execution.model_cache import LoadedModel

Arrays = Mapping[str, NDArray[Any]]
Ran = Callable[[int, float], None]


def run(loaded: LoadedModel, inputs: Inputs, ceilings: MemoryCeilings, metrics: ChildMetrics, ran: Ran) -> ModelOutputs:
    """The outputs of a chunk's good rows, and the errors of the others; a Transient one is no row's own, and is raised.

    `ran` is told of each batch, its rows and seconds; it may raise to stop.
    """
    too_large = partial(_too_large, loaded.spec, ceilings, metrics)
    if not len(inputs.good):
        return ModelOutputs(inputs.good, [], dict(inputs.bad))
    stacked = inputs.stacked
    if stacked is not None and hasattr(loaded.model, "predict_columns"):
        found, errors = _by_columns(loaded, stacked, ceilings, too_large, ran)
    else:
        found, errors = _by_rows(loaded, inputs.rows(), ceilings, too_large, ran)
    good, bad = inputs.good, dict(inputs.bad)
    passing = next((error for error in errors.values() if isinstance(error, Transient)), None)
    if passing is not None:
        raise passing
    if errors:
        bad |= {int(good[i]): error for i, error in errors.items()}
        stay = others(len(good), errors)
        good = good[stay]
        found = [found[i] for i in stay] if isinstance(found, list) else {n: a[stay] for n, a in found.items()}
    return ModelOutputs(good, found, bad)


def _too_large(spec: ModelVersion, ceilings: MemoryCeilings, metrics: ChildMetrics, rows: int) -> None:
    metrics.out_of_memory((spec.name, spec.version))
    ceilings.too_large(spec, rows)


def _by_columns(
    loaded: LoadedModel, arrays: Arrays, ceilings: MemoryCeilings, too_large: Callable[[int], None], ran: Ran
) -> tuple[dict[str, NDArray[Any]] | list[Any], dict[int, Exception]]:
    """Outputs as arrays `(rows, *shape)`, with anything where a row has an error."""
    spec, made, errors = loaded.spec, {}, {}
    count, at = len(next(iter(arrays.values()))), 0
    while at < count:
        size = ceilings.rows(spec)
        stop, started = min(at + size, count), time.perf_counter()
        for start, result in _halved(loaded, arrays, at, stop, too_large):
            if isinstance(result, Exception):
                errors[start] = result
                continue
            for name, values in result.items():
                if name not in made:
                    made[name] = np.empty((count, *values.shape[1:]), values.dtype)
                made[name][start : start + len(values)] = values
        ceilings.fitted(spec, stop - at)
        ran(stop - at, time.perf_counter() - started)
        at = stop
    return (made or [None] * count), errors


def _halved(
    loaded: LoadedModel, arrays: Arrays, start: int, stop: int, too_large: Callable[[int], None]
) -> list[tuple[int, Arrays | Exception]]:
    """The outputs of the rows from `start` to `stop`, in pieces, and the errors of the rows that alone cause one."""
    failure = None
    try:
        part = {name: values[start:stop] for name, values in arrays.items()}
        return [(start, _declared(loaded.model.predict_columns(part), loaded.spec))]  # type: ignore[attr-defined]
    except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its rows
        failure = error.with_traceback(None)
    if is_out_of_memory(failure):
        too_large(stop - start)
    if stop - start == 1:
        return [(start, failure)]
    middle = (start + stop) // 2
    return _halved(loaded, arrays, start, middle, too_large) + _halved(loaded, arrays, middle, stop, too_large)


def _declared(outputs: Arrays, spec: ModelVersion) -> Arrays:
    """The outputs under their declared names; InvalidInput when dtype or shape is another, as for a single row."""
    fields = spec.signature.outputs
    if fields is None:
        return outputs
    named = {fields[0].name: next(iter(outputs.values()))} if len(fields) == len(outputs) == 1 else outputs
    row = {name: values[0] for name, values in named.items()}
    spec.signature.output(row)
    return {field.name: named[field.name] for field in fields}


def _by_rows(
    loaded: LoadedModel, rows: list[Any], ceilings: MemoryCeilings, too_large: Callable[[int], None], ran: Ran
) -> tuple[list[Any], dict[int, Exception]]:
    spec, model = loaded.spec, loaded.model
    made: list[Any] = [None] * len(rows)
    errors: dict[int, Exception] = {}
    preprocess = getattr(model, "preprocess", None)
    if preprocess is not None:
        rows = [_tried(preprocess, row, errors, i) for i, row in enumerate(rows)]
    cost = (lambda i: model.cost(rows[i])) if hasattr(model, "cost") else None
    left = [i for i in range(len(rows)) if i not in errors]
    while left:
        limit = ceilings.rows(spec)
        key = partial(_key, rows)
        batches = list(cut(left, limit, key=key, alone=lambda _: None, cost=cost, max_cost=spec.max_batch_tokens))
        left, started = [], time.perf_counter()
        results = outputs(model, [[rows[i] for i in batch] for batch in batches], too_large)
        for number, (batch, result) in enumerate(zip(batches, results, strict=True), start=1):
            for i, output in zip(batch, result, strict=True):
                made[i] = _finished(output, loaded, errors, i)
            ceilings.fitted(spec, len(batch))
            ran(len(batch), time.perf_counter() - started)
            started = time.perf_counter()
            if number < len(batches) and ceilings.rows(spec) < limit:
                left = [i for rest in batches[number:] for i in rest]
                break
    return made, errors


def _key(rows: list[Any], i: int) -> Any:
    return stack_key(rows[i])


def _tried(preprocess: Callable[[Any], Any], row: Any, errors: dict[int, Exception], i: int) -> Any:
    try:
        return preprocess(row)
    except Exception as error:  # noqa: BLE001 - this row's own error
        errors[i] = error
        return None


def _finished(output: Any, loaded: LoadedModel, errors: dict[int, Exception], i: int) -> Any:
    """An output as the signature wants it."""
    if isinstance(output, Exception):
        errors[i] = output
        return None
    try:
        postprocess = getattr(loaded.model, "postprocess", None)
        return loaded.spec.signature.output(output if postprocess is None else postprocess(output))
    except Exception as error:  # noqa: BLE001 - this row's own error
        errors[i] = error
        return None
