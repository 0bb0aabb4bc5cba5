"""Forebay's part of the dashboard's `/metrics`: the ledger's figures and every worker's statistics.

The text is cached for a few seconds, so that several scrapers cost the ledger no more than one. A ledger that is
unavailable shows as `forebay_ledger_up 0`, not as an error. Blocking: call it in a thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from forebay.contract.errors import ForebayError
from forebay.contract.job import JobState
from forebay.contract.metrics.exposition import expose, ledger_families, worker_families
from forebay.contract.metrics.statistics import Labels
from forebay.contract.settings import Settings
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry, WorkerReport

log = structlog.get_logger()

CACHE_S = 5.0
CACHE_FACTOR = 20  # a text is cached this many times as long as it took: a slow ledger is asked less often
STATEMENT_LIMIT_S = 10.0
MISSED_HEARTBEATS = 3  # more than these, and a worker counts as down
Values = dict[str, dict[Labels, float]]


class LedgerMetrics:
    """Thread-safe; the ledger is opened when first asked, and again until it is there."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._ledger: Ledger | None = None
        self._text = b""
        self._expires: float | None = None

    def text(self) -> bytes:
        """In Prometheus' text format, at most a few seconds old."""
        with self._lock:
            asked = self._clock()
            if self._expires is None or asked >= self._expires:
                self._text = self._read()
                now = self._clock()
                self._expires = now + max(CACHE_S, CACHE_FACTOR * (now - asked))
            return self._text

    def ping(self) -> None:
        """LedgerUnavailable unless the ledger answers."""
        self._open().ping()

    def close(self) -> None:
        with self._opening:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None

    def _open(self) -> Ledger:
        with self._opening:
            if self._ledger is None:
                self._ledger = Ledger(self._settings.database, statement_limit_s=STATEMENT_LIMIT_S)
            return self._ledger

    def _read(self) -> bytes:
        try:
            ledger = self._open()
            store, reports = JobStore(ledger), WorkerRegistry(ledger).reports()
            values = self._values(store.queries.counts(), store.queries.depths(), reports)
        except ForebayError as error:
            log.warning("metrics_incomplete", error=str(error))
            return expose(ledger_families({"ledger_up": {(): 0.0}}))
        workers = {report.info.name: (report.statistics, self._is_alive(report)) for report in reports}
        return expose([*ledger_families(values), *worker_families(workers)])

    def _values(
        self,
        counts: Mapping[JobState, int],
        depths: Mapping[str, tuple[int, float | None, int]],
        reports: list[WorkerReport],
    ) -> Values:
        values: Values = {"ledger_up": {(): 1.0}, "jobs": {(state.value,): count for state, count in counts.items()}}
        for queue in sorted({*self._settings.queues, *depths}):
            waiting, oldest, running = depths.get(queue, (0, None, 0))
            serving = [report for report in reports if queue in report.info.queues]
            _set(values, "queue_jobs", waiting, queue, "queued")
            _set(values, "queue_jobs", running, queue, "running")
            _set(values, "queue_backlog_seconds", oldest or 0.0, queue)
            _set(values, "queue_work_seconds", waiting * seconds_per_job(serving), queue)
            _set(values, "queue_workers", sum(map(self._is_alive, serving)), queue)
        for report in reports:
            info = report.info
            _set(values, "worker_up", float(self._is_alive(report)), info.name)
            _set(values, "worker_info", 1.0, info.name, info.host, info.device, ",".join(info.queues))
            _set(values, "worker_start_time_seconds", info.started_at.timestamp(), info.name)
            _set(values, "worker_heartbeat_age_seconds", report.age_s, info.name)
        return values

    def _is_alive(self, report: WorkerReport) -> bool:
        return report.age_s <= MISSED_HEARTBEATS * self._settings.heartbeat_s


def seconds_per_job(reports: list[WorkerReport]) -> float:
    """What one job took a child of these workers on average since they started; 0 before they have finished any."""
    seconds = sum(report.statistics.total("pool_task_seconds_total") for report in reports)
    jobs = sum(report.statistics.total("jobs_finished_total") for report in reports)
    return seconds / jobs if jobs else 0.0


def _set(values: dict[str, Any], name: str, value: float, *labels: str) -> None:
    values.setdefault(name, {})[labels] = value
