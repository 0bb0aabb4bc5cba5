"""Who takes part: a bare torch loop, plain Celery, a hand-written Celery task that takes lists, and Forebay.

Each is a class with `run_all(workload, rows)`, which gives all results in order, and `run_one(workload, row)`, one round trip.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench import workloads
from bench.stack import embedded_stack
from forebay.stack.valkey import Valkey

WAIT_S = 300


class Contender(Protocol):
    """Something that runs a workload."""

    name: str
    pids: list[int]  # of the processes that it has started; theirs are found below

    def run_all(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """All results, in order."""

    def run_one(self, workload: str, row: Any) -> Any:
        """One result, submitted and waited for by itself."""

    def stop(self) -> None:
        """End what was started."""


class BareLoop:
    """The limit: the model in this process, no queue, in the batches Forebay would use."""

    name = "bare loop"
    pids: list[int] = []  # noqa: RUF012 - none

    def run_all(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """The whole input in one pass of batches."""
        model = workloads.model_of(workload)
        if model == "minilm":
            return workloads.forward(model, rows)
        size = workloads.MAX_BATCH_SIZE[model]
        return np.concatenate([workloads.forward(model, rows[i : i + size]) for i in range(0, len(rows), size)])

    def run_one(self, workload: str, row: Any) -> Any:
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

        self.tasks = importlib.reload(plain_celery)  # its app belongs to the queue of that moment
        options = ("-A", "bench.plain_celery", "worker", "-P", "prefork", "-c", "1")
        command = [sys.executable, "-m", "celery", *options]
        self._worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pids = [self._worker.pid, self._redis.pid or 0]

    def run_all(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """One task for each row; from 4 threads where the workload says so."""
        model, items = workloads.model_of(workload), _plain(rows)
        if workload == "W1s":
            with ThreadPoolExecutor(4) as threads:
                sent = list(threads.map(lambda row: self.tasks.predict.delay(model, row), items))
        else:
            sent = [self.tasks.predict.delay(model, row) for row in items]
        return np.asarray([r.get(timeout=WAIT_S) for r in sent], np.float32)

    def run_one(self, workload: str, row: Any) -> Any:
        """One task."""
        return self.tasks.predict.delay(workloads.model_of(workload), _plain(row)).get(timeout=WAIT_S)

    def stop(self) -> None:
        """End the worker, then its queue."""
        self._worker.terminate()
        self._worker.wait(30)
        self._redis.stop()


class CeleryLists:
    """The same worker with a task that takes a list: faster, with one result and one fate for all 64."""

    name = "Celery, lists of 64 by hand"

    def __init__(self, celery: PlainCelery) -> None:
        self.tasks, self.pids = celery.tasks, celery.pids

    def run_all(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """One task for 64 rows."""
        model, items = workloads.model_of(workload), _plain(rows)
        sent = [self.tasks.predict_list.delay(model, items[i : i + 64]) for i in range(0, len(items), 64)]
        return np.asarray([row for r in sent for row in r.get(timeout=WAIT_S)], np.float32)

    def run_one(self, workload: str, row: Any) -> Any:
        """A list of one."""
        return self.tasks.predict_list.delay(workloads.model_of(workload), [_plain(row)]).get(timeout=WAIT_S)[0]

    def stop(self) -> None:
        """The worker is plain Celery's."""


class Forebay:
    """An embedded stack, or what FOREBAY_BROKER and FOREBAY_DATABASE name; every job is a row in the ledger."""

    name = "forebay"

    def __init__(self, folder: Path, models: set[str]) -> None:
        self._stack = ExitStack()
        self.client, state = self._stack.enter_context(embedded_stack())
        self.pids = [state.pid]
        artifacts = {
            "mlp": lambda: workloads.export(folder),
            "wide": lambda: workloads.export(folder),
            "minilm": workloads.minilm_folder,
        }
        for model in models:
            size = workloads.MAX_BATCH_SIZE[model]
            self.client.models.register(model, artifacts[model](), max_batch_size=size)

    def run_all(self, workload: str, rows: Any) -> NDArray[np.float32]:
        """`predict_many`, or a `predict` for each row from 4 threads where the workload says so."""
        model = workloads.model_of(workload)
        if workload == "W1s":
            with ThreadPoolExecutor(4) as threads:
                jobs = list(threads.map(lambda row: self.client.predict(model, row), rows))
        else:
            jobs = self.client.predict_many(model, rows)
        return np.stack([job.result(WAIT_S) for job in jobs])

    def run_one(self, workload: str, row: Any) -> Any:
        """One job."""
        return self.client.predict(workloads.model_of(workload), row).result(WAIT_S)

    def stop(self) -> None:
        """End the stack."""
        self._stack.close()


def _plain(rows: Any) -> Any:
    """Inputs as Celery's JSON wants them."""
    return rows.tolist() if isinstance(rows, np.ndarray) else rows
