"""Charts: of training metrics, one for each with a line for each split or run; of benchmarks. Knows no ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forebay.contract.requests.training import METRICS, TEST, TRAIN, VALIDATION
from forebay.contract.requests.versions.benchmark import Benchmark
from forebay.contract.requests.versions.benchmark import Point as BatchPoint
from forebay.storage.training.records import Measured, Run

SPLITS = (TRAIN, VALIDATION, TEST)
MAX_CHARTS = 12
SPEED = "rows/s"

Values = Mapping[int, float]  # by step
Point = tuple[int, float]  # a step and its value


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: the steps along its axis, and per line a label and a value for each step, None where nothing was measured.

    `styles` numbers the colour and dashes of each line: a split, or a run, has the same style in all charts. `axis` says
    what the steps are.
    """  # fmt: skip

    title: str
    steps: list[int]
    lines: list[tuple[str, list[float | None]]]
    styles: list[int]
    axis: str = "step"

    def series(self) -> dict[str, Any]:
        """As JSON for the page's script."""
        lines = [
            {"label": label, "values": values, "style": style}
            for (label, values), style in zip(self.lines, self.styles, strict=True)
        ]
        return {"title": self.title, "axis": self.axis, "steps": self.steps, "lines": lines}


@dataclass(frozen=True, slots=True)
class BestValue:
    """A run's best value of its main metric, the split it was measured on, and at which step (None: at the end)."""

    metric: str
    value: float
    split: str
    step: int | None


def run_charts(curve: Sequence[Measured]) -> list[Chart]:
    """The charts of one run: each metric with a line for each split, and the rows per second."""
    metrics = _metrics(curve)
    charts = [_chart(metric, {split: _values(curve, metric, split) for split in SPLITS}) for metric in metrics]
    speed = {point.step: point.rows_per_s for point in curve if point.split == TRAIN and point.rows_per_s is not None}
    return [*charts[: MAX_CHARTS - 1], *([_chart(SPEED, {TRAIN: speed})] if speed else [])]


def comparison_charts(curves: Mapping[str, Sequence[Measured]]) -> list[Chart]:
    """The charts of several runs by their labels: each metric of each split with a line for each run."""
    points = [point for curve in curves.values() for point in curve]
    charts = [
        _chart(f"{metric}, {split}", {label: _values(curve, metric, split) for label, curve in curves.items()})
        for metric in _metrics(points)
        for split in (VALIDATION, TRAIN)
    ]
    return [chart for chart in charts if chart.lines][:MAX_CHARTS]


def benchmark_charts(benchmarks: Sequence[Benchmark]) -> list[Chart]:
    """Rows/s and latency by the rows of a batch, with a line for each curve of the newest benchmark on each kind of device."""
    newest = {benchmark.device: benchmark for benchmark in reversed(benchmarks)}
    several = any(len(benchmark.curves) > 1 for benchmark in newest.values())
    curves = {
        device + (f", {curve.name}" if several else ""): curve.points
        for device, benchmark in newest.items()
        for curve in benchmark.curves
    }
    measures: Mapping[str, Callable[[BatchPoint], float]] = {
        SPEED: lambda point: point.rows_per_s, "ms for a batch": lambda point: point.latency_ms,
    }  # fmt: skip
    charts = [
        _chart(title, {name: {point.rows: of(point) for point in points} for name, points in curves.items()})
        for title, of in measures.items()
    ]
    return [replace(chart, axis="rows in a batch") for chart in charts if chart.lines]


def lower_is_better(metric: str) -> bool:
    """Whether less of a metric is better; an unknown one is judged by its name."""
    return not METRICS[metric] if metric in METRICS else "loss" in metric or "error" in metric


def main_metric(run: Run, measured: Iterable[str]) -> str | None:
    """The metric that says how good a run is: the requested one, else the first known one measured, the loss last."""
    requested, known = run.request.get("metric"), set(measured)
    order = [requested, *(name for name in METRICS if name != "loss"), "loss", *sorted(known)]
    return next((name for name in order if name in known), None)


def best(run: Run, curve: Sequence[Measured]) -> BestValue | None:
    """The held-out metric of a run that has ended; before that its best validation value, else of training."""
    held_out = {name: value for name, value in (run.metrics or {}).items() if value is not None}
    metric = main_metric(run, held_out)
    if metric is not None:
        return BestValue(metric, held_out[metric], TEST, None)
    for split in (VALIDATION, TRAIN):
        metric = main_metric(run, _metrics([point for point in curve if point.split == split]))
        if metric is not None:
            step, value = best_of(_values(curve, metric, split), metric)
            return BestValue(metric, value, split, step)
    return None


def best_of(values: Values, metric: str) -> tuple[int, float]:
    """The step and value of the best of at least one; the earliest of equal ones."""
    sign = 1 if lower_is_better(metric) else -1
    return min(values.items(), key=lambda item: (sign * item[1], item[0]))


def last_and_best(curve: Sequence[Measured]) -> list[tuple[str, dict[str, Point], dict[str, Point]]]:
    """Of each metric the last and the best point of each split: the charts as numbers."""
    rows = []
    for metric in _metrics(curve):
        found = {split: _values(curve, metric, split) for split in SPLITS}
        last = {split: max(values.items()) for split, values in found.items() if values}
        rows.append((metric, last, {split: best_of(values, metric) for split, values in found.items() if values}))
    return rows


def _metrics(curve: Iterable[Measured]) -> list[str]:
    """Every metric that has a value, the loss first."""
    names = {name for point in curve for name, value in point.values.items() if value is not None}
    return sorted(names, key=lambda name: (name != "loss", name not in METRICS, name))


def _values(curve: Iterable[Measured], metric: str, split: str) -> dict[int, float]:
    return {
        point.step: value for point in curve if point.split == split and (value := point.values.get(metric)) is not None
    }


def _chart(title: str, lines: Mapping[str, Values]) -> Chart:
    filled = {label: values for label, values in lines.items() if values}
    steps = sorted({step for values in filled.values() for step in values})
    drawn = [(label, [values.get(step) for step in steps]) for label, values in filled.items()]
    return Chart(title, steps, drawn, [i for i, label in enumerate(lines) if label in filled])
