"""A progress bar over jobs that are waited for; drawn on a terminal only, silent elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from forebay.contract.errors import ResultTimeout

if TYPE_CHECKING:
    from forebay.producer.job import Job


def watch(jobs: Sequence[Job], timeout: float | None = None, title: str = "jobs") -> bool:
    """Wait for all jobs behind a bar on stderr; False when some have not ended within `timeout` seconds."""
    from forebay.producer.job import as_completed

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
