"""The statistics of one worker: its children's counts, added up, and the parent's own. Written with every heartbeat.

Counts grow from the start of the worker and are never written back: a worker that starts anew starts at zero, as
Prometheus expects of a counter. Thread-safe: Celery's loop, the heartbeat, the sweeper and the metrics server all call it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable

import psutil

from forebay.contract.drift.sketch import Served
from forebay.contract.metrics.declared import TRAINING_OUTCOMES, WORKER
from forebay.contract.metrics.statistics import Statistics

FRESH_S = 30.0  # how long a GPU's utilisation counts after a child last reported it


class WorkerMetrics:
    """Counts and gauges; `gauges` holds those of the parent, which are asked anew for every snapshot."""

    def __init__(self, device: str = "cpu", clock: Callable[[], float] = time.monotonic) -> None:
        self.gauges: dict[str, Callable[[], float]] = {}
        self._device = device
        self._clock = clock
        self._lock = threading.Lock()
        self._total = _zeros()
        self._children: dict[int, tuple[float, Statistics]] = {}  # by pid: when it reported, and its gauges
        self._served: dict[
            tuple[str, int, int, int], Served
        ] = {}  # by version, revision and hour: not in the ledger yet
        self._cpu = (clock(), 0.0)

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        if by:
            with self._lock:
                self._total.count(name, *labels, by=by)

    def begin_training(self, model: str) -> None:
        """Have the model's training series from its first attempt on, at zero."""
        with self._lock:
            self._total.observe("training_seconds", 0.0, model, times=0)
            for outcome in TRAINING_OUTCOMES:
                self._total.count("training_attempts_total", model, outcome, by=0)

    def add_child(self, pid: int, counts: Statistics) -> None:
        """Add what a child has counted since its last report, and take over its gauges."""
        with self._lock:
            self._total.add(counts)
            self._children[pid] = (self._clock(), Statistics(gauges=counts.gauges))

    def add_served(self, served: Iterable[Served]) -> None:
        """Add what a child has sketched, until `take_served`."""
        with self._lock:
            for one in served:
                key = (one.name, one.version, one.revision, one.hour)
                before = self._served.get(key)
                self._served[key] = one if before is None else before + one

    def take_served(self) -> list[Served]:
        """What was sketched since this was last called."""
        with self._lock:
            served, self._served = list(self._served.values()), {}
        return served

    def snapshot(self) -> Statistics:
        """All of it now; the gauges of children that are gone are left out."""
        me = psutil.Process(os.getpid())
        processes = {process.pid: process for process in (me, *me.children(recursive=True))}
        with self._lock:
            self._children = {pid: report for pid, report in self._children.items() if pid in processes}
            now = Statistics()
            now.add(self._total)
            for reported_at, gauges in self._children.values():
                if self._clock() - reported_at > FRESH_S:
                    gauges.gauges.pop("device_utilization_ratio", None)
                now.add(gauges, gauges=True)
            self._measure(now, list(processes.values()))
        for name, ask in self.gauges.items():
            now.set(name, ask())
        return now

    def as_json(self) -> str:
        """The snapshot as it is kept in the ledger."""
        return json.dumps(self.snapshot().as_dict(), separators=(",", ":"))

    def _measure(self, now: Statistics, processes: list[psutil.Process]) -> None:
        memory = cpu = 0.0
        for process in processes:
            try:
                memory += process.memory_info().rss
                times = process.cpu_times()
            except psutil.Error:  # it has just ended
                continue
            cpu += times.user + times.system
        then, used = self._cpu
        self._cpu = (self._clock(), cpu)
        now.set("worker_memory_bytes", memory)
        now.set("worker_cpu_cores", max(0.0, cpu - used) / max(self._clock() - then, 1e-3) if used else 0.0)
        if self._device == "cpu":
            machine = psutil.virtual_memory()
            now.set("device_memory_total_bytes", machine.total)
            now.set("device_memory_used_bytes", machine.total - machine.available)


def _zeros() -> Statistics:
    """The parent's counters at zero: Prometheus sees an increase only where it has seen the value before."""
    zeros = Statistics()
    for name, metric in WORKER.items():
        if metric.kind == "counter" and not metric.labels:
            zeros.count(name, by=0)
    for outcome in ("done", "failed", "lost"):
        zeros.count("pool_tasks_total", outcome, by=0)
    for action in ("freed", "failed", "expired", "due", "resent", "deleted"):
        zeros.count("sweeper_jobs_total", action, by=0)
    return zeros
