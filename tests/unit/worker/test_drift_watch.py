"""What a child sketches of what it serves, and what that may cost."""

from typing import Any

import numpy as np
import pytest

from forebay.contract.drift.sketch import Reference, ReferenceBuilder
from forebay.contract.errors import LedgerUnavailable
from forebay.contract.model import ModelVersion
from forebay.contract.signature import Field, Signature
from forebay.worker.execution import drift_watch
from forebay.worker.execution.drift_watch import ALWAYS, LOOK_S, DriftWatch
from forebay.worker.parent.metrics import WorkerMetrics
from support.waiting import FakeClock

SIGNATURE = Signature((Field("x", "float32"),), (Field("y", "float32"),))
SPEC = ModelVersion("m", 1, "python", "", "none", 0, SIGNATURE)


class Store:
    """A store with one reference, which may be away."""

    def __init__(self) -> None:
        self.hour, self.number, self.away, self.asked = 7, 1, False, 0
        self.no_clock = False

    def now_hour(self) -> int:
        if self.no_clock:
            raise LedgerUnavailable
        return self.hour

    def revision(self, *_: Any) -> int:
        self.asked += 1
        if self.away:
            raise LedgerUnavailable
        return self.number

    def reference(self, *_: Any) -> tuple[int, Reference]:
        values = np.random.default_rng(0).normal(size=1000)
        columns = []
        for side, name in (("input", "x"), ("output", "y")):
            builder = ReferenceBuilder(side, (Field(name, "float32"),))  # type: ignore[arg-type]
            builder.add({name: values})
            columns += builder.columns()
        return self.number, Reference(tuple(columns), "a test")


class Bench:
    def __init__(self) -> None:
        self.store, self.clock = Store(), FakeClock()
        self.watch = DriftWatch(self.store, self.clock)  # type: ignore[arg-type]

    def serve(self, *values: float) -> bool:
        """Whether these rows, of which each y is x, were sketched."""
        due = self.watch.due(SPEC)
        if due:
            self.watch.rows(SPEC, [{"x": np.float32(value)} for value in values], list(values))
        return due

    def counted(self) -> list[tuple[int, int, int, int]]:
        """Revision, hour, rows, and what is in the cells of y."""
        return [(s.revision, s.hour, s.rows, int(s.counts[1].sum())) for s in self.watch.take()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_counts_are_handed_over_once_and_by_hour(bench: Bench) -> None:
    bench.serve(0.0, 1.0)
    bench.serve(2.0)
    bench.store.hour = 8
    bench.serve(3.0)
    assert bench.counted() == [(1, 7, 3, 3), (1, 8, 1, 1)]
    assert bench.counted() == []


def test_a_row_that_failed_has_no_output_that_counts(bench: Bench) -> None:
    assert bench.watch.due(SPEC)
    bench.watch.rows(SPEC, [{"x": np.float32(1)}] * 3, [1.0, None, 1.0])
    assert bench.counted() == [(1, 7, 3, 2)]


def test_columns_of_a_batch_count_as_rows_do(bench: Bench) -> None:
    assert bench.watch.due(SPEC)
    bench.watch.columns(SPEC, {"x": np.zeros(50, np.float32)}, {"y": np.zeros(50, np.float32)})
    bench.watch.columns(SPEC, {"x": np.zeros(50, np.float32)}, [0.0] * 49)
    assert bench.counted() == [(1, 7, 100, 99)]


def test_beyond_its_share_of_the_time_only_the_first_rows_of_an_hour_are_sketched(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift_watch, "SHARE", 0.0)
    assert bench.serve(*[0.0] * (ALWAYS - 1))
    assert bench.serve(0.0)
    assert not bench.serve(0.0)
    bench.store.hour += 1
    assert bench.serve(0.0)


def test_an_empty_chunk_and_one_that_cannot_be_read_cost_no_job(bench: Bench) -> None:
    assert bench.watch.due(SPEC)
    bench.watch.columns(SPEC, {"x": np.zeros(0, np.float32)}, [])
    assert bench.counted() == [(1, 7, 0, 0)]
    bench.watch.rows(SPEC, [{"x": "no number"}], [1.0])
    assert bench.counted() == []
    assert not bench.watch.due(SPEC)


def test_another_reference_is_found_within_a_minute_and_a_ledger_that_is_away_changes_nothing(bench: Bench) -> None:
    bench.serve(0.0)
    bench.store.number, bench.store.away = 2, True
    bench.clock.forward(LOOK_S)
    assert bench.serve(0.0)
    bench.store.away = False
    assert bench.serve(0.0)
    bench.clock.forward(LOOK_S)
    assert bench.serve(0.0)
    assert (bench.counted(), bench.store.asked) == ([(1, 7, 2, 2), (2, 7, 2, 2)], 4)


def test_a_look_that_failed_is_made_again_with_the_next_batch(bench: Bench) -> None:
    bench.store.away = True
    assert not bench.serve(0.0)
    bench.store.away = False
    assert bench.serve(0.0)
    assert bench.counted() == [(1, 7, 1, 1)]


def test_a_clock_that_cannot_be_read_costs_the_rows_of_that_moment_and_no_later_ones(bench: Bench) -> None:
    bench.store.no_clock = True
    bench.serve(0.0)
    bench.store.no_clock = False
    assert bench.serve(0.0)
    assert bench.counted() == [(1, 7, 1, 1)]


def test_the_parent_adds_up_what_its_children_have_sketched_until_it_is_written(bench: Bench) -> None:
    metrics = WorkerMetrics()
    for _ in range(3):
        bench.serve(0.0, 1.0)
        metrics.add_served(bench.watch.take())
    [served] = metrics.take_served()
    assert (served.rows, int(served.counts.sum())) == (6, 12)
    assert metrics.take_served() == []
