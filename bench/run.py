"""The benchmark: every contender on every workload, in turn, in one run; medians, ratios, a table and a chart.

Each result is compared with a direct forward pass. What counts are the ratios to the bare loop and to plain Celery of the
same round; the figures themselves are this machine's, at that minute.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench import workloads
from bench.claims import Claim
from bench.contenders import BareLoop, Contender, Forebay, HandBatch, PlainCelery
from bench.figures import ROUND_TRIPS, Figures


def run(names: Sequence[str], rounds: int, jobs: int | None = None) -> list[Figures]:
    """Measure these workloads, `rounds` times each."""
    console = Console(stderr=True)
    singles = [name for name in names if name not in workloads.DATA_SETS]
    figures = _singles(singles, rounds, jobs, console) if singles else []
    for name in (name for name in names if name in workloads.DATA_SETS):
        from bench.data_sets import measure

        with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
            figures.append(measure(name, Path(folder), rounds, jobs, console))
    return sorted(figures, key=lambda figure: names.index(figure.workload))


def _singles(names: Sequence[str], rounds: int, jobs: int | None, console: Console) -> list[Figures]:
    """The workloads of predict jobs, which share their contenders."""
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        console.print("starting the contenders …")
        celery = PlainCelery(Path(folder))
        contenders: list[Contender] = [BareLoop(), celery, HandBatch(celery)]
        try:
            contenders.append(Forebay(Path(folder), {workloads.model_of(name) for name in names}))
            return [_measure(name, contenders, rounds, jobs, console) for name in names]
        finally:
            for contender in reversed(contenders):
                contender.stop()


def _measure(workload: str, contenders: list[Contender], rounds: int, jobs: int | None, console: Console) -> Figures:
    inputs = workloads.rows(workload, jobs)
    expected = workloads.forward(workloads.model_of(workload), inputs)
    figures = Figures(workload)
    for contender in contenders:
        contender.many(workload, inputs[:64])  # warm: worker up, model loaded, connections open
    for i in range(rounds):
        for contender in contenders:
            take = _round_trips if workload == ROUND_TRIPS else _throughput
            take(contender, workload, inputs, expected, figures)
        console.print(f"{workload} round {i + 1} of {rounds}")
    return figures


def _throughput(contender: Contender, workload: str, inputs: Any, expected: Any, figures: Figures) -> None:
    started = time.perf_counter()
    results = contender.many(workload, inputs)
    figures.rates.setdefault(contender.name, []).append(len(inputs) / (time.perf_counter() - started))
    _check(contender, results, expected)


def _round_trips(contender: Contender, workload: str, inputs: Any, expected: Any, figures: Figures) -> None:
    taken, results = [], []
    for row in inputs:
        started = time.perf_counter()
        results.append(contender.one(workload, row))
        taken.append((time.perf_counter() - started) * 1000)
    taken.sort()
    figures.rates.setdefault(contender.name, []).append(taken[len(taken) // 2])
    figures.tails.setdefault(contender.name, []).append(taken[int(len(taken) * 0.99)])
    _check(contender, np.asarray(results, np.float32), expected)


def _check(contender: Contender, results: Any, expected: Any) -> None:
    if not np.allclose(results, expected, atol=1e-4):  # padding changes a text's last digits
        raise SystemExit(f"{contender.name}: a result differs from the direct forward pass")


def as_json(figures: list[Figures], claims: Sequence[Claim] = ()) -> str:
    """One line with everything measured."""
    raced = {
        f.workload: {
            "median": f.medians(),
            "all": f.rates,
            "p99": {n: statistics.median(t) for n, t in f.tails.items()},
        }
        for f in figures
    }
    return json.dumps(raced | {claim.name: claim.values for claim in claims})


def as_tables(figures: list[Figures]) -> list[Table]:
    """A table for each workload."""
    return [_table(f) for f in figures]


def _table(figures: Figures) -> Table:
    trips = figures.workload == ROUND_TRIPS
    table = Table(title=f"{figures.workload}: {workloads.ABOUT[figures.workload]}", title_justify="left")
    columns = (
        "contender",
        "p50 ms" if trips else "rows/s" if figures.workload in workloads.DATA_SETS else "jobs/s",
        "p99 ms" if trips else "min - max",
        "x Celery",
        "of bare loop",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "contender" else "right")
    for row in cells(figures):
        table.add_row(*row)
    return table


def cells(figures: Figures) -> list[tuple[str, str, str, str, str]]:
    """The table's rows: contender, figure, spread, ratio to Celery by hand, ratio to the bare loop."""
    rows = []
    for name, median in figures.medians().items():
        values = figures.rates[name]
        trips = figures.workload == ROUND_TRIPS
        spread = (
            f"{statistics.median(figures.tails[name]):.1f}" if trips else f"{min(values):,.0f} - {max(values):,.0f}"
        )
        figure = f"{median:.2f}" if trips else f"{median:,.0f}"
        celery, bare = figures.ratio(name, figures.by_hand), figures.ratio(name, "bare loop")
        rows.append((name, figure, spread, f"{celery:.2f}", f"{bare:.3f}"))
    return rows
