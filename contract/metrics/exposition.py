"""Metrics in Prometheus' text format, which the dashboard, workers and the HTTP server serve at `/metrics`.

prometheus_client is imported nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from forebay.contract.metrics.declared import API, LEDGER, PREFIX, WORKER
from forebay.contract.metrics.statistics import Histogram, Labels, Statistics

CONTENT_TYPE = CONTENT_TYPE_LATEST

FAMILIES = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}


def expose(families: Iterable[Metric]) -> bytes:
    return generate_latest(_Families(lambda: families))  # it only calls `collect`


def metrics_app(families: Callable[[], Iterable[Metric]]) -> Callable[..., Any]:
    """A WSGI application that serves the current families."""
    registry = CollectorRegistry()
    registry.register(_Families(families))
    return make_wsgi_app(registry)


def worker_families(workers: Mapping[str, tuple[Statistics, bool]]) -> Iterator[Metric]:
    """Workers' statistics by name, each with whether the worker is alive: the gauges of a dead one are left out."""
    for name, metric in WORKER.items():
        family = FAMILIES[metric.kind](PREFIX + name, metric.help, labels=("worker", *metric.labels))
        for worker, (statistics, alive) in workers.items():
            if metric.kind == "gauge" and not alive:
                continue
            for labels, value in getattr(statistics, f"{metric.kind}s").get(name, {}).items():
                _add(family, (worker, *labels), value, metric.buckets)
        yield family


def api_families(statistics: Statistics) -> Iterator[Metric]:
    """What one HTTP server has counted since it started."""
    for name, metric in API.items():
        family = FAMILIES[metric.kind](PREFIX + name, metric.help, labels=metric.labels)
        for labels, value in getattr(statistics, f"{metric.kind}s").get(name, {}).items():
            _add(family, labels, value, metric.buckets)
        yield family


def ledger_families(values: Mapping[str, Mapping[Labels, float]]) -> Iterator[Metric]:
    """What the dashboard reads from the ledger: values by metric name and labels."""
    for name, metric in LEDGER.items():
        family = GaugeMetricFamily(PREFIX + name, metric.help, labels=metric.labels)
        for labels, value in values.get(name, {}).items():
            family.add_metric(labels, value)
        yield family


def _add(family: Metric, labels: Labels, value: float | Histogram, buckets: tuple[float, ...]) -> None:
    if isinstance(value, Histogram):
        assert isinstance(family, HistogramMetricFamily)  # noqa: S101 - by FAMILIES
        family.add_metric(labels, list(_cumulative(value, buckets)), value.total)
    else:
        assert isinstance(family, (CounterMetricFamily, GaugeMetricFamily))  # noqa: S101
        family.add_metric(labels, value)


def _cumulative(histogram: Histogram, buckets: tuple[float, ...]) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip((*map(float, buckets), float("inf")), histogram.counts, strict=True):
        below += count
        yield ("+Inf" if bound == float("inf") else str(bound)), below


class _Families(Collector):
    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families()
