"""What both parts of the demo do: run many jobs, compare their results with a direct forward pass, and report."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forebay.producer.client import Client
from forebay.producer.waiting.progress import watch

Run = tuple[NDArray[Any], Table]


def run_jobs(client: Client, console: Console, model: str, inputs: Any, title: str) -> Run | None:
    """One job for each input, after one that waits until the worker has loaded the model.

    Returns the results, stacked in the order of the inputs, and a table of throughput and latency; None if a job failed.
    """
    started = time.perf_counter()
    client.predict(model, inputs[0]).result(300)
    console.print(f"first job: {time.perf_counter() - started:.1f} s, most of it loading the model", highlight=False)
    started = time.perf_counter()
    jobs = client.predict_many(model, inputs)
    watch(jobs, timeout=600, title=title)
    seconds = time.perf_counter() - started
    failed = [job for job in jobs if job.exception(60) is not None]
    if failed:
        console.print(f"[red]{len(failed)} jobs failed:[/] {failed[0].exception()}")
        return None
    infos = [job.info() for job in jobs]
    latencies = [1000 * (i.finished_at - i.created_at).total_seconds() for i in infos if i.finished_at is not None]
    median, p99 = np.percentile(latencies, [50, 99])
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("jobs", f"{len(jobs)} succeeded")
    table.add_row("throughput", f"{len(jobs) / seconds:,.0f} jobs/s")
    table.add_row("latency p50", f"{median:.0f} ms")
    table.add_row("latency p99", f"{p99:.0f} ms")
    return np.stack([job.result() for job in jobs]), table


def compare(results: NDArray[Any], direct: NDArray[Any], table: Table) -> bool:
    """Whether the results equal those of a direct pass; adds a row that says so."""
    equal = bool(np.allclose(results, direct, atol=1e-5))
    table.add_row("same as direct", "yes, every one" if equal else "[red]NO[/]")
    return equal
