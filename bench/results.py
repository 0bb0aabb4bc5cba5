"""What was measured for a workload, the ratios that count, and how they are shown: table, JSON, page and chart."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from bench import targets, workloads
from bench.processor import Seconds
from bench.targets import Target

BARE_LOOP, FOREBAY = "bare loop", "forebay"
KEPT = 0.95  # of a figure: less is a loss
BASELINES = ("plain Celery", "Celery, shards by hand")


@dataclass
class Results:
    """Of one workload: jobs or rows per second by contender and round; of round trips the milliseconds, p50 and p99."""

    workload: str
    rates: dict[str, list[float]] = field(default_factory=dict)
    p99: dict[str, list[float]] = field(default_factory=dict)
    processor: dict[str, list[Seconds]] = field(default_factory=dict)  # by contender and round: seconds a job, by role

    @property
    def round_trips(self) -> bool:
        """Whether these are milliseconds, of which fewer are better."""
        return self.workload == workloads.ROUND_TRIPS

    @property
    def unit(self) -> str:
        """What was counted."""
        if self.round_trips:
            return "p50 ms"
        return "rows/s" if self.workload in workloads.BATCH_JOBS else "jobs/s"

    @property
    def baseline(self) -> str:
        """What a user would write instead, with Celery."""
        return next(name for name in BASELINES if name in self.rates)

    def add(self, contender: str, rate: float, p99: float | None = None) -> None:
        """Note a round."""
        self.rates.setdefault(contender, []).append(rate)
        if p99 is not None:
            self.p99.setdefault(contender, []).append(p99)

    def add_processor(self, contender: str, seconds: Seconds) -> None:
        """Note how much processor time a job took in a round, by role."""
        self.processor.setdefault(contender, []).append(seconds)

    def processor_us(self, contender: str) -> dict[str, float]:
        """Microseconds a job, by role: of each the median of the rounds. Empty where it was not measured."""
        rounds = self.processor.get(contender, [])
        return {role: 1e6 * statistics.median(each[role] for each in rounds) for role in (rounds[0] if rounds else ())}

    def medians(self) -> dict[str, float]:
        """The median of the rounds, by contender."""
        return {name: statistics.median(values) for name, values in self.rates.items()}

    def ratio(self, name: str, to: str) -> float:
        """How many times as fast `name` is as `to`: the median of the ratios of the rounds."""
        pairs = zip(self.rates[name], self.rates[to], strict=True)
        return statistics.median(b / a if self.round_trips else a / b for a, b in pairs)

    def cells(self) -> Iterator[tuple[str, ...]]:
        """A table's rows: contender, figure, spread, ratio to the baseline, ratio to the bare loop, processor time."""
        for name, median in self.medians().items():
            if self.round_trips:
                figure, spread = f"{median:.2f}", f"{statistics.median(self.p99[name]):.1f}"
            else:
                figure, spread = f"{median:,.0f}", f"{min(self.rates[name]):,.0f} - {max(self.rates[name]):,.0f}"
            ratios = self.ratio(name, self.baseline), self.ratio(name, BARE_LOOP)
            used = self.processor_us(name)
            by_role = " + ".join(f"{role} {us:,.0f}" for role, us in used.items() if round(us))
            yield name, figure, spread, f"{ratios[0]:.2f}", f"{ratios[1]:.3f}", f"{sum(used.values()):,.0f}: {by_role}"

    def header(self, baseline: str, bare_loop: str) -> tuple[str, ...]:
        """What stands above `cells`."""
        spread = "p99 ms" if self.round_trips else "min - max"
        return "contender", self.unit, spread, baseline, bare_loop, "processor µs a job"


def as_json(results: Sequence[Results], checked: Sequence[Target] = ()) -> str:
    """One line with everything measured."""
    raced = {
        r.workload: {
            "median": r.medians(),
            "all": r.rates,
            "p99": {name: statistics.median(values) for name, values in r.p99.items()},
            "processor_us": {name: r.processor_us(name) for name in r.processor},
        }
        for r in results
    }
    return json.dumps(raced | {target.name: target.values for target in checked})


