"""How benchmarks are shown."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.contract.requests.versions.benchmark import Benchmark
from forebay.producer.cli.output import age, print_fields, print_line, print_table


def print_benchmark(found: Benchmark) -> None:
    """The best batch size, and a table for each curve with what was measured."""
    faster = found.faster
    print_fields(
        {
            "model": f"{found.model}/{found.version}",
            "device": found.device,
            "rows": found.rows,
            "best": f"{found.best:,} rows in a batch" + (", and from now on the version's" if found.applied else ""),
            "faster": f"with {faster.name}: {faster.best_point.rows_per_s:,.0f} rows/s" if faster else None,
        }
    )
    for curve in found.curves:
        print_line("")
        mark = {point.rows: "best" if point.rows == curve.best else " " for point in curve.points}
        rows = [
            (f"{p.rows:,}", f"{p.latency_ms:.3g}", f"{p.slowest_ms:.3g}", f"{p.rows_per_s:,.0f}", mark[p.rows])
            for p in curve.points
        ]
        titles = ("ROWS", "MS", "SLOWEST", "ROWS/S", curve.name.upper())
        print_table(titles, rows, right=titles[:-1])
        print_line(f"ended: {curve.ended}")


def print_benchmarks(benchmarks: Sequence[Benchmark]) -> None:
    if benchmarks:
        print_line("")
        rows = [
            (b.id, b.device, f"{b.best:,}", f"{p.latency_ms:.3g}", f"{p.rows_per_s:,.0f}", age(b.at))
            for b in benchmarks
            for p in [b.curves[0].best_point]
        ]
        titles = ("BENCHMARK", "DEVICE", "BEST BATCH", "MS", "ROWS/S", "AGE")
        print_table(titles, rows, right=titles[2:])
