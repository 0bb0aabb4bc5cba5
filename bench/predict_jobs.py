"""The workloads of predict jobs, W1, W1s, W2 and W4: every contender in turn, each result compared with a direct forward pass.

What counts are the ratios to the bare loop and to plain Celery of the same round; the figures themselves are this machine's, at
that minute.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from bench import workloads
from bench.contenders import BareLoop, CeleryLists, Contender, Forebay, PlainCelery
from bench.processor import processor_s
from bench.results import Results
from bench.stack import temporary_folder


def measure(names: Sequence[str], rounds: int, jobs: int | None, console: Console) -> list[Results]:
    """These workloads, `rounds` times each; they share their contenders."""
    with temporary_folder() as folder:
        console.print("starting the contenders …")
        celery = PlainCelery(folder)
        contenders: list[Contender] = [BareLoop(), celery, CeleryLists(celery)]
        try:
            contenders.append(Forebay(folder, {workloads.model_of(name) for name in names}))
            return [_measure(name, contenders, rounds, jobs, console) for name in names]
        finally:
            for contender in reversed(contenders):
                contender.stop()


def _measure(workload: str, contenders: list[Contender], rounds: int, jobs: int | None, console: Console) -> Results:
    inputs = workloads.rows(workload, jobs)
    expected = workloads.forward(workloads.model_of(workload), inputs)
    results = Results(workload)
    for contender in contenders:
        contender.run_all(workload, inputs[:64])  # warm: worker up, model loaded, connections open
    for i in range(rounds):
        for contender in contenders:
            take = _round_trips if results.round_trips else _throughput
            before = processor_s(contender.pids)
            made = take(contender, inputs, results)
            used = processor_s(contender.pids)
            results.add_processor(contender.name, {role: (used[role] - before[role]) / len(inputs) for role in used})
            if not np.allclose(made, expected, atol=1e-4):  # padding changes a text's last digits
                raise SystemExit(f"{contender.name}: a result differs from the direct forward pass")
        console.print(f"{workload} round {i + 1} of {rounds}")
    return results


def _throughput(contender: Contender, inputs: Any, results: Results) -> Any:
    started = time.perf_counter()
    made = contender.run_all(results.workload, inputs)
    results.add(contender.name, len(inputs) / (time.perf_counter() - started))
    return made


def _round_trips(contender: Contender, inputs: Any, results: Results) -> Any:
    taken, made = [], []
    for row in inputs:
        started = time.perf_counter()
        made.append(contender.run_one(results.workload, row))
        taken.append((time.perf_counter() - started) * 1000)
    taken.sort()
    results.add(contender.name, taken[len(taken) // 2], taken[int(len(taken) * 0.99)])
    return np.asarray(made, np.float32)
