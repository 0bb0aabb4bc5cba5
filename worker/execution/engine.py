"""Rows, or columns of rows, through a model in batches: the next one prepared meanwhile, guilty rows found, the others spared.

Knows models by protocol only. An exception splits the batch until the guilty rows stand alone: k guilty rows among n cost
O(k log n) forward passes. Out of memory splits it too, and lowers the version's ceiling, unless a single row does not fit: then
it is not the size of the batch that is to blame.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from forebay.contract.errors import ForebayError, without_frames
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Row
from forebay.contract.values import stack_key
from forebay.worker.execution.ceilings import MemoryCeilings, is_out_of_memory
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.runtimes import Meanwhile, Progress

T = TypeVar("T")

LOOK_S = 0.2  # between two looks whether rows that run side by side are to go on

Columns = Mapping[str, NDArray[Any]]
Predict = Callable[[Sequence[Row]], Sequence[Any]]
TooLarge = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """What has been through the model: the items and for each its output or error; seconds, and tokens without and with
    padding where the model counts them.
    """  # fmt: skip

    items: Sequence[T]
    outputs: Sequence[Any]
    seconds: float
    tokens: int = 0
    padded: int = 0
    generated: tuple[int, int] = (0, 0)  # tokens of prompts and of what was made of them


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """Rows `start` to `stop` of columns that have been through the model: their outputs or errors, in pieces."""

    start: int
    stop: int
    pieces: Sequence[tuple[int, int, Columns | Exception]]
    seconds: float


class Engine:
    """Runs batches on this child's device."""

    def __init__(self, ceilings: MemoryCeilings, metrics: ChildMetrics) -> None:
        self._ceilings = ceilings
        self._metrics = metrics

    def run_rows(
        self,
        loaded: LoadedModel,
        items: Sequence[T],
        row: Callable[[T], Row],
        *,
        alone: Callable[[T], Hashable | None] = lambda _: None,
        recut: Callable[[], bool] = lambda: False,
        skip: Callable[[T], bool] = lambda _: False,
        insist: bool = False,
        meanwhile: Meanwhile[T] | None = None,
    ) -> Generator[Batch[T], None, None]:
        """Each batch once it has run. `row` gives an item's row; see `cut` for `alone`.

        What is left is cut anew when a batch did not fit into memory, and when `recut`, asked after each batch, says so:
        then without the items to `skip`. Rows of a model that runs them side by side come as they end, and in batches of none
        while none does: of these, those to skip are given up as soon as `recut` says so, and what `meanwhile` gives joins them,
        unless they are `alone`. With `insist` such a model tries again itself what may pass.
        """
        spec, model = loaded.spec, loaded.model
        if hasattr(model, "run_each"):
            for group in cut(items, len(items), key=lambda _: None, alone=alone):
                told = meanwhile or Meanwhile()
                told = told if alone(group[0]) is None else Meanwhile(told.tell)
                yield from self._run_each(loaded, group, row, insist, recut, skip, told)
            return
        cost = (lambda item: model.cost(row(item))) if hasattr(model, "cost") else None
        left = list(items)
        while left:
            limit = self._ceilings.rows(spec)
            batches = list(
                cut(left, limit, key=lambda i: stack_key(row(i)), alone=alone, cost=cost, max_cost=spec.max_batch_tokens)
            )  # fmt: skip
            left = []
            rows = [[row(item) for item in batch] for batch in batches]
            results = forward_all(model, rows, partial(self._too_large, spec))
            for number, batch in enumerate(batches, start=1):
                started = time.perf_counter()
                outputs = next(results)
                seconds = time.perf_counter() - started
                costs = [cost(item) for item in batch] if cost is not None else [0]
                done = Batch(batch, outputs, seconds, sum(costs), max(costs) * len(costs))
                self._ran(spec, len(batch), seconds, done.tokens, done.padded)
                yield done
                if (recut() or self._ceilings.rows(spec) < limit) and number < len(batches):
                    left = [item for rest in batches[number:] for item in rest if not skip(item)]
                    break

    def _run_each(
        self,
        loaded: LoadedModel,
        items: list[T],
        row: Callable[[T], Row],
        insist: bool,
        recut: Callable[[], bool],
        skip: Callable[[T], bool],
        meanwhile: Meanwhile[T],
    ) -> Generator[Batch[T], None, None]:
        spec, key = loaded.spec, (loaded.spec.name, loaded.spec.version)
        left = {i for i, item in enumerate(items) if not skip(item)}
        rows = [row(item) for item in items]
        running = loaded.model.run_each(rows, insist, partial(self._ceilings.rows, spec))  # type: ignore[attr-defined]
        with closing(running):
            for i in set(range(len(items))) - left:
                running.cancel(i)
            while left:
                started = time.perf_counter()
                progress: Progress = running.wait(LOOK_S)
                seconds = time.perf_counter() - started
                tokens = progress.prompt_tokens, progress.completion_tokens
                self._metrics.answered(key, progress.requests, progress.seconds, *tokens)
                self._metrics.first_texts(key, progress.first_texts)
                self._note_failures(spec, progress.failures)
                if progress.rows:
                    self._ran(spec, progress.rows, seconds, progress.tokens, progress.padded)
                if progress.pieces:
                    meanwhile.tell([(items[piece.row], piece) for piece in progress.pieces])
                made = [i for i in progress.outputs if i in left]
                left.difference_update(made)
                outputs = [progress.outputs[i] for i in made]
                yield Batch([items[i] for i in made], outputs, seconds, progress.tokens, progress.padded, tokens)
                for i in [i for i in left if skip(items[i])] if recut() else ():
                    running.cancel(i)
                    left.remove(i)
                joining = meanwhile.more(running.places()) if left and hasattr(running, "add") else ()
                if joining:
                    left.update(range(len(items), len(items) + len(joining)))
                    items += joining
                    running.add([row(item) for item in joining])

    def _note_failures(self, spec: ModelVersion, failures: Sequence[tuple[int, Exception]]) -> None:
        """That rows do not fit together, unless one does not even alone."""
        too_large = [rows for rows, error in failures if is_out_of_memory(error)]
        if too_large and min(too_large) > 1:
            self._too_large(spec, min(too_large))

    def run_columns(self, loaded: LoadedModel, columns: Columns) -> Generator[ColumnBatch, None, None]:
        """Each batch of a model that takes whole arrays, `(rows, *shape)` by input, once it has run."""
        spec = loaded.spec
        count, start = len(next(iter(columns.values()))), 0
        while start < count:
            stop = min(start + self._ceilings.rows(spec), count)
            started = time.perf_counter()
            pieces = halved(partial(_predict_columns, loaded, columns), start, stop, partial(self._too_large, spec))
            seconds = time.perf_counter() - started
            self._ran(spec, stop - start, seconds)
            yield ColumnBatch(start, stop, pieces, seconds)
            start = stop

    def _ran(self, spec: ModelVersion, rows: int, seconds: float, tokens: int = 0, padded: int = 0) -> None:
        self._metrics.ran((spec.name, spec.version), rows, seconds, tokens, padded)
        self._ceilings.fitted(spec, rows)

    def _too_large(self, spec: ModelVersion, rows: int) -> None:
        self._metrics.out_of_memory((spec.name, spec.version))
        self._ceilings.too_large(spec, rows)


