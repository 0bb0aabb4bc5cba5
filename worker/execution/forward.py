"""Batches through a model: the next one prepared meanwhile, the guilty row found, its neighbours spared.

Knows models by protocol only. An exception splits the batch until the guilty rows stand alone: k guilty rows among n cost
O(k log n) forward passes. Out of memory splits it too, and is nobody's guilt unless a single row does not fit: then it is not
the size of the batch that is to blame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from forebay.contract.errors import ForebayError
from forebay.contract.signature import Row

Predict = Callable[[Sequence[Row]], Sequence[Any]]
TooLarge = Callable[[int], None]


def outputs(model: Any, batches: Sequence[Sequence[Row]], too_large: TooLarge) -> Iterator[list[Any]]:
    """For each batch its rows' outputs, or exceptions, in order.

    A model may split `predict` into `prepare(rows)` (tokenize, stack, copy to the device) and `run(prepared)`: then the next
    batch is prepared in a thread while one runs. `too_large(n)` is told when n rows did not fit into memory, and each
    alone did.
    """
    if len(batches) < 2 or not hasattr(model, "prepare"):
        yield from (forward(model.predict, rows, too_large) for rows in batches)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="prepare") as ahead:
        coming = ahead.submit(model.prepare, batches[0])
        for i, rows in enumerate(batches):
            ready = coming
            if i + 1 < len(batches):
                coming = ahead.submit(model.prepare, batches[i + 1])
            yield _run(model, ready.result, rows, too_large)


def forward(predict: Predict, rows: Sequence[Row], too_large: TooLarge = lambda _: None) -> list[Any]:
    """For each row its output, or the exception that it alone causes."""
    failure = None
    try:
        return _checked(predict(rows), rows)
    except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its rows
        failure = error.with_traceback(None)  # whose frames would keep the batch's tensors alive
    if len(rows) == 1:
        return [failure]
    middle = len(rows) // 2
    results = forward(predict, rows[:middle], too_large) + forward(predict, rows[middle:], too_large)
    if is_out_of_memory(failure) and not _has_glutton(results):
        too_large(len(rows))
    return results


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no room; torch is not imported to find out."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)


def _run(model: Any, prepared: Callable[[], Any], rows: Sequence[Row], too_large: TooLarge) -> list[Any]:
    try:
        return _checked(model.run(prepared()), rows)
    except Exception as error:  # noqa: BLE001 - looked into below, row by row where need be
        full = is_out_of_memory(error)
    results = forward(model.predict, rows, too_large)
    if full and not _has_glutton(results):
        too_large(len(rows))
    return results


def _has_glutton(results: Sequence[Any]) -> bool:
    """Whether some row did not fit even alone: the memory ran out because of it, and not of how many rows there were."""
    return any(isinstance(result, Exception) and is_out_of_memory(result) for result in results)


def _checked(results: Sequence[Any], rows: Sequence[Row]) -> list[Any]:
    results = list(results)
    if len(results) != len(rows):
        raise ForebayError(f"the model gave {len(results)} rows for {len(rows)}; it must give one for each")
    return results
