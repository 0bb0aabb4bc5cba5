"""A training job while it is waited for: a bar of its steps, its last metrics, and sparklines of loss and metric.

Drawn on a terminal only, silent elsewhere. Reads the ledger about twice a second; asks the trainer nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobInfo, JobState
from forebay.contract.requests.training import TRAIN, VALIDATION
from forebay.producer.waiting.progress import wait_and_redraw
from forebay.storage.training.records import Run

LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.,-=+*#"
WIDTH = 40  # of a sparkline and of the bar


class TrainingHandle(Protocol):
    @property
    def run(self) -> Run: ...
    def metrics(self, after: int = -1) -> list[dict[str, Any]]: ...
    def info(self) -> JobInfo: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class LearningCurve:
    """What a run has measured so far, read again as it grows."""

    def __init__(self, job: TrainingHandle) -> None:
        self._job = job
        self._rows: list[dict[str, Any]] = []
        self.run: Run | None = None

    def refresh(self) -> None:
        """Read what is new. A run that resumed from a checkpoint measures the steps after it again."""
        try:
            run = self._job.run
        except JobNotFound:
            self.run, self._rows = None, []
            return
        if self.run is None or run.resumed != self.run.resumed:
            self._rows = []
        self.run = run
        last = self._rows[-1]["step"] if self._rows else 0
        self._rows = [row for row in self._rows if row["step"] < last] + self._job.metrics(after=last - 1)

    def series(self, split: str, metric: str) -> list[float]:
        values = (row.get(metric) for row in self._rows if row["split"] == split)
        return [value for value in values if value is not None]

    @property
    def metric(self) -> str:
        return (self.run.request.get("metric") if self.run else None) or "loss"

    def summary(self) -> list[str]:
        if self.run is None or not self._rows:
            return []
        params, last = self.run.request.get("params") or {}, self._rows[-1]
        where, planned = ("epoch", params.get("epochs")) if last["epoch"] else ("step", self.run.steps)
        parts = [f"{where} {last[where]}{f' of {planned}' if planned else ''}"]
        loss, metric = self.series(TRAIN, "loss"), self.series(VALIDATION, self.metric)
        parts += [f"loss {loss[-1]:.4g}"] if loss else []
        parts += [f"{VALIDATION} {self.metric} {metric[-1]:.4g}"] if metric else []
        rates = [row["rows_per_s"] for row in self._rows if row["rows_per_s"]]
        return [*parts, f"{rates[-1]:,.0f} rows/s"] if rates else parts

    def sparklines(self, levels: str = LEVELS, width: int = WIDTH) -> list[str]:
        lines = []
        for split, name in ((TRAIN, "loss"), (VALIDATION, self.metric)):
            values = self.series(split, name)
            if len(values) > 1:
                title = f"{split} {name}"
                lines.append(f"{title:<20} {sparkline(values, levels, width)} {values[0]:.4g} → {values[-1]:.4g}")
        return lines


def sparkline(values: Sequence[float], levels: str = LEVELS, width: int = WIDTH) -> str:
    """One character for each value, or for the mean of several where there are more than `width`: low is the smallest."""
    if not values:
        return ""
    count = min(width, len(values))
    bounds = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    if high == low:
        return levels[len(levels) // 2] * count
    return "".join(levels[min(len(levels) - 1, int((mean - low) / (high - low) * len(levels)))] for mean in means)


class TimeLeft:
    """How long the rest will take, by the steps that were seen to be done."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def estimate_s(self, now: float, done: int, total: int) -> float | None:
        """Seconds, None until some steps have passed. Steps that are done again are counted from there."""
        if self._first is None or done < self._first[1]:
            self._first = now, done
        since, at = self._first
        return (total - done) * (now - since) / (done - at) if done > at and now > since else None


def watch_training(job: TrainingHandle, timeout: float | None = None) -> bool:
    """Wait for a training job behind its metrics on stderr; False when it has not ended within `timeout` seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return job.wait(timeout)
    curve, time_left = LearningCurve(job), TimeLeft()
    levels = LEVELS if (console.encoding or "").lower().startswith("utf") else PLAIN_LEVELS
    with Live(console=console, auto_refresh=False) as live:

        def redraw() -> None:
            curve.refresh()
            lines = (Text(line, no_wrap=True) for line in curve.sparklines(levels))
            live.update(Group(_bar(job.info(), curve, time_left), *lines), refresh=True)

        return wait_and_redraw(job.wait, redraw, timeout)


def _bar(info: JobInfo, curve: LearningCurve, time_left: TimeLeft) -> Table:
    done, total = info.progress.done, info.progress.total
    parts = [info.state.value] if info.state.final else curve.summary() or [_before_first_step(info)]
    running = info.state is JobState.RUNNING and curve.run is not None
    left = time_left.estimate_s(time.monotonic(), done, total) if running else None
    parts += [f"{left:,.0f} s left"] if left is not None else []
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(info.model), ProgressBar(total=max(1, total), completed=done, width=WIDTH), f"{done / max(1, total):>4.0%}",
        Text(" · ".join(parts)),
    )  # fmt: skip
    return line


def _before_first_step(info: JobInfo) -> str:
    if info.state is JobState.QUEUED:
        return info.progress.message.splitlines()[0] if info.progress.message else "waiting for a worker"
    return "reading the data"
