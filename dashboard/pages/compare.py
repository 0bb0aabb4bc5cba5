"""Training runs side by side: their curves in the same charts, and what differs in their parameters and results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import InvalidInput, JobNotFound
from forebay.contract.references import check_job_id
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.run import flat
from forebay.dashboard.reads.curves import of_several
from forebay.dashboard.reads.ledger_view import Answer, ConsumerHealth
from forebay.storage.training.records import Measured, Run

FEWEST, MOST = 2, 6
LETTERS = "ABCDEF"


@dataclass(frozen=True, slots=True)
class Compared:
    """Runs by a letter each, with their curves, and a table: a name and what each run has of it, None where it has nothing."""

    runs: Mapping[str, Run] = field(default_factory=dict)
    curves: Mapping[str, list[Measured]] = field(default_factory=dict)

    def parameters(self) -> list[tuple[str, list[Any]]]:
        """Everything that was asked for, and the data it found."""
        return _table([dict(flat(run.request)) | _data(run) for run in self.runs.values()])

    def metrics(self) -> list[tuple[str, list[Any]]]:
        """Held-out metrics of those that have ended."""
        return _table([dict(run.metrics or {}) for run in self.runs.values()])


class ComparePage(Page):
    """`/training/compare?run=ID&run=ID`."""

    tab = "training"

    async def get(self) -> None:
        """The page, or the part that changes; 400 unless it is asked for 2 to 6 runs, all of which have begun."""
        try:
            ids = _ids(self.get_query_arguments("run"))
            answer = await self.ledger.ask(("compare", *ids), lambda ears: compare(ears, ids))
        except (InvalidInput, JobNotFound) as error:
            self.set_status(400)
            self._show(Answer(Compared()), str(error))
            return
        self._show(answer)

    def _show(self, answer: Answer[Compared], refused: str = "") -> None:
        compared = answer.value
        self.show(
            "compare", answer, compared=compared, refused=refused, now=self.now(),
            charts=of_several(compared.curves) if compared else [],
            parameters=parted(compared.parameters()) if compared else ([], []),
            metrics=compared.metrics() if compared else [],
        )  # fmt: skip


def _ids(given: Sequence[str]) -> list[str]:
    ids = [check_job_id(id) for id in dict.fromkeys(given)]
    if not FEWEST <= len(ids) <= MOST:
        raise InvalidInput(f"{FEWEST} to {MOST} runs can be compared, not {len(ids)}: choose them on the Training page")
    return ids


def compare(ears: ConsumerHealth, ids: Sequence[str]) -> Compared:
    """Read these runs; JobNotFound when one of them has not begun."""
    runs = ears.training.about(ids)
    if missing := [id for id in ids if id not in runs]:
        raise JobNotFound(f"job {missing[0]} is no training job that has begun")
    named = dict(zip(LETTERS, ids, strict=False))
    return Compared(
        {letter: runs[id] for letter, id in named.items()},
        {letter: ears.training.thinned(id) for letter, id in named.items()},
    )


def _data(run: Run) -> dict[str, Any]:
    if run.data is None:
        return {}
    rows = {f"data.rows.{split}": count for split, count in run.data.rows.items()}
    return {"data.sha256": run.data.sha256} | rows


def _table(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [column.get(name) for column in columns]) for name in names]


def parted(table: Sequence[tuple[str, list[Any]]]) -> tuple[list[tuple[str, list[Any]]], list[tuple[str, list[Any]]]]:
    """The rows whose values differ, and those that are the same in all runs."""
    differ = [row for row in table if any(value != row[1][0] for value in row[1])]
    return differ, [row for row in table if row not in differ]
