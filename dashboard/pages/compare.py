"""Training runs side by side: their curves in the same charts, and the parameters and results that differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import InvalidInput, JobNotFound
from forebay.contract.references import check_job_id
from forebay.dashboard.pages.base import CHARTS, Page
from forebay.dashboard.pages.run import flatten
from forebay.dashboard.reads.curves import comparison_charts
from forebay.dashboard.reads.ledger import LedgerQueries, Snapshot
from forebay.storage.training.records import Measured, Run

MIN_RUNS, MAX_RUNS = 2, 6
LETTERS = "ABCDEF"

Table = list[tuple[str, list[Any]]]  # a name, and the value of each run, None where it has none


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs, each by a letter, with their curves."""

    runs: Mapping[str, Run] = field(default_factory=dict)
    curves: Mapping[str, list[Measured]] = field(default_factory=dict)

    def parameters(self) -> Table:
        """What was requested, and the data."""
        return _table([dict(flatten(run.request)) | _data(run) for run in self.runs.values()])

    def metrics(self) -> Table:
        """Held-out metrics of those that have ended."""
        return _table([dict(run.metrics or {}) for run in self.runs.values()])


class ComparePage(Page):
    """`/training/compare?run=ID&run=ID`; 400 unless it names 2 to 6 runs, all of which have started."""

    tab, template, heading = "training", "compare", "Compare runs"
    about = "Curves of the same metric and split share a chart. What is identical in all runs is folded away."
    scripts = CHARTS

    async def get(self) -> None:
        try:
            ids = _ids(self.get_query_arguments("run"))
            snapshot = await self.ledger.read(("compare", *ids), lambda queries: read_runs(queries, ids))
        except (InvalidInput, JobNotFound) as error:
            self.set_status(400)
            self._show(Snapshot(Comparison()), str(error))
            return
        self._show(snapshot)

    def _show(self, snapshot: Snapshot[Comparison], refused: str = "") -> None:
        data = snapshot.value
        differing, same = split_by_difference(data.parameters()) if data else ([], [])
        self.show(
            snapshot, data=data, refused=refused, now=self.now(), charts=comparison_charts(data.curves) if data else [],
            differing=differing, same=same, metrics=data.metrics() if data else [],
        )  # fmt: skip


def _ids(given: Sequence[str]) -> list[str]:
    ids = [check_job_id(id) for id in dict.fromkeys(given)]
    if not MIN_RUNS <= len(ids) <= MAX_RUNS:
        raise InvalidInput(
            f"{MIN_RUNS} to {MAX_RUNS} runs can be compared, not {len(ids)}: select them on the Training page"
        )
    return ids


def read_runs(queries: LedgerQueries, ids: Sequence[str]) -> Comparison:
    """These runs; JobNotFound when one of them has not started."""
    runs = queries.training.runs_by_id(ids)
    if missing := [id for id in ids if id not in runs]:
        raise JobNotFound(f"job {missing[0]} is not a training job that has started")
    by_letter = dict(zip(LETTERS, ids, strict=False))
    return Comparison(
        {letter: runs[id] for letter, id in by_letter.items()},
        {letter: queries.training.sampled_curve(id) for letter, id in by_letter.items()},
    )


def _data(run: Run) -> dict[str, Any]:
    if run.data is None:
        return {}
    rows = {f"data.rows.{split}": count for split, count in run.data.rows.items()}
    return {"data.sha256": run.data.sha256} | rows


def _table(columns: Sequence[Mapping[str, Any]]) -> Table:
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]


def split_by_difference(table: Table) -> tuple[Table, Table]:
    """The rows whose values differ, and those that are the same in all runs."""
    differing = [row for row in table if any(value != row[1][0] for value in row[1])]
    return differing, [row for row in table if row not in differing]
