"""The Overview: what waits and runs, how fast it goes and how long it takes, what fails, and who works on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forebay.contract.job import JobState
from forebay.contract.references import versioned
from forebay.contract.settings import Settings
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.devices import Device, device
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.dashboard.reads.trends import WINDOWS, Trend
from forebay.storage.jobs.overview import Backlog, CurrentLoad
from forebay.storage.workers import WorkerInfo


@dataclass(frozen=True, slots=True)
class QueueRow:
    """One queue: its backlog, the pace of the last minutes (jobs/s), seconds until it is empty at that pace, its workers."""

    backlog: Backlog
    pace: float
    empty_in_s: float | None
    workers: tuple[str, ...]
    declared: bool


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model version in a window: jobs that succeeded and that failed."""

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

    tab = "overview"

    async def get(self) -> None:
        """The page, or the part that changes."""
        window = WINDOWS.get(self.get_query_argument("window", ""), WINDOWS["hour"])
        trends = self.application.trends
        hour = WINDOWS["hour"]
        now, trend, recent, workers = await asyncio.gather(  # side by side: the patience is that of one question
            self.ledger.ask("now", lambda ears: ears.overview.now()),
            self.ledger.ask(("trend", window.name), lambda ears: trends.read(ears.overview, window), window.fresh_s),
            self.ledger.ask(("trend", hour.name), lambda ears: trends.read(ears.overview, hour), hour.fresh_s),
            self.ledger.ask("workers", lambda ears: alive(ears, self.forebay), fresh_s=2),
        )
        self.show(
            "overview", now, trend, recent, workers, window=window, windows=WINDOWS, held=now.value, trend=trend.value,
            queues=queue_rows(now.value, recent.value, [each.report.info for each in workers.value or ()], self.forebay),
            models=model_rows(trend.value), devices=workers.value or [], states=JobState,
        )  # fmt: skip


def alive(ears: ConsumerHealth, settings: Settings) -> list[Device]:
    """The workers that count as alive, with what they report of their devices."""
    return [device(report) for report in ears.workers.reports() if report.age_s <= 3 * settings.heartbeat_s]


def queue_rows(
    now: CurrentLoad | None, trend: Trend | None, workers: list[WorkerInfo], settings: Settings
) -> list[QueueRow]:
    """Every declared queue, and those that hold jobs though nobody declares them any more."""
    held = {backlog.queue: backlog for backlog in now.queues} if now else {}
    names = [*settings.queues, *(name for name in held if name not in settings.queues)]
    paces = trend.recent_by_queue if trend else {}
    return [
        QueueRow(
            backlog := held.get(name, Backlog(name, 0, None, 0)),
            pace := paces.get(name, 0.0),
            backlog.waiting / pace if pace and backlog.waiting else None,
            tuple(worker.name for worker in workers if name in worker.queues),
            name in settings.queues,
        )
        for name in names
    ]


def model_rows(trend: Trend | None) -> list[ModelRow]:
    """The model versions that ran, those that failed most first."""
    rows = [
        ModelRow(name, version, ended.get(JobState.SUCCEEDED, 0), ended.get(JobState.FAILED, 0))
        for (name, version), ended in (trend.by_model.items() if trend else ())
    ]
    ran = [row for row in rows if row.succeeded or row.failed]
    return sorted(ran, key=lambda row: (-row.failed, -row.succeeded, row.name, row.version))
