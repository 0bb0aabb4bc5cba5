"""A progress bar over jobs, or over a batch, that are waited for; drawn on a terminal only, silent elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from forebay.contract.errors import ResultTimeout
from forebay.contract.requests.batch import BatchProgress

if TYPE_CHECKING:
    from forebay.producer.handles.job import Job

LOOK_S = 0.5  # between two looks at a batch


def watch(jobs: Sequence[Job], timeout: float | None = None, title: str = "jobs") -> bool:
    """Wait for all jobs behind a bar on stderr; False when some have not ended within `timeout` seconds."""
    from forebay.producer.handles.job import as_completed

    started = time.monotonic()
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(jobs), rate="")
        try:
            for count, _ in enumerate(as_completed(jobs, timeout), start=1):
                rate = count / max(time.monotonic() - started, 1e-6)
                bar.update(task, completed=count, rate=f"{rate:,.0f}/s")
        except ResultTimeout:
            return False
    return True


def watch_batch(job: Job, timeout: float | None = None) -> bool:
    """Wait for a batch behind a bar of its rows, shards, rows/s and errors; False when it has not ended in time."""
    until = None if timeout is None else time.monotonic() + timeout
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    words = TextColumn("{task.fields[words]}")
    with Progress(*columns, words, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("batch", total=1.0, words="waiting for a worker")
        while True:
            left = LOOK_S if until is None else min(LOOK_S, until - time.monotonic())
            ended = job.wait(max(0.0, left))
            if console.is_terminal:
                progress = job.progress
                bar.update(task, completed=progress.share, words=_words(progress))
            if ended or (until is not None and time.monotonic() >= until):
                return ended


def _words(progress: BatchProgress) -> str:
    states = [f"{count} {state}" for state, count in progress.shards.items() if count]
    rate = f"{progress.rows_per_s:,.0f} rows/s" if progress.rows_per_s else ""
    eta = f"{progress.eta_s:,.0f} s left" if progress.eta_s is not None else ""
    rows = f"{progress.completed:,} rows, {progress.failed:,} failed"
    return " · ".join(part for part in (rows, f"shards: {', '.join(states)}" if states else "", rate, eta) if part)
