"""TrainingQueries: runs, their curves and checkpoints, and how well versions did. Changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobState, at, utc
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import decode
from forebay.contract.requests.training import DataSummary
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from forebay.storage.training.records import Checkpoint, Evaluation, Measured, Run, Running

MAX_POINTS = 500  # of one split of one run
MAX_RUNNING = 200

_RUNS = """
SELECT r.id, r.model, r.recipe, j.state, r.request, r.resumed, r.steps, r.data, r.version, r.metrics, r.confusion,
    r.promoted, r.verdict, j.created_at, j.started_at, j.finished_at
FROM training_runs r JOIN jobs j ON j.id = r.id"""
RUN = Statement(f"{_RUNS} WHERE r.id = :id")
RUNS_BY_ID = Statement(f"{_RUNS} WHERE r.id = ANY(:ids)")
MEASURED = Statement("""
SELECT split, step, epoch, at, measured, rows_per_s FROM job_metrics WHERE job_id = :id AND step > :after
ORDER BY step, split LIMIT :limit""")
RUNNING = Statement("""
SELECT j.id, j.model, j.started_at, m.epoch, m.measured, m.rows_per_s, m.at FROM jobs j
LEFT JOIN job_metrics m ON m.job_id = j.id AND m.split = 'train'
    AND m.step = (SELECT max(step) FROM job_metrics WHERE job_id = j.id AND split = 'train')
WHERE j.kind = 'train' AND j.state = 'running' ORDER BY j.id LIMIT :limit""")
# The index alone says which steps are shown: every so-manieth of a split, and its last.
MEASURED_EVENLY = Statement("""
SELECT m.split, m.step, m.epoch, m.at, m.measured, m.rows_per_s FROM (
    SELECT split, step, row_number() OVER (PARTITION BY split ORDER BY step) AS number,
        count(*) OVER (PARTITION BY split) AS many
    FROM job_metrics WHERE job_id = :id) AS n
