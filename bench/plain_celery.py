"""What a user writes by hand, to be measured: Celery tasks for one prediction, for a list of 64, for a row group.

Results go to Redis. The list task has one result and one fate for all its rows. Nothing is durable.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery

from bench import workloads

url = os.environ.get("BENCH_REDIS_URL", "")
app = Celery("plain_celery", broker=url, backend=url)


@app.task
def predict(model: str, row: Any) -> list[float]:
    """One prediction."""
    values: list[float] = workloads.forward(model, [row])[0].tolist()
    return values


@app.task
def predict_list(model: str, rows: list[Any]) -> list[list[float]]:
    """A batch that the user has put together by hand."""
    values: list[list[float]] = workloads.forward(model, rows).tolist()
    return values


@app.task
def predict_shard(workload: str, path: str, group: int, out: str) -> None:
    """A row group of a Parquet file to a file of its own."""
    from bench.parquet import run_row_group

    run_row_group(workload, Path(path), group, Path(out))