def compared(results: Sequence[Results], checked: Sequence[Target], folder: Path) -> Iterator[str]:
    """What has become of Forebay's figures since each was last stored in `folder`, a line for each; a loss is called one."""
    stored = [(path.name, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))[::-1]]

    def last(figure: str) -> tuple[str, dict[str, Any]]:
        return next(((name, run[figure]) for name, run in stored if figure in run), ("", {}))

    for r in results:
        name, old = last(r.workload)
        if not {FOREBAY, r.baseline} <= old.get("all", {}).keys():
            continue
        yield _change(
            f"{r.workload}, times {r.baseline}", r.ratio(FOREBAY, r.baseline), _stored_ratio(r, old["all"]), name
        )
        used, then = sum(r.processor_us(FOREBAY).values()), sum(old.get("processor_us", {}).get(FOREBAY, {}).values())
        if used and then:
            yield _change(f"{r.workload}, processor µs a job", used, then, name, less_is_better=True)
    for target in checked:
        name, old = last(target.name)
        if "ratio" in old:
            yield _change(target.name, target.values["ratio"], old["ratio"], name)


def _stored_ratio(r: Results, rates: dict[str, list[float]]) -> float:
    return Results(r.workload, rates).ratio(FOREBAY, r.baseline)


def _change(what: str, now: float, then: float, where: str, less_is_better: bool = False) -> str:
    lost = then / now < KEPT if less_is_better else now / then < KEPT
    return f"{what}: {now:,.2f}, {then:,.2f} in {where}{': a loss' if lost else ''}"


def as_tables(results: Sequence[Results], checked: Sequence[Target]) -> Iterator[Table]:
    """A table for each workload, and one for all targets."""
    for r in results:
        title = f"{r.workload}: {workloads.ABOUT[r.workload]}"
        yield _table(title, r.header("x Celery", "of bare loop"), r.cells(), "right")
    if checked:
        lines = [(f"{t.name}: {targets.ABOUT[t.name]}", t.measured, t.required) for t in checked]
        yield _table("Targets", ("target", "measured", "required"), lines, "left")


def _table(
    title: str, header: Sequence[str], lines: Iterator[tuple[str, ...]] | list[tuple[str, str, str]], justify: str
) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(header):
        table.add_column(column, justify="right" if i and justify == "right" else "left")
    for line in lines:
        table.add_row(*line)
    return table


def write(results: Sequence[Results], checked: Sequence[Target], folder: Path, rounds: int) -> list[Path]:
    """`benchmark.md` and, where there were contenders, `benchmark.png` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "benchmark.md"
    page.write_text("\n".join(_page(results, checked, rounds)) + "\n", encoding="utf-8")
    return [page, _draw(results, folder / "benchmark.png")] if results else [page]


def _page(results: Sequence[Results], checked: Sequence[Target], rounds: int) -> Iterator[str]:
    names = ",".join([*(r.workload for r in results), *(t.name for t in checked)])
    yield "# Benchmark\n"
    yield (
        f"`python -m bench --workloads {names} --rounds {rounds} --docs docs/explain`, {datetime.now(UTC):%Y-%m-%d}, "
        f"{platform.machine()}, one torch thread per worker. The contenders take turns in one run; each figure is a median, "
        "each ratio the median of the ratios of the rounds. Every result was compared with a direct forward pass. Forebay's "
        "jobs are durable rows in its ledger; the others keep theirs in Redis. The figures are those of one machine in those "
        "minutes: look at the ratios."
    )
    if results:
        yield "\n![times plain Celery, by workload](benchmark.png)"
    for r in results:
        yield f"\n## {r.workload}: {workloads.ABOUT[r.workload]}\n"
        yield from _rows([r.header(f"times {r.baseline}", "of the bare loop"), *r.cells()])
    if checked:
        yield "\n## Targets\n"
        lines = [(f"{t.name}: {targets.ABOUT[t.name]}", t.measured, t.required) for t in checked]
        yield from _rows([("target", "measured", "required"), *lines])


def _rows(lines: Sequence[tuple[str, ...]]) -> Iterator[str]:
    head, *body = lines
    for line in (head, ("---",) * len(head), *body):
        yield f"| {' | '.join(line)} |"


def _draw(results: Sequence[Results], picture: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")  # no screen
    from matplotlib import pyplot

    chart, axes = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 3.4), squeeze=False)
    for axis, r in zip(axes[0], results, strict=True):
        names = [name for name in r.rates if name != BARE_LOOP]  # it would dwarf the rest
        ratios = [r.ratio(name, r.baseline) for name in names]
        bars = axis.barh(names, ratios, color=["#1f6f8b" if name == "forebay" else "#b8c4cc" for name in names])
        axis.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3)
        axis.set(title=r.workload, xlabel=f"times {r.baseline}", xlim=(0, max(ratios) * 1.2))
        axis.spines[["top", "right"]].set_visible(False)
    chart.tight_layout()
    chart.savefig(picture, dpi=120)
    pyplot.close(chart)
    return picture
