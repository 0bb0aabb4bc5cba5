"""The Devices page: every worker with its device, the models it holds, and how full its batches are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forebay.contract.metrics.declared import METRICS
from forebay.contract.metrics.statistics import Statistics
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.workers import WorkerReport

RECENT_S = 86_400.0
MAX_MODELS = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram: its range, how many values fell into it, and that as a share of the largest count."""

    title: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Device:
    """A worker's report as it is shown; what was not reported is None. Sizes are bytes, shares 0 to 1."""

    report: WorkerReport
    memory: tuple[float, float] | None  # used, total
    utilization: float | None
    models: list[tuple[str, float]]
    budget: float | None
    loads: int
    evictions: int
    resident: float | None
    cores: float | None
    batches: list[Bar]
    padding: list[Bar]


class DevicesPage(Page):
    """`/devices`. Flower's `/workers` shows the same processes as Celery sees them."""

    tab = template = "devices"
    heading = "Workers"
    about = "Each owns one device. Workers that have been silent for a day are not shown."

    async def get(self) -> None:
        devices, load = await asyncio.gather(
            self.ledger.read("devices", lambda queries: read_devices(queries, RECENT_S)),
            self.read_load(),
        )
        self.show(
            devices, load, devices=devices.value, load=load.value, alive_s=self.forebay.alive_s, max_models=MAX_MODELS
        )


def read_devices(queries: LedgerQueries, max_age_s: float) -> list[Device]:
    """The workers whose last heartbeat is not older than this."""
    return [device(report) for report in queries.workers.reports() if report.age_s <= max_age_s]


def device(report: WorkerReport) -> Device:
    """A report, arranged for the page."""
    statistics = report.statistics
    used, total = _gauge(statistics, "device_memory_used_bytes"), _gauge(statistics, "device_memory_total_bytes")
    models = (
        (f"{model}/{version}", size)
        for (model, version), size in statistics.gauges.get("model_bytes", {}).items()
        if size
    )
    return Device(
        report,
        (used, total) if used is not None and total else None,
        _gauge(statistics, "device_utilization_ratio"),
        sorted(models, key=lambda model: (-model[1], model[0])),
        _gauge(statistics, "model_cache_budget_bytes"),
        round(statistics.total("model_loads_total", None, None, "loaded")),
        round(statistics.total("model_evictions_total")),
        _gauge(statistics, "worker_memory_bytes"),
        _gauge(statistics, "worker_cpu_cores"),
        bars(statistics, "batch_rows"),
        bars(statistics, "batch_padding_ratio", percent=True),
    )


def bars(statistics: Statistics, name: str, *, percent: bool = False) -> list[Bar]:
    """A histogram over all models, from its first value to its last; [] where there is none."""
    bounds = METRICS[name].buckets
    counts = [
        sum(column) for column in zip(*(h.counts for h in statistics.histograms.get(name, {}).values()), strict=True)
    ]
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return []
    shown = range(filled[0], filled[-1] + 1)
    return [Bar(_range(bounds, i, percent), counts[i], counts[i] / max(counts)) for i in shown]


def _range(bounds: tuple[float, ...], i: int, percent: bool) -> str:
    """Bucket `i`: above the bound before it, up to its own; the last one is open."""
    scale, unit = (100, " %") if percent else (1, "")
    if i == len(bounds):
        return f"more than {bounds[-1] * scale:g}{unit}"
    high = bounds[i] * scale
    if i == 0:
        return f"{high:g}{unit}"
    low = bounds[i - 1] * scale
    if percent:
        return f"up to {high:g}{unit}"
    return f"{low + 1:g} to {high:g}" if high > low + 1 else f"{high:g}"


def _gauge(statistics: Statistics, name: str) -> float | None:
    return statistics.total(name) if statistics.gauges.get(name) else None
