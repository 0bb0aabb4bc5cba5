"""What a child counts and its parent adds up, and when a worker counts as well and as ready."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.metrics.statistics import Statistics
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.summary import Fate
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.probes import Probes
from support.waiting import FakeClock

DIGITS = ("digits", 1)
ME = os.getpid()


def counted(
    child: ChildMetrics, pid: int = ME, models: dict[tuple[str, int], int] | None = None
) -> tuple[int, Statistics]:
    return pid, child.take(models or {}, 1000)


def test_a_child_tells_each_thing_once() -> None:
    child, worker = ChildMetrics(), WorkerMetrics()
    child.ended((*DIGITS, "predict"), {"succeeded": 3, "failed": 1, "stopped": 0}, 0.5, postponed=5, refused=2)
    child.ran(DIGITS, 4, 0.25, tokens=30, padded=40)
    worker.add_child(*counted(child))
    worker.add_child(*counted(child))
    now = worker.snapshot()
    assert now.total("jobs_finished_total", "digits", "1", "predict", "succeeded") == 3
    assert now.total("jobs_finished_total", "digits", "1", "predict", "failed") == 1
    assert (now.total("results_refused_total"), now.total("jobs_postponed_total")) == (2, 5)
    assert now.histograms["job_run_seconds"]["digits", "1", "predict"].count == 4
    assert now.histograms["batch_padding_ratio"]["digits", "1"].total == 0.25
    assert (now.total("batch_tokens_total"), now.total("batch_padding_tokens_total")) == (30, 10)


def test_tokens_and_first_texts_are_counted_by_model() -> None:
    child, worker = ChildMetrics(), WorkerMetrics()
    child.answered(DIGITS, {}, [], 6, 8)
    child.first_texts(DIGITS, [0.2, 0.4])
    worker.add_child(*counted(child))
    now = worker.snapshot()
    counts = [now.total(f"{name}_tokens_total", "digits", "1") for name in ("prompt", "completion")]
    assert counts == [6, 8]
    assert now.histograms["first_text_seconds"]["digits", "1"].count == 2


def test_what_children_hold_is_summed_and_forgotten_with_them() -> None:
    worker = WorkerMetrics()
    worker.add_child(*counted(ChildMetrics(), ME, {DIGITS: 40}))
    worker.add_child(*counted(ChildMetrics(), 2**22 + 1, {DIGITS: 50}))  # a process id that Linux never gives
    now = worker.snapshot()
    assert now.total("model_bytes", "digits", "1") == 40
    assert now.total("model_cache_budget_bytes") == 1000


def test_a_model_that_was_evicted_is_no_longer_held() -> None:
    worker, child = WorkerMetrics(), ChildMetrics()
    child.loaded(DIGITS, 1.0)
    worker.add_child(*counted(child, models={DIGITS: 40}))
    child.evicted(DIGITS)
    child.loaded(("minilm", 1), 2.0, failed=True)
    worker.add_child(*counted(child))
    now = worker.snapshot()
    assert "model_bytes" not in now.gauges
    assert now.total("model_loads_total", "digits", "1", "loaded") == 1
    assert now.total("model_loads_total", "minilm", "1", "failed") == 1
    assert now.total("model_evictions_total", "digits") == 1


def test_an_old_utilisation_is_not_shown() -> None:
    clock = FakeClock()
    worker = WorkerMetrics("cuda:0", clock)
    worker.add_child(
        ME, Statistics(gauges={"device_utilization_ratio": {(): 0.5}, "device_memory_used_bytes": {(): 7}})
    )
    assert worker.snapshot().total("device_utilization_ratio") == 0.5
    clock.forward(31)
    now = worker.snapshot()
    assert "device_utilization_ratio" not in now.gauges
    assert now.total("device_memory_used_bytes") == 7


def test_counters_of_the_parent_show_before_anything_has_happened() -> None:
    now = WorkerMetrics().snapshot()
    assert now.counters["child_deaths_total"] == {(): 0}
    assert now.counters["sweeper_jobs_total"]["freed",] == 0


def test_a_snapshot_measures_the_worker_and_asks_its_gauges() -> None:
    worker = WorkerMetrics()
    worker.gauges["messages_held"] = lambda: 7
    now = worker.snapshot()
    assert now.total("messages_held") == 7
    assert now.total("worker_memory_bytes") > 0
    assert 0 < now.total("device_memory_used_bytes") < now.total("device_memory_total_bytes")


def test_a_gpu_tells_its_memory_and_its_utilisation_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(mem_get_info=lambda device: (30, 100), utilization=lambda device: 40)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))  # type: ignore[arg-type]
    gauges = ChildMetrics("cuda:0").take({}, 0).gauges
    assert gauges["device_memory_used_bytes"] == {(): 70.0}
    assert gauges["device_memory_total_bytes"] == {(): 100.0}
    assert gauges["device_utilization_ratio"] == {(): 0.4}

    def without_nvml(device: str) -> int:
        raise ModuleNotFoundError("pynvml does not seem to be installed")

    cuda.utilization = without_nvml
    assert "device_utilization_ratio" not in ChildMetrics("cuda:0").take({}, 0).gauges


class FakePool:
    """Celery's prefork pool as far as Probes look."""

    def __init__(self, up: int, starting: int) -> None:
        starts = [object() for _ in range(starting)]
        self._pool = self
        self._waiting_to_start = set(starts)
        self.processes = [object() for _ in range(up)] + starts

    def __iter__(self) -> Any:
        return iter(self.processes)


