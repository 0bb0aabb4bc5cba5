"""What Forebay claims of itself beside its rate: poisonous jobs cost little, a second worker helps, waiting jobs are small.

Each claim runs on a stack of its own, in turn with what it is compared to, and gives one line: the figure, and what it must
be. No other contender takes part.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import redis
from rich.console import Console
from rich.table import Table

from bench import workloads
from forebay.contract.errors import JobFailed
from forebay.contract.job import JobState
from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.stack.stack import StackState, start_detached, stop_stack

ABOUT = {
    "poison": "2,000 jobs as in W1, one in 100 of them poisonous: their rate to that of clean ones",
    "scale": "W2 by two workers with one thread each: their rate to that of one",
    "memory": "100,000 queued jobs: what Redis holds, and how much the worker grows while it runs them",
}
WAIT_S = 600
POISON_EVERY = 100
QUEUED = 100_000


@dataclass(frozen=True)
class Claim:
    """One claim, its figures in words, and what was asked of it."""

    name: str
    figure: str
    must: str
    values: dict[str, Any]


def check(name: str, rounds: int, console: Console) -> Claim:
    """Measure one claim of ABOUT."""
    console.print(f"{name}: {ABOUT[name]}")
    return {"poison": _poison, "scale": _scale, "memory": _memory}[name](rounds)


def as_table(claims: list[Claim]) -> Table:
    """A line for each."""
    table = Table(title="Claims", title_justify="left")
    for column in ("claim", "measured", "must"):
        table.add_column(column)
    for claim in claims:
        table.add_row(f"{claim.name}: {ABOUT[claim.name]}", claim.figure, claim.must)
    return table


def _poison(rounds: int) -> Claim:
    from bench.networks import POISON

    clean = workloads.rows("W1")
    spoiled = clean.copy()
    spoiled[::POISON_EVERY, 0] = POISON
    with _stack(1) as (client, _):
        client.models.register(
            "fussy",
            runtime="python",
            options={"class": "bench.networks:Fussy"},
            inputs={"x": {"dtype": "float32", "shape": [64]}},
            max_batch_size=64,
        )
        _run(client, "fussy", clean[:64])
        ratios = []
        for _ in range(rounds):
            good, failed = _run(client, "fussy", clean)
            bad, guilty = _run(client, "fussy", spoiled)
            if failed or guilty != list(range(0, len(spoiled), POISON_EVERY)):
                raise SystemExit(f"the jobs that failed are not the poisonous ones: {failed}, {guilty}")
            ratios.append(bad / good)
    ratio = statistics.median(ratios)
    return Claim("poison", f"{ratio:.2f}, and exactly those failed", ">= 0.5", {"ratio": ratio, "all": ratios})


def _scale(rounds: int) -> Claim:
    texts = workloads.rows("W2")
    with _stack(1) as (one, _), _stack(2) as (two, _):
        for client in (one, two):
            client.models.register("minilm", workloads.minilm_folder(), max_batch_size=32)
            for _ in range(3):  # each worker has loaded it then
                _run(client, "minilm", texts[:200])
        ratios = []
        for _ in range(rounds):
            alone, _failed = _run(one, "minilm", texts)
            both, _failed = _run(two, "minilm", texts)
            ratios.append(both / alone)
    ratio = statistics.median(ratios)
    return Claim("scale", f"{ratio:.2f} times one worker", ">= 1.8", {"ratio": ratio, "all": ratios})


def _memory(_rounds: int) -> Claim:
    row = workloads.rows("W1", 1)[0]
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder, _stack(1) as (client, stack):
        client.models.register("mlp", workloads.export(Path(folder)), max_batch_size=64)
        _run(client, "mlp", np.stack([row] * 64))
        worker = next(p for p in psutil.Process(stack.pid).children(True) if "forebay.worker" in p.cmdline())
        broker = redis.Redis.from_url(stack.broker)
        before, resident = _used(broker), _resident(worker)
        for process in _family(worker):
            process.suspend()  # so that the jobs wait
        jobs = [job for _ in range(QUEUED // 10_000) for job in client.predict_many("mlp", np.stack([row] * 10_000))]
        held = _used(broker) - before
        for process in _family(worker):
            process.resume()
        sizes = [resident]
        while any(queue.depth or queue.running for queue in client.queues()):
            sizes.append(_resident(worker))
            time.sleep(0.5)
        if not all(job.state == JobState.SUCCEEDED for job in jobs[:: QUEUED // 100]):
            raise SystemExit("a queued job did not succeed")
    grown = max(sizes) - resident
    figure = (
        f"Redis {held / 1e6:.1f} MB; worker {resident / 1e6:.0f} MB, at most {grown / 1e6:+.0f} MB while running them"
    )
    return Claim("memory", figure, "Redis < 20 MB, worker flat", {"redis_bytes": held, "rss": sizes})


def _run(client: Client, model: str, rows: Any) -> tuple[float, list[int]]:
    """Jobs per second, and which of them failed."""
    started = time.perf_counter()
    jobs = client.predict_many(model, rows)
    failed = []
    for i, job in enumerate(jobs):
        try:
            job.result(WAIT_S)
        except JobFailed:
            failed.append(i)
    return len(rows) / (time.perf_counter() - started), failed


@contextmanager
def _stack(workers: int) -> Iterator[tuple[Client, StackState]]:
    """An embedded stack; further workers beside its own are processes of `forebay worker`, as on a second machine."""
    os.environ.update(FOREBAY_TORCH_THREADS="1", FOREBAY_ALLOWED_PYTHON_MODELS="bench.networks")
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        home = Path(folder) / "home"
        stack = start_detached(home, ["--no-dashboard"])
        more = [_further(home, stack, n) for n in range(2, workers + 1)]
        try:
            with Client(Settings.load(home=home, broker=stack.broker, database=stack.database)) as client:
                _await_workers(client, workers)
                yield client, stack
        finally:
            for process in more:
                process.terminate()
            for process in more:
                process.wait(60)
            stop_stack(home)


def _further(home: Path, stack: StackState, number: int) -> subprocess.Popen[bytes]:
    own = {"FOREBAY_HOME": str(home), "FOREBAY_BROKER": stack.broker, "FOREBAY_DATABASE": stack.database}
    with (home / "logs" / f"worker{number}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "forebay", "worker"], env=os.environ | own, stdout=log, stderr=log
        )


def _await_workers(client: Client, count: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while len({name for queue in client.queues() for name in queue.workers}) < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"{count} workers did not come up within {WAIT_S} s")
        time.sleep(0.2)


def _used(broker: Any) -> int:
    return int(broker.info("memory")["used_memory"])


def _family(worker: psutil.Process) -> list[psutil.Process]:
    return [worker, *worker.children(recursive=True)]


def _resident(worker: psutil.Process) -> int:
    return sum(process.memory_info().rss for process in _family(worker))
