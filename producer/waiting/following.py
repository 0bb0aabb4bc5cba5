"""A training job while it is waited for: a bar of its steps, the last figures, and sparklines of loss and metric.

Drawn on a terminal only, silent elsewhere. Reads the ledger about twice a second; asks the trainer nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobInfo, JobState
from forebay.contract.requests.training import TRAIN, VALIDATION
from forebay.storage.training.records import Run

if TYPE_CHECKING:
    from forebay.producer.handles.job import Job

LOOK_S = 0.5
LEVELS, PLAIN_LEVELS = "▁▂▃▄▅▆▇█", "_.,-=+*#"
WIDTH = 40  # of a sparkline and of the bar


class Figures:
    """What a run has measured so far, read again as it grows."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._rows: list[dict[str, Any]] = []
        self.run: Run | None = None

    def look(self) -> None:
        """Read what is new. A run that went on from a checkpoint has forgotten what came behind it."""
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
        """The values of a metric over one split, in the order of the steps; those that are no numbers are left out."""
        values = (row.get(metric) for row in self._rows if row["split"] == split)
        return [value for value in values if value is not None]

    @property
    def metric(self) -> str:
        """What the run is judged by."""
        return (self.run.request.get("metric") if self.run else None) or "loss"

    def words(self) -> list[str]:
        """The last figures: epoch, loss, metric, pace."""
        if self.run is None or not self._rows:
            return []
        epochs = (self.run.request.get("params") or {}).get("epochs")
        found = [f"epoch {self._rows[-1]['epoch']}{f' of {epochs}' if epochs else ''}"]
        loss, judged = self.series(TRAIN, "loss"), self.series(VALIDATION, self.metric)
        found += [f"loss {loss[-1]:.4g}"] if loss else []
        found += [f"{VALIDATION} {self.metric} {judged[-1]:.4g}"] if judged else []
        paces = [row["rows_per_s"] for row in self._rows if row["rows_per_s"]]
        return [*found, f"{paces[-1]:,.0f} rows/s"] if paces else found

    def sparklines(self, levels: str = LEVELS, width: int = WIDTH) -> list[str]:
        """A line each for the loss and for the validation metric, with its first and last value."""
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


class Pace:
    """How long the rest will take, by the steps that were seen to be done."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left_s(self, now: float, done: int, total: int) -> float | None:
        """Seconds, None until some steps have passed. Steps that are done again are counted from there."""
        if self._first is None or done < self._first[1]:
            self._first = now, done
        since, at = self._first
        return (total - done) * (now - since) / (done - at) if done > at and now > since else None


def watch_training(job: Job, timeout: float | None = None) -> bool:
    """Wait for a training job behind its figures on stderr; False when it has not ended within `timeout` seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return job.wait(timeout)
    until = None if timeout is None else time.monotonic() + timeout
    figures, pace = Figures(job), Pace()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            left = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
            ended = job.wait(max(0.0, left))
            figures.look()
            live.update(_drawn(job.info(), figures, pace, console), refresh=True)
            if ended or (until is not None and time.monotonic() >= until):
                return ended


def _drawn(info: JobInfo, figures: Figures, pace: Pace, console: Console) -> Group:
    levels = LEVELS if (console.encoding or "").lower().startswith("utf") else PLAIN_LEVELS
    return Group(_bar(info, figures, pace), *(Text(line, no_wrap=True) for line in figures.sparklines(levels)))


def _bar(info: JobInfo, figures: Figures, pace: Pace) -> Table:
    """A line: the model, its bar, how much is done, and the last figures."""
    done, total = info.progress.done, info.progress.total
    words = [info.state.value] if info.state.final else figures.words() or [_before(info)]
    left = pace.left_s(time.monotonic(), done, total) if info.state is JobState.RUNNING and figures.run else None
    words += [f"{left:,.0f} s left"] if left is not None else []
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(info.model), ProgressBar(total=max(1, total), completed=done, width=WIDTH), f"{done / max(1, total):>4.0%}",
        Text(" · ".join(words)),
    )  # fmt: skip
    return line


def _before(info: JobInfo) -> str:
    if info.state is JobState.QUEUED:
        return info.progress.message.splitlines()[0] if info.progress.message else "waiting for a worker"
    return "reading the data"
