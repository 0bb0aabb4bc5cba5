"""The embedded stack that a benchmark runs on, with further workers beside its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.stack.stack import StackState, start_detached, stop_stack

WAIT_S = 600


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        yield Path(folder)


@contextmanager
def embedded_stack(workers: int = 1, queue: str = "cpu") -> Iterator[tuple[Client, StackState]]:
    """A client of a stack with so many workers, on the CPU of one torch thread each, and its state."""
    os.environ["FOREBAY_ALLOWED_PYTHON_MODELS"] = "bench.networks"
    if queue == "cpu":
        os.environ["FOREBAY_TORCH_THREADS"] = "1"
    with temporary_folder() as folder, ExitStack() as running:
        home = folder / "home"
        stack = start_detached(home, ["--no-dashboard", "--no-api", "--queues", queue])
        running.callback(stop_stack, home)
        settings = Settings.load(home=home, broker=stack.broker, database=stack.database)
        client = running.enter_context(Client(settings))
        for _ in range(workers - 1):
            running.enter_context(another_worker(client, queue))
        yield client, stack


@contextmanager
def another_worker(client: Client, queue: str = "cpu") -> Iterator[None]:
    """One more worker beside those there are, as on a second machine; it serves when this begins."""
    settings, count = client.settings, len(_workers(client)) + 1
    own = {"FOREBAY_HOME": str(settings.home), "FOREBAY_BROKER": settings.broker, "FOREBAY_DATABASE": settings.database}
    with (settings.home / "logs" / f"worker{count}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay", "worker", "--queues", queue], env=os.environ | own, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + WAIT_S
        while len(_workers(client)) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"worker {count} did not come up within {WAIT_S} s")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(90)


def _workers(client: Client) -> set[str]:
    return {name for queue in client.queues() for name in queue.workers}