class Parts:
    """Everything a worker's health depends on, all of it well."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.alive = True
        self.last_beat = clock()
        self.broker = self.ledger = True
        self.waited_s = 0.0

    def ping(self) -> bool:
        if not self.broker:
            raise redis.ConnectionError("gone")
        return True


class FakeLedger:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def ping(self) -> None:
        if not self._parts.ledger:
            raise LedgerUnavailable("the ledger is away")


@pytest.fixture
def parts() -> Parts:
    return Parts(FakeClock())


@pytest.fixture
def probes(parts: Parts) -> Probes:
    made = Probes(parts, parts, FakeLedger(parts), parts, 30.0, parts.clock, lambda: parts.waited_s)  # type: ignore[arg-type]
    made.loop_turned(FakePool(up=1, starting=0))
    return made


def test_a_worker_with_a_child_and_its_servers_is_ready(probes: Probes) -> None:
    assert (probes.health(), probes.readiness()) == ([], [])


def test_a_worker_that_starts_is_well_but_not_ready(parts: Parts) -> None:
    probes = Probes(parts, parts, FakeLedger(parts), parts, 30.0, parts.clock)  # type: ignore[arg-type]
    parts.clock.forward(100)
    parts.last_beat = parts.clock()
    assert probes.health() == []
    assert probes.readiness() == ["no child is ready"]
    probes.loop_turned(FakePool(up=0, starting=2))
    assert probes.readiness() == ["no child is ready"]


def test_without_redis_a_worker_is_well_however_long_and_not_ready(probes: Probes, parts: Parts) -> None:
    parts.broker = False
    parts.clock.forward(3600)
    parts.last_beat = parts.clock()
    assert probes.health() == []
    assert "Redis does not answer" in probes.readiness()


def test_without_the_ledger_a_worker_is_well_and_not_ready(probes: Probes, parts: Parts) -> None:
    parts.ledger = False
    assert probes.health() == []
    assert probes.readiness() == ["the ledger is away"]


def test_a_child_that_waits_for_a_ledger_that_answers_is_not_ready_and_then_not_well(
    probes: Probes, parts: Parts
) -> None:
    parts.waited_s = 11.0
    assert (probes.health(), probes.readiness()) == ([], ["a child waits for the ledger"])
    parts.waited_s = 91.0
    assert probes.health() == ["a child has waited for the ledger for 91 s although it answers"]
    parts.ledger = False
    assert probes.health() == [], "a restart would bring nothing back"


def test_a_loop_that_stands_still_although_redis_answers_is_not_well(probes: Probes, parts: Parts) -> None:
    parts.clock.forward(61)
    parts.last_beat = parts.clock()
    assert probes.health() == ["Celery's loop stands still although Redis answers"]


def test_a_heartbeat_that_ended_or_hangs_is_not_well(probes: Probes, parts: Parts) -> None:
    parts.alive = False
    assert probes.health() == ["the heartbeat or the sweeper has ended"]
    parts.alive = True
    parts.clock.forward(91)
    probes.loop_turned(FakePool(up=1, starting=0))
    assert probes.health() == ["the heartbeat hangs"]


def test_training_and_tasks_have_their_series_before_the_first_has_ended() -> None:
    worker = WorkerMetrics()
    assert worker.snapshot().counters["pool_tasks_total"] == {("done",): 0, ("failed",): 0, ("lost",): 0}
    worker.begin_training("iris")
    now = worker.snapshot()
    assert now.counters["training_attempts_total"] == {("iris", fate.value): 0 for fate in Fate}
    assert now.histograms["training_seconds"]["iris",].count == 0
    child = ChildMetrics()
    child.trained("iris", "succeeded", 2.0)
    worker.add_child(*counted(child))
    worker.begin_training("iris")
    assert worker.snapshot().total("training_attempts_total", "iris", "succeeded") == 1
