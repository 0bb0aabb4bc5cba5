"""The reading half of TrainingStore: runs, their curves and checkpoints, what versions were found to be worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobState, at, utc
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import DataSummary
from forebay.storage.ledger.connection import Ledger
from forebay.storage.training.records import Checkpoint, Evaluation, Measured, Run

RUN_COLUMNS = """r.id, r.model, r.recipe, j.state, r.request, r.resumed, r.steps, r.data, r.version, r.metrics, r.confusion,
r.promoted, r.verdict, j.created_at, j.started_at, j.finished_at"""
RUN = f"SELECT {RUN_COLUMNS} FROM training_runs r JOIN jobs j ON j.id = r.id WHERE r.id = :id"
RUNS = f"""
SELECT {RUN_COLUMNS} FROM training_runs r JOIN jobs j ON j.id = r.id WHERE r.id < :before
ORDER BY r.id DESC LIMIT :limit"""
RUNS_OF = RUNS.replace("WHERE", "WHERE r.model = :model AND")
MEASURED = """
SELECT split, step, epoch, at, measured, rows_per_s FROM job_metrics WHERE job_id = :id AND step > :after
ORDER BY step, split LIMIT :limit"""
CHECKPOINT_COLUMNS = "step, epoch, attempt, blob, bytes, at"
CHECKPOINTS = f"SELECT {CHECKPOINT_COLUMNS} FROM checkpoints WHERE job_id = :id ORDER BY step DESC"
EVALUATIONS = """
SELECT id, model, version, dataset, sha256, rows, metrics, confusion, classes, ms_per_row, failed, at FROM evaluations
WHERE model = :model AND version = :version ORDER BY id DESC LIMIT :limit"""
END_OF_IDS = "g"  # ids are hex digits: all are below


class TrainingQueries:
    """Reads training runs from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sql = cache(ledger.statement)

    def run(self, id: str) -> Run:
        """A run that has begun; JobNotFound otherwise."""
        rows = self._rows(RUN, id=id)
        if not rows:
            raise JobNotFound(f"job {id} is no training job that has begun")
        return run_of(rows[0])

    def data_of(self, version: ModelVersion) -> DataSummary | None:
        """The data that a version was trained on, by its lineage; None when it was not trained here or its job is gone."""
        lineage = version.metadata.get("lineage")
        id = lineage.get("job") if isinstance(lineage, Mapping) else None
        rows = self._rows(RUN, id=id) if isinstance(id, str) else []
        return run_of(rows[0]).data if rows else None

    def runs(self, model: str | None = None, *, before: str | None = None, limit: int = 100) -> list[Run]:
        """Runs, the newest first; of one model, and older than the run `before`, where these are given."""
        values = {"before": before or END_OF_IDS, "limit": limit}
        rows = self._rows(RUNS, **values) if model is None else self._rows(RUNS_OF, model=model, **values)
        return [run_of(row) for row in rows]

    def curve(self, id: str, *, after: int = -1, limit: int = 10_000) -> list[Measured]:
        """What was measured after step `after`, in the order of the steps."""
        return [
            Measured(split, step, epoch, at(when), json.loads(measured), rows_per_s)
            for split, step, epoch, when, measured, rows_per_s in self._rows(MEASURED, id=id, after=after, limit=limit)
        ]

    def checkpoints(self, id: str) -> list[Checkpoint]:
        """The checkpoints that are kept, the newest first."""
        return [checkpoint(row) for row in self._rows(CHECKPOINTS, id=id)]

    def evaluations(self, model: str, version: int, limit: int = 100) -> list[Evaluation]:
        """What a version was found to be worth, the newest first."""
        return [
            Evaluation(
                row[0], row[1], row[2], row[3], row[4], row[5], json.loads(row[6]), _loaded(row[7]), _loaded(row[8]),
                row[9], int(row[10]), at(row[11]),
            )
            for row in self._rows(EVALUATIONS, model=model, version=version, limit=limit)
        ]  # fmt: skip

    def _last(self, connection: Connection, id: str) -> Checkpoint | None:
        row = connection.execute(self._sql(CHECKPOINTS), {"id": id}).fetchone()
        return None if row is None else checkpoint(row)

    def _rows(self, statement: str, **values: Any) -> Sequence[Any]:
        with self.ledger.read() as connection:
            return connection.execute(self._sql(statement), values).fetchall()


def checkpoint(row: Any) -> Checkpoint:
    """A row of CHECKPOINT_COLUMNS."""
    step, epoch, attempt, blob, size, when = row
    return Checkpoint(step, epoch, attempt, blob, size, at(when))


def jsons(value: Any) -> str | None:
    """As JSON, nothing as nothing."""
    return None if value is None else json.dumps(value)


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def run_of(row: Any) -> Run:
    """A row of RUN_COLUMNS."""
    (
        id,
        model,
        recipe,
        state,
        request,
        resumed,
        steps,
        data,
        version,
        metrics,
        confusion,
        promoted,
        verdict,
        *times,
    ) = row
    created, started, finished = times
    found = decode(data, DataSummary) if data else None
    return Run(
        id, model, recipe, JobState(state), json.loads(request), resumed, steps, found, version, _loaded(metrics),
        _loaded(confusion), None if promoted is None else bool(promoted), verdict, at(created), utc(started),
        utc(finished),
    )  # fmt: skip
