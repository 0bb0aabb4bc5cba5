"""What both parts of the demo do: run many jobs, compare their results with a direct forward pass, and report."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from forebay.producer.client import Client
from forebay.producer.handles.job import Job
from forebay.producer.waiting.progress import watch


@dataclass(frozen=True, slots=True)
class Run:
    """Jobs that all succeeded, their results stacked in the order of the inputs, and how long they took."""

    jobs: Sequence[Job]
    results: NDArray[Any]
    seconds: float

    def matches(self, console: Console, direct: NDArray[Any], more: Mapping[str, str] | None = None) -> bool:
        """Whether the results equal those of a direct pass. Prints a table with that, the throughput and the latency."""
        equal = bool(np.allclose(self.results, direct, atol=1e-5))
        infos = [job.info() for job in self.jobs]
        latencies = [
            1000 * (info.finished_at - info.created_at).total_seconds()
            for info in infos
            if info.finished_at is not None
        ]  # from submit to finish, as the ledger has it
        median, p99 = np.percentile(latencies, [50, 99])
        rows = {
            "jobs": f"{len(infos)} succeeded",
            "throughput": f"{len(self.jobs) / self.seconds:,.0f} jobs/s",
            "latency p50": f"{median:.0f} ms",
            "latency p99": f"{p99:.0f} ms",
            **(more or {}),
            "same as direct": "yes, every one" if equal else "[red]NO[/]",
        }
        table = Table(show_header=False, box=None, pad_edge=False)
        for name, value in rows.items():
            table.add_row(name, value)
        console.print(table)
        return equal


def run_jobs(client: Client, console: Console, model: str, inputs: Any, title: str) -> Run | None:
    """One job for each input, after one that waits until the worker has loaded the model. None if a job failed."""
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
    return Run(jobs, np.stack([job.result() for job in jobs]), seconds)
