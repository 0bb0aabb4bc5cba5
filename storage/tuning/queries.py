"""TuneQueries: tunes, their trials, and what trials have measured. Changes nothing."""

from __future__ import annotations

import json
from typing import Any

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobError, JobState, utc
from forebay.contract.requests.training import VALIDATION
from forebay.contract.requests.tuning import best_first
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from forebay.storage.tuning.records import PRUNED, Trial, TrialPlace, Tune

TUNE = Statement("""
SELECT id, model, queue, priority, max_attempts, state, attempt, deadline_at FROM jobs WHERE id = :id AND kind = 'tune'""")
REQUEST = Statement("SELECT input, input_ref FROM jobs WHERE id = :id AND kind = 'tune'")
TRIALS = Statement("""
SELECT t.id, t.number, t.params, t.value, t.pruned, j.state, j.progress_done, r.steps, j.error_type, j.error_message,
    j.started_at, j.finished_at
FROM trials t JOIN jobs j ON j.id = t.id LEFT JOIN training_runs r ON r.id = t.id WHERE t.tune_id = :id ORDER BY t.number""")
PLACE = Statement("""
SELECT t.tune_id, t.number, t.pruned, j.state FROM trials t JOIN jobs j ON j.id = t.tune_id WHERE t.id = :id""")
# What each trial had measured when it had done this share of its steps.
MEASURED_AT = Statement(f"""
SELECT t.number, m.measured FROM trials t JOIN training_runs r ON r.id = t.id
JOIN job_metrics m ON m.job_id = t.id AND m.split = '{VALIDATION}' AND m.step = (
    SELECT min(step) FROM job_metrics WHERE job_id = t.id AND split = '{VALIDATION}' AND step >= r.steps * :share)
WHERE t.tune_id = :tune""")
MEASURED = Statement(f"SELECT step, measured FROM job_metrics WHERE job_id = :id AND split = '{VALIDATION}'")


class TuneQueries:
    """Reads tunes from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, id: str) -> Tune:
        """A tune; JobNotFound otherwise."""
        row = self._found(TUNE, id)
        return Tune(
            row.id, row.model, row.queue, row.priority, row.max_attempts, JobState(row.state), row.attempt, row.deadline_at
        )  # fmt: skip

    def request(self, id: str) -> tuple[bytes | None, str | None]:
        """What was asked for, as a payload: in the row or by reference."""
        row = self._found(REQUEST, id)
        return row.input, row.input_ref

    def _found(self, statement: Statement, id: str) -> Any:
        row = self._ledger.row(statement, id=id)
        if row is None:
            raise JobNotFound(f"no tune has the id {id!r}; it never existed, or retention has deleted it")
        return row

    def trials(self, id: str) -> list[Trial]:
        """A tune's trials in the order in which they were made."""
        return [_trial(row) for row in self._ledger.rows(TRIALS, id=id)]

    def place(self, job: str) -> TrialPlace | None:
        """Which trial of which tune a training job is; None when it is one by itself."""
        row = self._ledger.row(PLACE, id=job)
        return None if row is None else TrialPlace(row.tune_id, row.number, JobState(row.state), row.pruned is not None)

    def values_at(self, tune: str, share: float, metric: str) -> dict[int, float]:
        """What the trials had measured when they had done this share of their steps, by number; of those that got there."""
        found = {row.number: _value(row, metric) for row in self._ledger.rows(MEASURED_AT, tune=tune, share=share)}
        return {number: value for number, value in found.items() if value is not None}

    def best_value(self, job: str, metric: str, step: int | None = None) -> float | None:
        """The best that a trial has measured on its validation split, or what it has measured at this step."""
        rows = [row for row in self._ledger.rows(MEASURED, id=job) if step in (None, row.step)]
        values = [value for row in rows if (value := _value(row, metric)) is not None]
        return best_first(metric, [(value, 0) for value in values])[0][0] if values else None


def _value(row: Any, metric: str) -> float | None:
    value = json.loads(row.measured).get(metric)
    return None if value is None else float(value)


def _trial(row: Any) -> Trial:
    state = PRUNED if row.pruned is not None and row.state == JobState.CANCELED else row.state
    error = JobError(row.error_type, row.error_message or "") if row.error_type else None
    return Trial(
        row.number, row.id, state, json.loads(row.params), row.value, row.progress_done, row.steps, error,
        utc(row.started_at), utc(row.finished_at),
    )  # fmt: skip