JOIN job_metrics m ON m.job_id = :id AND m.split = n.split AND m.step = n.step
WHERE (n.number - 1) % ((n.many - 1) / :most + 1) = 0 OR n.number = n.many ORDER BY m.step, m.split""")
CHECKPOINT_COLUMNS = "step, epoch, attempt, blob, bytes, at"
USED_CHECKPOINTS = Statement("SELECT blob FROM checkpoints WHERE blob = ANY(:blobs)")
CHECKPOINTS = Statement(f"SELECT {CHECKPOINT_COLUMNS} FROM checkpoints WHERE job_id = :id ORDER BY step DESC")
EVALUATIONS = Statement("""
SELECT id, model, version, dataset, sha256, rows, metrics, confusion, classes, ms_per_row, failed, warning, at
FROM evaluations
WHERE model = :model AND version = :version ORDER BY id DESC LIMIT :limit""")
OLDER_RUN = Statement("""
SELECT count(*) FROM (
    SELECT id FROM jobs WHERE state = 'queued' AND queue = :queue AND kind = 'node' AND parent_id < :id LIMIT 1) AS older""")


class TrainingQueries:
    """Reads training runs from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def run(self, id: str) -> Run:
        """A run that has begun; JobNotFound otherwise."""
        row = self._ledger.row(RUN, id=id)
        if row is None:
            raise JobNotFound(f"job {id} is not a training job that has begun")
        return _run(row)

    def data_of(self, version: ModelVersion) -> DataSummary | None:
        """The data that a version, or the one that it was made from, was trained on, by its lineage; None when it was not trained
        here or its job is gone.
        """  # fmt: skip
        lineage = version.metadata.get("lineage")
        id = lineage.get("trained_by", lineage.get("job")) if isinstance(lineage, Mapping) else None
        row = self._ledger.row(RUN, id=id) if isinstance(id, str) else None
        return None if row is None else _run(row).data

    def runs_by_id(self, ids: Sequence[str]) -> dict[str, Run]:
        """Those of these training jobs that have begun."""
        return {row.id: _run(row) for row in self._ledger.rows(RUNS_BY_ID, ids=ids)}

    def curve(self, id: str, *, after: int = -1, limit: int = 10_000) -> list[Measured]:
        """What was measured after step `after`, in the order of the steps."""
        return [_measured(row) for row in self._ledger.rows(MEASURED, id=id, after=after, limit=limit)]

    def running(self, limit: int = MAX_RUNNING) -> list[Running]:
        """How far the training jobs are that run now."""
        now = self._ledger.now()
        return [
            Running(
                row.id, row.model, row.epoch, None if row.measured is None else _loss(json.loads(row.measured)),
                row.rows_per_s, max(0.0, now - max(row.at or 0.0, row.started_at or 0.0)),
            )
            for row in self._ledger.rows(RUNNING, limit=limit)
        ]  # fmt: skip

    def sampled_curve(self, id: str, most: int = MAX_POINTS) -> list[Measured]:
        """A run's curve, of each split about `most` points at most, evenly over its steps, the first and the last among them."""
        return [_measured(row) for row in self._ledger.rows(MEASURED_EVENLY, id=id, most=most)]

    def used_checkpoints(self, blobs: Sequence[str]) -> set[str]:
        """Those of these blobs that are some run's checkpoint."""
        return {row.blob for row in self._ledger.rows(USED_CHECKPOINTS, blobs=blobs)}

    def checkpoints(self, id: str) -> list[Checkpoint]:
        """The checkpoints that are kept, the newest first."""
        return [checkpoint(row) for row in self._ledger.rows(CHECKPOINTS, id=id)]

    def evaluations(self, model: str, version: int, limit: int = 100) -> list[Evaluation]:
        """How well a version did, the newest evaluation first."""
        return [_evaluation(row) for row in self._ledger.rows(EVALUATIONS, model=model, version=version, limit=limit)]

    def older_run_waits(self, job: ClaimedJob) -> bool:
        """Whether an older run waits in the same queue for machines: of two runs that wait for each other's, one must yield."""
        return bool(self._ledger.scalar(OLDER_RUN, queue=job.queue, id=job.id))


def checkpoint(row: Any) -> Checkpoint:
    """A row of CHECKPOINT_COLUMNS."""
    return Checkpoint(row.step, row.epoch, row.attempt, row.blob, row.bytes, at(row.at))


def _loss(measured: Mapping[str, float | None]) -> float | None:
    loss = measured.get("loss", math.nan)
    return math.nan if loss is None else loss


def _measured(row: Any) -> Measured:
    return Measured(row.split, row.step, row.epoch, at(row.at), json.loads(row.measured), row.rows_per_s)


def _evaluation(row: Any) -> Evaluation:
    return Evaluation(
        id=row.id, model=row.model, version=row.version, dataset=row.dataset, sha256=row.sha256, rows=row.rows,
        metrics=json.loads(row.metrics), confusion=_loaded(row.confusion), classes=_loaded(row.classes),
        ms_per_row=row.ms_per_row, failed=int(row.failed), warning=row.warning, at=at(row.at),
    )  # fmt: skip


def _run(row: Any) -> Run:
    data = decode(row.data, DataSummary) if row.data else None
    return Run(
        id=row.id, model=row.model, recipe=row.recipe, state=JobState(row.state), request=json.loads(row.request),
        resumed=row.resumed, steps=row.steps, data=data, version=row.version, metrics=_loaded(row.metrics),
        confusion=_loaded(row.confusion), promoted=None if row.promoted is None else bool(row.promoted),
        verdict=row.verdict, created_at=at(row.created_at), started_at=utc(row.started_at),
        finished_at=utc(row.finished_at),
    )  # fmt: skip


def _loaded(text: str | None) -> Any:
    return None if text is None else json.loads(text)
