"""Benchmarks of a model whose batches take as long as the test says, by a clock that only they move."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from forebay.contract.job import JobInfo, JobKind, JobState, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.references import ModelRef
from forebay.contract.requests.request import encode
from forebay.contract.requests.versions.benchmark import Benchmark, BenchmarkRequest
from forebay.contract.signature import Signature
from forebay.storage.jobs.records import NewJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.models.benchmarks import BenchmarkStore
from forebay.storage.models.ceilings import CeilingStore
from forebay.storage.models.registry import ModelRegistry
from forebay.worker.execution import progress
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.trying import measuring
from forebay.worker.kinds import benchmark
from support.runner_bench import Bench
from support.waiting import FakeClock

PASS_S, ROW_S, SIDE_BY_SIDE = 0.001, 0.0001, 64


class Timed(Bench):
    """Up to 64 rows share a pass of 1 ms, and each costs 0.1 ms more; from there on two batches are as fast as one of both."""

    def __init__(self, ledger: Ledger, folder: Path, clock: FakeClock) -> None:
        super().__init__(ledger, folder)
        self.ledger, self.clock, self.sizes = ledger, clock, list[int]()
        self.registry = ModelRegistry(ledger)

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        self.before(list(rows))
        self.sizes.append(len(rows))
        self.clock.forward(-(-len(rows) // SIDE_BY_SIDE) * PASS_S + len(rows) * ROW_S)
        return [row["x"].sum() if isinstance(row, dict) else row for row in rows]

    def register(self, **more: Any) -> ModelVersion:
        signature = Signature.parse({"x": {"dtype": "float32", "shape": [2]}})
        return self.registry.register(ModelVersion("n", 0, "python", "", "none", 0, signature, **more))

    def run(self, **asked: Any) -> JobInfo:
        deadline_at = asked.pop("deadline_at", None)
        [id] = new_ids(1)
        payload = encode(BenchmarkRequest(**asked))
        self.store.add([NewJob(id, JobKind.BENCHMARK, "n", 1, "cpu", deadline_at=deadline_at, input=payload)])
        self.runner.run([id])
        return self.info(id)

    @property
    def found(self) -> Benchmark:
        [found] = BenchmarkStore(self.ledger).of_version("n", 1)
        return found


@pytest.fixture
def bench(sqlite_ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Timed:
    clock = FakeClock(0.0)
    for module, name in ((measuring, "perf_counter"), (benchmark, "monotonic")):
        monkeypatch.setattr(module, "time", SimpleNamespace(**{name: clock}))
    monkeypatch.setattr(progress, "SHOW_EVERY_S", 0.0)
    return Timed(sqlite_ledger, tmp_path, clock)


def at(size: int, action: Callable[[], object]) -> Callable[[list[Any]], None]:
    """`action` before every batch of so many rows."""
    return lambda rows: action() and None if len(rows) == size else None


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def test_the_best_batch_is_the_smallest_that_is_nearly_as_fast_as_any_and_no_larger_ones_are_tried(
    bench: Timed,
) -> None:
    bench.register()
    assert bench.run().state is JobState.SUCCEEDED
    found = bench.found
    [curve] = found.curves
    assert [point.rows for point in curve.points] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert (found.best, found.device, found.rows, found.applied) == (64, "cpu", "random values", False)
    assert curve.ended == "larger batches are no faster"
    assert curve.best_point.latency_ms == pytest.approx(7.4)
    assert curve.best_point.rows_per_s == pytest.approx(64 / 0.0074)
    assert bench.registry.get("n/1").max_batch_size == 32


def test_the_median_is_not_moved_by_one_slow_measurement(bench: Timed) -> None:
    bench.register()
    slow = iter([0.0] * 3 + [5.0] + [0.0] * 1000)
    bench.before = at(64, lambda: bench.clock.forward(next(slow)))
    assert bench.run().state is JobState.SUCCEEDED
    point = bench.found.curves[0].best_point
    assert (point.rows, round(point.latency_ms, 3)) == (64, 7.4)
    assert point.slowest_ms > 100


def test_an_applied_size_is_the_versions_and_reaches_workers_that_have_it_loaded(bench: Timed) -> None:
    registry, before = bench.registry, bench.register()
    ref = ModelRef("n", 1)
    resolved = registry.resolve(ref)
    clock = FakeClock()
    ceilings = MemoryCeilings(CeilingStore(bench.ledger, "cpu"), clock)
    assert (ceilings.rows(before), resolved.max_batch_size) == (32, 32)
    assert bench.run(apply=True).state is JobState.SUCCEEDED
    clock.forward(61)
    assert ceilings.rows(before) == 64
    assert registry.resolve(ref).max_batch_size == registry.get("n/1").max_batch_size == 64
    ceilings.too_large(before, 64)
    clock.forward(61)
    assert ceilings.rows(before) == 32


def test_memory_that_runs_out_ends_the_sweep_and_nothing_else(bench: Timed) -> None:
    bench.register()
    bench.before = at(16, raising(MemoryError("20 GiB")))
    assert bench.run().state is JobState.SUCCEEDED
    [curve] = bench.found.curves
    assert (curve.points[-1].rows, curve.best, curve.ended) == (8, 8, "16 rows did not fit into memory")
    assert MemoryCeilings(CeilingStore(bench.ledger, "cpu")).rows(bench.registry.get("n/1")) == 32
    assert bench.runner.run(bench.add(1, 2)).succeeded == 2


def test_a_batch_that_may_not_fit_into_memory_is_not_tried(bench: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.register()
    monkeypatch.setattr(benchmark.PeakMemory, "grown", lambda _: 1 << 20 if bench.sizes[-1] < 8 else 1 << 60)
    assert bench.run().state is JobState.SUCCEEDED
    assert (max(bench.sizes), bench.found.curves[0].ended) == (8, "16 rows may not fit into memory")


def test_a_cancel_or_a_stop_is_seen_between_two_batches_and_nothing_is_kept(bench: Timed) -> None:
    bench.register()
    bench.before = at(
        4, lambda: [bench.store.cancel([i.id]) for i in bench.store.queries.find(state=[JobState.RUNNING])]
    )
    assert bench.run(apply=True).state is JobState.CANCELED
    bench.before = at(4, bench.context.page.stop)
    info = bench.run(apply=True)
    assert (info.state, info.attempt) == (JobState.QUEUED, 0)
    assert max(bench.sizes) <= 4
    assert BenchmarkStore(bench.ledger).of_version("n", 1) == []
    assert bench.registry.get("n/1").max_batch_size == 32


@pytest.mark.parametrize(
    ("asked", "registered", "largest", "ended"),
    [
        ({"max_rows": 6}, {}, 6, "6 rows are the most that were asked for"),
        ({"max_latency_ms": 2.0}, {}, 16, "16 rows take longer than max_latency_ms"),
        ({"seconds": 1.2}, {}, 8, "the time was up before 16 rows"),
        ({}, {"timeout_s": 0.01}, 16, "32 rows may take longer than the version's timeout_s"),
    ],
)
def test_a_sweep_ends_at_what_bounds_it(
    bench: Timed, asked: dict[str, Any], registered: dict[str, Any], largest: int, ended: str
) -> None:
    bench.register(**registered)
    assert bench.run(**asked).state is JobState.SUCCEEDED
    [curve] = bench.found.curves
    assert (curve.points[-1].rows, curve.ended) == (largest, ended)
    assert curve.best_point.latency_ms <= asked.get("max_latency_ms", 1000)


def test_a_deadline_ends_the_sweep_with_what_was_measured(bench: Timed) -> None:
    bench.register()
    assert bench.run(deadline_at=bench.ledger.now() + 5, seconds=3600).state is JobState.SUCCEEDED
    measured_s = bench.clock()
    assert measured_s <= 5


def test_a_row_that_takes_too_long_fails_the_job_with_its_figure(bench: Timed) -> None:
    bench.register()
    info = bench.run(max_latency_ms=1.0)
    assert info.error is not None
    assert info.error.message == "max_latency_ms is 1, and a batch of one row takes 1.1 ms"


def test_a_larger_batch_that_fails_ends_the_sweep_and_says_why(bench: Timed) -> None:
    bench.register()
    bench.before = at(8, raising(ValueError("at most 7")))
    assert bench.run().state is JobState.SUCCEEDED
    assert bench.found.curves[0].ended == "8 rows failed: ValueError: at most 7"
    bench.before = at(1, raising(ValueError("no")))
    assert bench.run().state is JobState.FAILED


def test_rows_of_other_shapes_than_most_are_left_out_of_the_batches(bench: Timed) -> None:
    loaded = SimpleNamespace(preprocess=list)
    rows = [{"x": np.zeros(n)} for n in (3, 2, 3)]
    assert [row["x"].shape for row in measuring.Rows(loaded, rows).take(5)] == [(3,)] * 5  # type: ignore[arg-type]
