"""Progress bars for jobs that are waited for; drawn on a terminal only, silent elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from forebay.contract.errors import ResultTimeout
from forebay.contract.job import JobInfo
from forebay.contract.requests.batch import BatchProgress
from forebay.producer.waiting.futures import HasFuture, as_completed

REFRESH_S = 0.5


class StepsHandle(Protocol):
    def info(self) -> JobInfo: ...
    def wait(self, timeout: float | None = None) -> bool: ...


class BatchHandle(Protocol):
    @property
    def progress(self) -> BatchProgress: ...
    def wait(self, timeout: float | None = None) -> bool: ...


def watch(jobs: Sequence[HasFuture], timeout: float | None = None, title: str = "jobs") -> bool:
    """Wait for all jobs behind a bar on stderr; False when some have not ended within `timeout` seconds."""
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


def watch_batch(job: BatchHandle, timeout: float | None = None) -> bool:
    """Wait for a batch behind a bar of its rows, shards, rows/s and errors; False when it has not ended in time."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return job.wait(timeout)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TextColumn("{task.fields[summary]}"), console=console) as bar:
        task = bar.add_task("batch", total=1.0, summary="waiting for a worker")

        def redraw() -> None:
            progress = job.progress
            bar.update(task, completed=progress.share, summary=summary(progress))

        return wait_and_redraw(job.wait, redraw, timeout)


def watch_steps(job: StepsHandle, timeout: float | None, unit: str) -> bool:
    """Wait for a job behind a bar of what its row tells: how many steps are done, and a message."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return job.wait(timeout)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(unit, total=None, message="waiting for a worker")

        def redraw() -> None:
            progress = job.info().progress
            bar.update(task, completed=progress.done, total=progress.total, message=progress.message)

        return wait_and_redraw(job.wait, redraw, timeout)


def wait_and_redraw(wait: Callable[[float], bool], redraw: Callable[[], None], timeout: float | None) -> bool:
    """Redraw twice a second until `wait` says that the job has ended; False when it has not within `timeout` seconds."""
    until = None if timeout is None else time.monotonic() + timeout
    while True:
        left = REFRESH_S if until is None else min(REFRESH_S, until - time.monotonic())
        ended = wait(max(0.0, left))
        redraw()
        if ended or (until is not None and time.monotonic() >= until):
            return ended


def summary(progress: BatchProgress) -> str:
    states = [f"{count} {state}" for state, count in progress.shards.items() if count]
    rate = f"{progress.rows_per_s:,.0f} rows/s" if progress.rows_per_s else ""
    eta = "" if progress.planned else "planning"
    if progress.eta_s is not None:
        eta = f"{progress.eta_s:,.0f} s left" + ("" if progress.planned else " (planning)")
    rows = f"{progress.completed:,} rows, {progress.failed:,} failed"
    return " · ".join(part for part in (rows, f"shards: {', '.join(states)}" if states else "", rate, eta) if part)
