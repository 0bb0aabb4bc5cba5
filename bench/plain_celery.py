"""What a user writes by hand: one Celery task per prediction, results in Redis. The alternative that is measured."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from celery import Celery

sys.path.insert(0, str(Path(__file__).parent))
import workloads

url = os.environ.get("BENCH_REDIS_URL", "")
app = Celery("plain_celery", broker=url, backend=url)


@app.task
def predict(row: list[float]) -> list[float]:
    return workloads.forward([row])[0].tolist()
