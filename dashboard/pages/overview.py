"""The Overview: what waits and runs, throughput and latency, what fails, and the workers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forebay.contract.job import JobState
from forebay.contract.references import versioned
from forebay.contract.settings import Settings
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.devices import read_devices
from forebay.dashboard.reads.trends import WINDOWS, Trend
from forebay.storage.health import ledger_health
from forebay.storage.jobs.overview import Backlog, CurrentLoad
from forebay.storage.workers import WorkerInfo


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue: its backlog, its rate over the last minutes (jobs/s), seconds until it is empty at that rate, its workers."""

    backlog: Backlog
    rate: float
    empty_in_s: float | None
    workers: tuple[str, ...]
    declared: bool


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model version in a window: its jobs that succeeded and that failed."""

    name: str
    version: int
    succeeded: int
    failed: int

    @property
    def ref(self) -> str:
        """`name/3`; `name` of training jobs, which make a version."""
        return versioned(self.name, self.version)


class OverviewPage(Page):
    """`/overview`, and `/overview?window=day`."""

    tab = template = "overview"
    heading = "Overview"
    about = "All queues, models and workers of this ledger."
    scripts = ("uPlot.iife.min.js", "charts.js", "pages.js")

    async def get(self) -> None:
        hour = WINDOWS["hour"]
        window = WINDOWS.get(self.get_query_argument("window", ""), hour)
        settings = self.forebay
        load, trend, recent, devices, health = await asyncio.gather(  # together: a page waits no longer than for one
            self.read_load(),
            self.read_trend(window),
            self.read_trend(hour),
            self.ledger.read("alive", lambda queries: read_devices(queries, settings.alive_s), max_age_s=2),
            self.ledger.read("health", lambda queries: ledger_health(queries.ledger, settings), max_age_s=2),
        )
        workers = [device.report.info for device in devices.value or ()]
        self.show(
            load, trend, recent, devices, health, window=window, windows=WINDOWS, load=load.value, trend=trend.value,
            queues=queue_rows(load.value, recent.value, workers, self.forebay), models=model_rows(trend.value),
            devices=devices.value or [], states=JobState, problems=health.value.problems if health.value else (),
            failures=health.value.failures if health.value else (),
        )  # fmt: skip


def queue_rows(
    load: CurrentLoad | None, trend: Trend | None, workers: list[WorkerInfo], settings: Settings
) -> list[QueueRow]:
    """Every declared queue, and those that hold jobs though they are no longer declared."""
    backlogs = {backlog.queue: backlog for backlog in load.queues} if load else {}
    names = [*settings.queues, *(name for name in backlogs if name not in settings.queues)]
    rates = trend.recent_by_queue if trend else {}
    return [
        QueueRow(
            backlog := backlogs.get(name, Backlog(name, 0, None, 0)),
            rate := rates.get(name, 0.0),
            backlog.waiting / rate if rate and backlog.waiting else None,
            tuple(worker.name for worker in workers if name in worker.queues),
            name in settings.queues,
        )
        for name in names
    ]


def model_rows(trend: Trend | None) -> list[ModelRow]:
    """The model versions that ran, those with the most failures first."""
    rows = [
        ModelRow(name, version, ended.get(JobState.SUCCEEDED, 0), ended.get(JobState.FAILED, 0))
        for (name, version), ended in (trend.by_model.items() if trend else ())
    ]
    ran = [row for row in rows if row.succeeded or row.failed]
    return sorted(ran, key=lambda row: (-row.failed, -row.succeeded, row.name, row.version))
