"""What a worker counts: counters, histograms and gauges by labels. Children report them, and their parent adds them up.

Bounded in size: from the 65th series of a name on, all further ones are counted as `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from forebay.contract.metrics.declared import METRICS

MAX_SERIES = 64  # of one name
OTHER = "other"

Labels = tuple[str, ...]


class Histogram(Struct):
    """How many values are in each of the metric's buckets, and finally above all bounds; and the values' sum."""

    counts: list[int]
    total: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts)


class Statistics(Struct):
    """Series by metric name and labels. Counters and histograms only grow; a gauge has the value it was last set to."""

    counters: dict[str, dict[Labels, float]] = {}
    histograms: dict[str, dict[Labels, Histogram]] = {}
    gauges: dict[str, dict[Labels, float]] = {}

    def __bool__(self) -> bool:
        return bool(self.counters or self.histograms or self.gauges)

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        series = self.counters.setdefault(name, {})
        labels = _bounded(series, labels)
        series[labels] = series.get(labels, 0) + by

    def observe(self, name: str, value: float, *labels: str, times: int = 1) -> None:
        histogram = _histogram(self.histograms.setdefault(name, {}), name, labels)
        histogram.counts[bisect_left(METRICS[name].buckets, value)] += times
        histogram.total += value * times

    def observe_all(self, name: str, values: Sequence[float], *labels: str) -> None:
        histogram = _histogram(self.histograms.setdefault(name, {}), name, labels)
        counts, buckets = histogram.counts, METRICS[name].buckets
        for value in values:
            counts[bisect_left(buckets, value)] += 1
        histogram.total += sum(values)

    def set(self, name: str, value: float, *labels: str) -> None:
        series = self.gauges.setdefault(name, {})
        series[_bounded(series, labels)] = value

    def add(self, other: Statistics, *, gauges: bool = False) -> None:
        """Add another's counts to these; with `gauges` add up the gauges too, as for children that share a device."""
        for name, labels, value in other.series("counters"):
            self.count(name, *labels, by=value)
        for name, labels, theirs in other.series("histograms"):
            ours = _histogram(self.histograms.setdefault(name, {}), name, labels)
            ours.counts = [a + b for a, b in zip(ours.counts, theirs.counts, strict=True)]
            ours.total += theirs.total
        for name, labels, value in other.series("gauges") if gauges else ():
            series = self.gauges.setdefault(name, {})
            labels = _bounded(series, labels)
            series[labels] = series.get(labels, 0) + value

    def series(self, kind: str) -> Iterator[tuple[str, Labels, Any]]:
        """Every series of a kind, `counters`, `histograms` or `gauges`: name, labels, value."""
        for name, series in getattr(self, kind).items():
            for labels, value in series.items():
                yield name, labels, value

    def total(self, name: str, *labels: str | None) -> float:
        """The sum of a counter's or gauge's series with these labels; None matches any label."""
        found = self.counters.get(name) or self.gauges.get(name) or {}
        return sum(
            value
            for have, value in found.items()
            if all(want is None or want == has for want, has in zip(labels, have, strict=False))
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `{kind: {name: [[*labels, value], …]}}`, a histogram being `[sum, *counts]`."""
        found: dict[str, Any] = {}
        for kind in ("counters", "histograms", "gauges"):
            for name, labels, value in self.series(kind):
                written = [value.total, *value.counts] if isinstance(value, Histogram) else value
                found.setdefault(kind, {}).setdefault(name, []).append([*labels, written])
        return found

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Statistics:
        """What `as_dict` returned, perhaps in another version of Forebay: what is not known here is ignored."""
        made = cls()
        for kind, series in (("counters", made.counters), ("gauges", made.gauges), ("histograms", made.histograms)):
            names = given.get(kind)
            for name, entries in names.items() if isinstance(names, dict) else ():
                for labels, value in _known_series(name, kind.removesuffix("s"), entries):
                    series.setdefault(name, {})[labels] = value
        return made


def _known_series(name: str, kind: str, entries: Any) -> Iterator[tuple[Labels, Any]]:
    metric = METRICS.get(name)
    if metric is None or metric.kind != kind or not isinstance(entries, list):
        return
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != len(metric.labels) + 1:
            continue
        *labels, value = entry
        if kind != "histogram" and isinstance(value, (int, float)):
            yield tuple(map(str, labels)), value
        elif isinstance(value, list) and len(value) == len(metric.buckets) + 2:
            yield tuple(map(str, labels)), Histogram(value[1:], value[0])


def _bounded(series: Mapping[Labels, object], labels: Labels) -> Labels:
    return labels if labels in series or len(series) < MAX_SERIES else (OTHER,) * len(labels)


def _histogram(series: dict[Labels, Histogram], name: str, labels: Labels) -> Histogram:
    labels = _bounded(series, labels)
    if labels not in series:
        series[labels] = Histogram([0] * (len(METRICS[name].buckets) + 1))
    return series[labels]
