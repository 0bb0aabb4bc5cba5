"""Who takes part: a bare torch loop, plain Celery, a hand-written Celery task that takes lists, and Forebay.

Each is a class with `many(workload, rows)`, which gives all results in order, and `one(workload, row)`, one round trip.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench import workloads
from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.stack.stack import start_detached, stop_stack
from forebay.stack.valkey import Valkey

WAIT_S = 300


class Contender(Protocol):
    """Something that runs a workload."""

    name: str

    def many(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """All results, in order."""

    def one(self, workload: str, row: Any) -> Any:
        """One result, submitted and waited for by itself."""

    def stop(self) -> None:
        """End what was started."""


class BareLoop:
    """The limit: the model in this process, no queue, in the batches Forebay would use."""

    name = "bare loop"

    def many(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """The whole input in one pass of batches."""
        model = workloads.model_of(workload)
        if model == "minilm":
            return workloads.forward(model, rows)
        size = workloads.MAX_BATCH_SIZE[model]
        return np.concatenate([workloads.forward(model, rows[i : i + size]) for i in range(0, len(rows), size)])

    def one(self, workload: str, row: Any) -> Any:
        """One forward pass."""
        return workloads.forward(workloads.model_of(workload), [row])[0]

    def stop(self) -> None:
        """Nothing runs."""


class PlainCelery:
    """One Celery worker (prefork, one process) with its own Valkey that holds messages and results."""

    name = "plain Celery"

    def __init__(self, folder: Path) -> None:
        self._redis = Valkey(folder / "plain-celery")
        self._redis.start()
        os.environ["BENCH_REDIS_URL"] = self._redis.url
        from bench import plain_celery

        self._tasks = plain_celery
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "bench.plain_celery",
            "worker",
            "-P",
            "prefork",
            "-c",
            "1",
        ]
        self._worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def many(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """One task for each row; from 4 threads where the workload says so."""
        model, items = workloads.model_of(workload), _plain(rows)
        if workload == "W1s":
            with ThreadPoolExecutor(4) as threads:
                sent = list(threads.map(lambda row: self._tasks.predict.delay(model, row), items))
        else:
            sent = [self._tasks.predict.delay(model, row) for row in items]
        return np.asarray([r.get(timeout=WAIT_S) for r in sent], np.float32)

    def one(self, workload: str, row: Any) -> Any:
        """One task."""
        return self._tasks.predict.delay(workloads.model_of(workload), _plain(row)).get(timeout=WAIT_S)

    def stop(self) -> None:
        """End the worker, then its queue."""
        self._worker.terminate()
        self._worker.wait(30)
        self._redis.stop()


class HandBatch:
    """The same worker with a task that takes a list: faster, with one result and one fate for all 64."""

    name = "Celery, lists of 64 by hand"

    def __init__(self, celery: PlainCelery) -> None:
        self._tasks = celery._tasks

    def many(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """One task for 64 rows."""
        model, items = workloads.model_of(workload), _plain(rows)
        sent = [self._tasks.predict_list.delay(model, items[i : i + 64]) for i in range(0, len(items), 64)]
        return np.asarray([row for r in sent for row in r.get(timeout=WAIT_S)], np.float32)

    def one(self, workload: str, row: Any) -> Any:
        """A list of one."""
        return self._tasks.predict_list.delay(workloads.model_of(workload), [_plain(row)]).get(timeout=WAIT_S)[0]

    def stop(self) -> None:
        """The worker is plain Celery's."""


class Forebay:
    """An embedded stack, or what FOREBAY_BROKER and FOREBAY_DATABASE name; every job is a row in the ledger."""

    name = "forebay"

    def __init__(self, folder: Path, models: set[str]) -> None:
        os.environ["FOREBAY_TORCH_THREADS"] = "1"
        self._home = folder / "home"
        stack = start_detached(self._home, ["--no-dashboard"])
        self._client = Client(Settings.load(home=self._home, broker=stack.broker, database=stack.database))
        artifacts = {
            "mlp": lambda: workloads.export(folder),
            "wide": lambda: workloads.export(folder),
            "minilm": workloads.minilm_folder,
        }
        for model in models:
            size = workloads.MAX_BATCH_SIZE[model]
            self._client.models.register(model, artifacts[model](), max_batch_size=size)

    def many(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """`predict_many`, or a `predict` for each row from 4 threads where the workload says so."""
        model = workloads.model_of(workload)
        if workload == "W1s":
            with ThreadPoolExecutor(4) as threads:
                jobs = list(threads.map(lambda row: self._client.predict(model, row), rows))
        else:
            jobs = self._client.predict_many(model, rows)
        return np.stack([job.result(WAIT_S) for job in jobs])

    def one(self, workload: str, row: Any) -> Any:
        """One job."""
        return self._client.predict(workloads.model_of(workload), row).result(WAIT_S)

    def stop(self) -> None:
        """End the stack."""
        self._client.close()
        stop_stack(self._home)


def _plain(rows: Any) -> Any:
    """Inputs as Celery's JSON wants them."""
    return rows.tolist() if isinstance(rows, np.ndarray) else rows
