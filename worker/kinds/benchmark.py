"""Benchmarks: batches of 1, 2, 4, … rows of a version are measured until larger ones are no faster, or have no room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import msgspec
import structlog

from forebay.contract.errors import InvalidInput, LedgerUnavailable, Transient
from forebay.contract.requests.request import decode
from forebay.contract.requests.versions.benchmark import NEAR, TUNABLE, Benchmark, BenchmarkRequest, Curve, Point
from forebay.contract.wire import codec
from forebay.storage.jobs.records import ClaimedJob, LeaseLost
from forebay.storage.models.benchmarks import BenchmarkStore
from forebay.worker.execution.attempts import Attempts, Canceled, Stopping
from forebay.worker.execution.ceilings import is_out_of_memory
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.model_cache import LoadedModel, release_memory
from forebay.worker.execution.progress import JobProgress
from forebay.worker.execution.summary import Fate
from forebay.worker.execution.trying.measuring import (
    LEAST_S,
    REPEATS,
    WARM_UPS,
    PeakMemory,
    Rows,
    has_room_for,
    measure,
)
from forebay.worker.execution.trying.rows import trial_rows

log = structlog.get_logger()

MOST_ROWS = 256  # different ones; larger batches have them again
GIVE_UP_AFTER = 2  # sizes, each twice the one before, that are no faster
TIMEOUT_SHARE = 0.5  # of the version's `timeout_s`: who exceeds that is killed, with all that the child has in hand
_NOT_THE_MODELS = (Stopping, Canceled, LeaseLost, LedgerUnavailable, Transient)


class BenchmarkHandler:
    def __init__(self, context: ChildContext) -> None:
        self._context = context
        self._store = BenchmarkStore(context.ledger)

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        for job in claimed:
            attempts.run(job, partial(self._run, job, attempts))

    def _run(self, job: ClaimedJob, attempts: Attempts) -> Fate:
        request = decode(self._context.payloads.load(job.input, job.input_ref), BenchmarkRequest)
        attempts.check()
        progress = JobProgress(self._context.ledger, job, attempts)
        found = self._measured(job, request, self._context.models.load(job.model, job.version), progress)
        result = codec.encode(msgspec.to_builtins(found))
        ended = attempts.retry_while_unavailable(partial(self._store.finish, job, found, result))
        log.info(
            "model_benchmarked", job=job.id, model=f"{job.model}/{job.version}", device=found.device, best=found.best
        )
        return attempts.succeeded([ended])

    def _measured(
        self, job: ClaimedJob, request: BenchmarkRequest, loaded: LoadedModel, progress: JobProgress
    ) -> Benchmark:
        context, spec = self._context, loaded.spec
        device = context.cache.device
        if request.threads and device != "cpu":
            raise InvalidInput(f"threads are measured on a CPU, and queue {job.queue!r} is served by {device}")
        made = trial_rows(loaded, MOST_ROWS, example=context.cache.example(spec), data=request.data)
        ends_at = time.monotonic() + request.seconds
        if job.deadline_at is not None:
            ends_at = min(ends_at, time.monotonic() + job.deadline_at - context.ledger.now())
        threads = _threads() if device == "cpu" and spec.runtime in TUNABLE else None
        variants = [(threads, spec.dtype)]
        variants += [(number, spec.dtype) for number in request.threads if number != threads]
        variants += [(threads, dtype) for dtype in request.dtypes if dtype != spec.dtype]
        curves: list[Curve] = []
        for number, (count, dtype) in enumerate(variants):
            model = loaded if dtype == spec.dtype else context.models.load_apart(replace(spec, dtype=dtype), None)
            share = (ends_at - time.monotonic()) / (len(variants) - number)
            check = partial(progress.check, number, len(variants))
            sweep = Sweep(model, Rows(model, made.rows), request, device, time.monotonic() + share, check)
            with _torch_threads(count):
                curves.append(sweep.curve(count, dtype))
            del model, sweep
            release_memory(device)
        return Benchmark(
            job.id, job.model, job.version, context.ceilings.device, made.source, tuple(curves), request.apply
        )


@dataclass(frozen=True, slots=True)
class Sweep:
    """Measures one model with ever more rows in a batch, until `ends_at` by the monotonic clock. `check` is told what comes next,
    and raises when the job has to stop.
    """  # fmt: skip

    loaded: LoadedModel
    rows: Rows
    request: BenchmarkRequest
    device: str
    ends_at: float
    check: Callable[[str], None]

    def curve(self, threads: int | None, dtype: str | None) -> Curve:
        """InvalidInput when even one row takes too long for the request; what the model raises for one row."""
        points, ended = self._points()
        limit = self.request.max_latency_ms or inf
        quick = [point for point in points if point.latency_ms <= limit]
        if not quick:
            raise InvalidInput(
                f"max_latency_ms is {limit:g}, and a batch of one row takes {points[0].latency_ms:.3g} ms"
            )
        most = max(point.rows_per_s for point in quick)
        best = next(point.rows for point in quick if point.rows_per_s >= NEAR * most)
        return Curve(threads, dtype, tuple(points), best, ended)

    def _points(self) -> tuple[list[Point], str]:
        """What was measured, and why no larger batch was."""
        points: list[Point] = []
        grown = 0
        for size in _sizes(self.request.max_rows):
            why_not = self._why_not(size, points, grown) if points else ""
            if why_not:
                return points, why_not
            memory = PeakMemory(self.device)
            try:
                points.append(
                    measure(self.loaded.model, self.rows.take(size), partial(self._check, size), self._left_s)
                )
            except _NOT_THE_MODELS:
                raise
            except Exception as error:
                if not points:
                    raise
                if is_out_of_memory(error):
                    return points, f"{size:,} rows did not fit into memory"
                return points, f"{size:,} rows failed: {type(error).__name__}: {error}"
            grown = memory.grown()
        return points, f"{points[-1].rows:,} rows are the most that were asked for"

    def _why_not(self, size: int, points: Sequence[Point], grown: int) -> str:
        """Why a batch of so many rows is not to be tried after these; '' when it is."""
        last, spec = points[-1], self.loaded.spec
        times = size / last.rows
        expected_s = times * last.latency_ms / 1000
        if last.latency_ms > (self.request.max_latency_ms or inf):
            return f"{last.rows:,} rows take longer than max_latency_ms"
        if len(points) > GIVE_UP_AFTER:
            before = max(point.rows_per_s for point in points[:-GIVE_UP_AFTER])
            if max(point.rows_per_s for point in points[-GIVE_UP_AFTER:]) * NEAR < before:
                return "larger batches are no faster"
        if spec.timeout_s is not None and expected_s > TIMEOUT_SHARE * spec.timeout_s:
            return f"{size:,} rows may take longer than the version's timeout_s"
        if spec.max_batch_tokens is not None and size * self.rows.cost(self.loaded) > spec.max_batch_tokens:
            return f"{size:,} rows have more tokens than the version's max_batch_tokens"
        if not has_room_for(int(times * grown), self.device):
            return f"{size:,} rows may not fit into memory"
        if WARM_UPS * expected_s + REPEATS * max(LEAST_S, expected_s) > self._left_s():
            return f"the time was up before {size:,} rows"
        return ""

    def _left_s(self) -> float:
        return self.ends_at - time.monotonic()

    def _check(self, size: int) -> None:
        self.check(f"batches of {size:,} rows")


def _sizes(most: int) -> Iterator[int]:
    size = 1
    while size < most:
        yield size
        size *= 2
    yield most


def _threads() -> int:
    import torch

    return torch.get_num_threads()


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """torch computes with so many threads meanwhile; with as many as before where None are given."""
    before = None if count is None else _threads()
    if count is None or count == before:
        yield
        return
    import torch

    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before or 1)
