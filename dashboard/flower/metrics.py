"""Forebay's part of the dashboard's `/metrics`: the ledger's figures and every worker's statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forebay.contract.metrics.exposition import expose, ledger_families, worker_families
from forebay.contract.metrics.statistics import Labels
from forebay.contract.settings import Settings
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.workers import WorkerReport

WITHOUT_LEDGER = expose(ledger_families({"ledger_up": {(): 0.0}}))
Values = dict[str, dict[Labels, float]]


def read_metrics(queries: LedgerQueries, settings: Settings) -> bytes:
    """All of them now, in Prometheus' text format."""
    reports = queries.workers.reports()
    alive = {report.info.name: report.age_s <= settings.alive_s for report in reports}
    workers = {report.info.name: (report.statistics, alive[report.info.name]) for report in reports}
    return expose([*ledger_families(_values(queries, settings, reports, alive)), *worker_families(workers)])


def _values(
    queries: LedgerQueries, settings: Settings, reports: list[WorkerReport], alive: Mapping[str, bool]
) -> Values:
    counts, depths = queries.store.queries.counts(), queries.store.queries.depths()
    values: Values = {"ledger_up": {(): 1.0}, "jobs": {(state.value,): count for state, count in counts.items()}}
    for queue in sorted({*settings.queues, *depths}):
        waiting, oldest, running = depths.get(queue, (0, None, 0))
        serving = [report for report in reports if queue in report.info.queues]
        _set(values, "queue_jobs", waiting, queue, "queued")
        _set(values, "queue_jobs", running, queue, "running")
        _set(values, "queue_backlog_seconds", oldest or 0.0, queue)
        _set(values, "queue_work_seconds", waiting * seconds_per_job(serving), queue)
        _set(values, "queue_workers", sum(alive[report.info.name] for report in serving), queue)
    for id, model, epoch, loss, pace, silent_s in queries.training.running():
        for name, value in (("epoch", epoch), ("loss", loss), ("rows_per_second", pace), ("silence_seconds", silent_s)):
            if value is not None:
                _set(values, f"training_{name}", value, model, id)
    for drift in filter(None, map(queries.drift.drift, queries.drift.served_last())):
        model, _, version = drift.model.rpartition("/")
        _set(values, "model_drift_psi", drift.worst.psi or 0.0 if drift.worst else 0.0, model, version)
        _set(values, "model_drifted_columns", len(drift.drifted), model, version)
    for report in reports:
        info = report.info
        _set(values, "worker_up", float(alive[info.name]), info.name)
        _set(values, "worker_info", 1.0, info.name, info.host, info.device, ",".join(info.queues))
        _set(values, "worker_start_time_seconds", info.started_at.timestamp(), info.name)
        _set(values, "worker_heartbeat_age_seconds", report.age_s, info.name)
    return values


def seconds_per_job(reports: list[WorkerReport]) -> float:
    """What one job took a child of these workers on average since they started; 0 before they have finished any."""
    seconds = sum(report.statistics.total("pool_task_seconds_total") for report in reports)
    ended = ("jobs_finished_total", "training_attempts_total")
    jobs = sum(report.statistics.total(name) for report in reports for name in ended)
    return seconds / jobs if jobs else 0.0


def _set(values: dict[str, Any], name: str, value: float, *labels: str) -> None:
    values.setdefault(name, {})[labels] = value
