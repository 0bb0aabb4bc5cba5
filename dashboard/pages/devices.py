"""The Devices page: every worker with its device, the models it holds, how full its batches are, and what it counted."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from forebay.contract.metrics.declared import METRICS
from forebay.contract.metrics.statistics import Statistics
from forebay.dashboard.pages.base import Page
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.workers import WorkerReport

RECENT_S = 86_400.0
MOST_MODELS = 20


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram: its range in words, how many values fell into it, and that as a share of the largest."""

    title: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Device:
    """A worker's report as it is shown; what was not reported is None. Sizes are bytes, shares 0 to 1."""

    report: WorkerReport
    memory: tuple[float, float] | None  # used, there is
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

    tab = "devices"

    async def get(self) -> None:
        """The page, or the part that changes."""
        devices, held = await asyncio.gather(
            self.ledger.ask("devices", _devices), self.ledger.ask("now", lambda ears: ears.overview.now())
        )
        self.show(
            "devices", devices, held, devices=devices.value, held=held.value, alive_s=3 * self.forebay.heartbeat_s,
            most_models=MOST_MODELS,
        )  # fmt: skip


def _devices(ears: ConsumerHealth) -> list[Device]:
    return [device(report) for report in ears.workers.reports() if report.age_s <= RECENT_S]


def device(report: WorkerReport) -> Device:
    """What a report tells, put together for the page."""
    of = report.statistics
    used, there = _gauge(of, "device_memory_used_bytes"), _gauge(of, "device_memory_total_bytes")
    models = (
        (f"{model}/{version}", size) for (model, version), size in of.gauges.get("model_bytes", {}).items() if size
    )
    return Device(
        report,
        (used, there) if used is not None and there else None,
        _gauge(of, "device_utilization_ratio"),
        sorted(models, key=lambda model: (-model[1], model[0])),
        _gauge(of, "model_cache_budget_bytes"),
        round(of.total("model_loads_total", None, None, "loaded")),
        round(of.total("model_evictions_total")),
        _gauge(of, "worker_memory_bytes"),
        _gauge(of, "worker_cpu_cores"),
        bars(of, "batch_rows"),
        bars(of, "batch_padding_ratio", percent=True),
    )


def bars(of: Statistics, name: str, *, percent: bool = False) -> list[Bar]:
    """A histogram over all models, from its first value to its last; [] where there is none."""
    bounds = METRICS[name].buckets
    counts = [sum(column) for column in zip(*(h.counts for h in of.histograms.get(name, {}).values()), strict=True)]
    filled = [i for i, count in enumerate(counts) if count]
    if not filled:
        return []
    most = max(counts)
    places = range(filled[0], filled[-1] + 1)
    return [Bar(_range(bounds, i, percent), counts[i], counts[i] / most) for i in places]


def _range(bounds: tuple[float, ...], i: int, percent: bool) -> str:
    """Bucket `i` in words: above the bound before it, up to its own; the last is open."""
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


def _gauge(of: Statistics, name: str) -> float | None:
    return of.total(name) if of.gauges.get(name) else None