def cut(
    rows: Sequence[T],
    max_size: int,
    *,
    key: Callable[[T], Hashable],
    alone: Callable[[T], Hashable | None],
    cost: Callable[[T], int] | None = None,
    max_cost: int | None = None,
) -> Iterator[list[T]]:
    """Batches of at most `max_size` rows of equal `key`; every row once, the order within a key kept.

    Rows for which `alone` gives something other than None share a batch only with rows for which it gives the same: what
    may have killed a worker before can then kill nothing but itself. With `cost` (tokens of a text, say) rows of like cost
    share a batch, the most expensive first, and `max_cost` bounds what a batch costs once its rows are padded to the
    longest: rows times the greatest cost. A row that exceeds it by itself is a batch by itself.
    """
    groups: dict[Hashable, list[T]] = {}
    for row in rows:
        groups.setdefault((alone(row), key(row)), []).append(row)
    for group in groups.values():
        if cost is None:
            yield from (group[start : start + max_size] for start in range(0, len(group), max_size))
        else:
            yield from _cut_by_cost([(cost(row), row) for row in group], max_size, max_cost)


def _cut_by_cost(priced: list[tuple[int, T]], max_size: int, max_cost: int | None) -> Iterator[list[T]]:
    priced.sort(key=lambda pair: -pair[0])  # stable, so equal costs keep their order
    start = 0
    while start < len(priced):
        greatest = max(1, priced[start][0])
        size = max_size if max_cost is None else max(1, min(max_size, max_cost // greatest))
        yield [row for _, row in priced[start : start + size]]
        start += size


def forward_all(model: Any, batches: Sequence[Sequence[Row]], too_large: TooLarge) -> Iterator[list[Any]]:
    """For each batch its rows' outputs, or exceptions, in order.

    A model may split `predict` into `prepare(rows)` (tokenize, stack, copy to the device) and `run(prepared)`: then the next
    batch is prepared in a thread while one runs. `too_large(n)` is called when n rows did not fit into memory, and each
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
            yield _run_prepared(model, ready.result, rows, too_large)


def forward(predict: Predict, rows: Sequence[Row], too_large: TooLarge = lambda _: None) -> list[Any]:
    """For each row its output, or the exception that it alone causes."""
    pieces = halved(lambda start, stop: _one_each(predict(rows[start:stop]), stop - start), 0, len(rows), too_large)
    return [output for _, _, made in pieces for output in ([made] if isinstance(made, Exception) else made)]


def halved(
    run: Callable[[int, int], T], start: int, stop: int, too_large: TooLarge
) -> list[tuple[int, int, T | Exception]]:
    """What `run` makes of the rows from `start` to `stop`, in pieces; of a row that alone causes one, the exception."""
    try:
        return [(start, stop, run(start, stop))]
    except Exception as error:  # noqa: BLE001 - whatever a model raises belongs to its rows
        failure = without_frames(error)
    if stop - start <= 1:
        return [(start, stop, failure)]
    middle = start + (stop - start) // 2
    pieces = halved(run, start, middle, too_large) + halved(run, middle, stop, too_large)
    if is_out_of_memory(failure) and not any(is_out_of_memory(made) for _, _, made in pieces):
        too_large(stop - start)
    return pieces


def _run_prepared(model: Any, prepared: Callable[[], Any], rows: Sequence[Row], too_large: TooLarge) -> list[Any]:
    try:
        return _one_each(model.run(prepared()), len(rows))
    except Exception as error:  # noqa: BLE001 - looked into below, row by row where need be
        full = is_out_of_memory(error)
    results = forward(model.predict, rows, too_large)
    if full and not any(map(is_out_of_memory, results)):
        too_large(len(rows))
    return results


def _one_each(results: Sequence[Any], count: int) -> list[Any]:
    results = list(results)
    _check_count(len(results), count)
    return results


def _check_count(made: int, count: int) -> None:
    if made != count:
        raise ForebayError(f"the model gave {made} rows for {count}; it must give one for each")


def _predict_columns(loaded: LoadedModel, columns: Columns, start: int, stop: int) -> Columns:
    """The outputs under their declared names; InvalidInput when dtype or shape is another, as for a single row."""
    part = {name: values[start:stop] for name, values in columns.items()}
    outputs: Columns = loaded.model.predict_columns(part)  # type: ignore[attr-defined]
    for values in outputs.values():
        _check_count(len(values), stop - start)
    fields = loaded.spec.signature.outputs
    if fields is None:
        return outputs
    named = {fields[0].name: next(iter(outputs.values()))} if len(fields) == len(outputs) == 1 else outputs
    loaded.spec.signature.output({name: values[0] for name, values in named.items()})
    return {field.name: named[field.name] for field in fields}
