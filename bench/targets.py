"""What Forebay is to hold beside its rate: poisonous jobs cost little, a second worker helps, waiting jobs are small.

Each target is measured on a stack of its own, in turn with what it is compared to.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import redis
from rich.console import Console

from bench import generation, images, workloads
from bench.stack import WAIT_S, embedded_stack, temporary_folder
from forebay.contract.errors import JobFailed
from forebay.contract.job import JobState
from forebay.producer.client import Client

ABOUT = {
    "poison": "2,000 jobs as in W1, one in 100 of them poisonous: their rate to that of clean ones",
    "scale": "W2 by two workers with one thread each: their rate to that of one",
    "memory": "100,000 queued jobs: what Redis holds, and how much the worker grows while it runs them",
    "million": "the same for 1,000,000, and whether the rates of submitting and running stay what they were",
    "payload": "64 images of 150 kB a job, predict_many: bytes/s to those of `cp` and `sha256sum`",
    "images": "4,000 JPEG files through a small network as a batch job: files/s to a DataLoader loop's with 2 workers",
    "generation": "128 prompts through a two-layer Llama, 64 tokens each: tokens/s to those of a hand-written loop",
    "generation-1": "the same, to those of transformers' generate row by row",
}
POISON_EVERY = 100
AT_ONCE = 10_000  # submitted together


@dataclass(frozen=True)
class Target:
    """What was measured, in words and in figures, and what is required of it."""

    name: str
    measured: str
    required: str
    values: dict[str, Any]


def check(name: str, rounds: int, console: Console) -> Target:
    """Measure one target of ABOUT."""
    console.print(f"{name}: {ABOUT[name]}")
    measures: dict[str, Callable[[int], Target]] = {
        "poison": _poison,
        "scale": _scale,
        "memory": partial(_queued, "memory", 100_000, "Redis < 20 MB, worker flat"),
        "million": partial(_queued, "million", 1_000_000, "Redis < 80 MB, rates flat"),
        "payload": partial(_ratios, "payload", images.payload, ">= 0.5"),
        "images": partial(_ratios, "images", images.folder, ">= 0.95"),
        "generation": partial(_ratios, "generation", generation.to_loop, ">= 0.95"),
        "generation-1": partial(_ratios, "generation-1", generation.to_one_by_one, ">= 4"),
    }
    return measures[name](rounds)


def _ratios(name: str, measure: Callable[[int], list[float]], required: str, rounds: int) -> Target:
    ratios = measure(rounds)
    ratio = statistics.median(ratios)
    return Target(name, f"{ratio:.2f}", required, {"ratio": ratio, "all": ratios})


def _poison(rounds: int) -> Target:
    from bench.networks import POISON

    clean = workloads.rows("W1")
    spoiled = clean.copy()
    spoiled[::POISON_EVERY, 0] = POISON
    with embedded_stack() as (client, _):
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
    return Target("poison", f"{ratio:.2f}, and exactly those failed", ">= 0.5", {"ratio": ratio, "all": ratios})


def _scale(rounds: int) -> Target:
    texts = workloads.rows("W2")
    with embedded_stack() as (one, _), embedded_stack(2) as (two, _):
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
    return Target("scale", f"{ratio:.2f} times one worker", ">= 1.8", {"ratio": ratio, "all": ratios})


def _queued(name: str, count: int, required: str, _rounds: int) -> Target:
    row = workloads.rows("W1", 1)[0]
    with temporary_folder() as folder, embedded_stack() as (client, stack):
        client.models.register("mlp", workloads.export(folder), max_batch_size=64)
        _run(client, "mlp", np.stack([row] * 64))
        worker = next(p for p in psutil.Process(stack.pid).children(True) if "forebay.worker" in p.cmdline())
        broker = redis.Redis.from_url(stack.broker)
        before, resident = _used(broker), _resident(worker)
        for process in _family(worker):
            process.suspend()  # so that the jobs wait
        some, submitted = [], [time.perf_counter()]
        for _ in range(count // AT_ONCE):
            some.append(client.predict_many("mlp", np.stack([row] * AT_ONCE))[-1])
            submitted.append(time.perf_counter())
        held = _used(broker) - before
        for process in _family(worker):
            process.resume()
        sizes, done = [resident], [(time.perf_counter(), count)]
        while done[-1][1]:
            time.sleep(count / 200_000)
            sizes.append(_resident(worker))
            left = sum(queue.depth + queue.running for queue in client.queues())
            done.append((time.perf_counter(), left))
        if not all(job.state == JobState.SUCCEEDED for job in some):
            raise SystemExit("a queued job did not succeed")
    grown, tenth = max(sizes) - resident, len(submitted) // 10
    submits = [AT_ONCE * tenth / (submitted[i + tenth] - submitted[i]) for i in (0, len(submitted) - 1 - tenth)]
    middle = (len(done) - 1) // 2
    runs = [_rate(done[: max(2, middle + 1)]), _rate(done[middle:])]
    figure = (
        f"Redis {held / 1e6:.1f} MB; worker {resident / 1e6:.0f} MB, at most {grown / 1e6:+.0f} MB while running them; "
        f"submitted {submits[0]:,.0f}/s at first and {submits[1]:,.0f} in the end, run {runs[0]:,.0f}/s and {runs[1]:,.0f}"
    )
    return Target(name, figure, required, {"redis_bytes": held, "rss": sizes, "submits": submits, "runs": runs})


def _rate(done: list[tuple[float, int]]) -> float:
    """Jobs per second, of moments with how many were left."""
    (first, most), (last, least) = done[0], done[-1]
    return (most - least) / (last - first)


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


def _used(broker: Any) -> int:
    return int(broker.info("memory")["used_memory"])


def _family(worker: psutil.Process) -> list[psutil.Process]:
    return [worker, *worker.children(recursive=True)]


def _resident(worker: psutil.Process) -> int:
    return sum(process.memory_info().rss for process in _family(worker))
