"""The benchmark's table and chart as files for the docs."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path

from bench import workloads
from bench.claims import ABOUT, Claim
from bench.figures import ROUND_TRIPS, Figures
from bench.run import cells


def write(figures: list[Figures], claims: list[Claim], folder: Path, rounds: int) -> list[Path]:
    """`benchmark.md` and, where there were contenders, `benchmark.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "benchmark.md"
    text.write_text(_markdown(figures, claims, rounds), encoding="utf-8")
    return [text, _draw(figures, folder / "benchmark.png")] if figures else [text]


def _draw(figures: list[Figures], picture: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")  # no screen
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(1, len(figures), figsize=(4.2 * len(figures), 3.4), squeeze=False)
    for axis, figure in zip(axes[0], figures, strict=True):
        names = [name for name in figure.rates if name != "bare loop"]  # it would dwarf the rest
        ratios = [figure.ratio(name, figure.by_hand) for name in names]
        bars = axis.barh(names, ratios, color=["#1f6f8b" if name == "forebay" else "#b8c4cc" for name in names])
        axis.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3)
        axis.set(title=figure.workload, xlabel=f"times {figure.by_hand}", xlim=(0, max(ratios) * 1.2))
        axis.spines[["top", "right"]].set_visible(False)
    chart.tight_layout()
    chart.savefig(picture, dpi=120)
    pyplot.close(chart)
    return picture


def _markdown(figures: list[Figures], claims: list[Claim], rounds: int) -> str:
    names = ",".join([*(f.workload for f in figures), *(c.name for c in claims)])
    lines = [
        "# Benchmark",
        "",
        f"`python -m bench --workloads {names} --rounds {rounds} --docs docs`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{platform.machine()}, one torch thread per worker. The contenders take turns in one run; each figure is a median, "
        "each ratio the median of "
        "the ratios of the rounds. Every result was compared with a direct forward pass. Forebay's jobs are durable rows in "
        "its ledger; the others keep theirs in Redis. The figures are those of one machine in those minutes: look at the "
        "ratios.",
        *(["", "![times plain Celery, by workload](benchmark.png)"] if figures else []),
    ]
    for figure in figures:
        lines += ["", f"## {figure.workload}: {workloads.ABOUT[figure.workload]}", "", *_rows(figure)]
    if claims:
        lines += ["", "## Claims", "", "| claim | measured | must |", "| --- | --- | --- |"]
        lines += [f"| {c.name}: {ABOUT[c.name]} | {c.figure} | {c.must} |" for c in claims]
    return "\n".join(lines) + "\n"


def _rows(figure: Figures) -> list[str]:
    trips = figure.workload == ROUND_TRIPS
    unit = "rows/s" if figure.workload in workloads.DATA_SETS else "jobs/s"
    what = "p50 ms | p99 ms" if trips else f"{unit} | min - max"
    rows = [f"| contender | {what} | times {figure.by_hand} | of the bare loop |", "| --- | --- | --- | --- | --- |"]
    for name, figure_text, spread, celery, bare in cells(figure):
        rows.append(f"| {name} | {figure_text} | {spread} | {celery} | {bare} |")
    return rows
