"""TrainingStore: every SQL statement about training runs, what is measured on the way, checkpoints and evaluations.

Whatever a worker writes about a run is fenced by the attempt of its claim: who has lost the lease can neither save a checkpoint
nor register. A version, its job's end and the move of an alias are one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from forebay.contract.model import ModelVersion
from forebay.contract.references import plain_text
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import DataSummary, Point, Trained, TrainRequest, better
from forebay.storage.jobs.records import ClaimedJob, Ended
from forebay.storage.jobs.store import ENDED, SUCCEED
from forebay.storage.models.registry import add_version, aliased, point
from forebay.storage.training.queries import CHECKPOINT_COLUMNS, TrainingQueries, checkpoint, jsons
from forebay.storage.training.records import Checkpoint, Evaluation

# Locks the row on PostgreSQL and SQLite alike, until the transaction ends.
HELD = f"UPDATE jobs SET progress_done = progress_done {ENDED} RETURNING id"

OPEN = """
INSERT INTO training_runs (id, model, recipe, request, resumed) VALUES (:id, :model, :recipe, :request, 0)
ON CONFLICT (id) DO NOTHING"""
RESUMED = "UPDATE training_runs SET resumed = resumed + 1 WHERE id = :id"
DATA = "UPDATE training_runs SET data = :data WHERE id = :id"
STEPS = "UPDATE training_runs SET steps = :steps WHERE id = :id"
END = """
UPDATE training_runs SET version = :version, metrics = :metrics, confusion = :confusion, promoted = :promoted,
    verdict = :verdict WHERE id = :id"""

# What a later attempt does again is measured again.
FORGET = "DELETE FROM job_metrics WHERE job_id = :id AND step > :step"
MEASURED = """
INSERT INTO job_metrics (job_id, split, step, epoch, at, measured, rows_per_s)
VALUES (:id, :split, :step, :epoch, :now, :measured, :rows_per_s)
ON CONFLICT (job_id, split, step) DO UPDATE SET epoch = :epoch, at = :now, measured = :measured, rows_per_s = :rows_per_s"""
SHOW = """
UPDATE jobs SET progress_done = :done, progress_total = :total, progress_message = :message
WHERE id = :id AND state = 'running'"""
SAID = "UPDATE jobs SET progress_message = :message WHERE id = :id AND state = 'running'"

ADVANCE = f"""
UPDATE jobs SET progress_done = :done, progress_total = :total, progress_message = :message {ENDED}
RETURNING cancel_requested_at"""

SAVE = """
INSERT INTO checkpoints (job_id, step, epoch, attempt, blob, bytes, at)
VALUES (:id, :step, :epoch, :attempt, :blob, :bytes, :now)
ON CONFLICT (job_id, step) DO UPDATE SET epoch = :epoch, attempt = :attempt, blob = :blob, bytes = :bytes, at = :now"""
PRUNE = f"""
DELETE FROM checkpoints WHERE job_id = :id AND step NOT IN (
    SELECT step FROM checkpoints WHERE job_id = :id ORDER BY step DESC LIMIT :keep) RETURNING {CHECKPOINT_COLUMNS}"""
STILL_USED = "SELECT blob FROM checkpoints WHERE blob {ids}"

ADD_EVALUATION = """
INSERT INTO evaluations (id, model, version, dataset, sha256, rows, metrics, confusion, classes, ms_per_row, failed, at)
VALUES (:id, :model, :version, :dataset, :sha256, :rows, :metrics, :confusion, :classes, :ms_per_row, :failed, :now)
ON CONFLICT (id) DO UPDATE SET dataset = :dataset, sha256 = :sha256, rows = :rows, metrics = :metrics,
    confusion = :confusion, classes = :classes, ms_per_row = :ms_per_row, failed = :failed, at = :now"""


class LeaseLost(Exception):
    """Another worker has been given the job meanwhile, or it has ended: nothing of this attempt counts any more."""


class TrainingStore(TrainingQueries):
    """Follows training runs and registers what they make. Thread-safe."""

    def start(self, job: ClaimedJob, request: TrainRequest) -> Checkpoint | None:
        """Begin, or go on: the checkpoint from which to resume. What was measured after it is forgotten."""
        about = json.dumps(request.summary())
        values = {"id": job.id, "model": job.model, "recipe": request.recipe, "request": about}
        with self.ledger.write() as connection:
            self._hold(connection, job)
            connection.execute(self._sql(OPEN), values)
            last = self._last(connection, job.id)
            connection.execute(self._sql(FORGET), {"id": job.id, "step": last.step if last else -1})
            if last is not None:
                connection.execute(self._sql(RESUMED), {"id": job.id})
        return last

    def found(self, job: ClaimedJob, data: DataSummary) -> None:
        """Keep what the trainer found in its data."""
        with self.ledger.write() as connection:
            self._hold(connection, job)
            connection.execute(self._sql(DATA), {"id": job.id, "data": encode(data).decode()})

    def measured(self, job: ClaimedJob, points: Sequence[Point], message: str) -> None:
        """Keep these points and show how far the run is: steps of those planned, and a word about it."""
        now = self.ledger.now()
        rows = [
            {"id": job.id, "split": p.split, "step": p.step, "epoch": p.epoch, "now": now, "rows_per_s": p.rows_per_s,
             "measured": json.dumps(dict(p.values))}
            for p in points
        ]  # fmt: skip
        if not rows:
            return
        done = max(p.step for p in points)
        steps = max((p.steps for p in points if p.steps), default=None)
        shown = {"id": job.id, "done": done, "total": max(done, steps or 1), "message": plain_text(message)}
        with self.ledger.write(durable=False) as connection:
            self._hold(connection, job)
            connection.execute(self._sql(MEASURED), rows)
            connection.execute(self._sql(SHOW), shown)
            if steps is not None:
                connection.execute(self._sql(STEPS), {"id": job.id, "steps": steps})

    def said(self, job: ClaimedJob, message: str) -> None:
        """Show a word about a run that measures nothing yet."""
        with self.ledger.write(durable=False) as connection:
            self._hold(connection, job)
            connection.execute(self._sql(SAID), {"id": job.id, "message": plain_text(message)})

    def save(self, job: ClaimedJob, step: int, epoch: int, blob: str, size: int, keep: int) -> list[str]:
        """Note a checkpoint that lies in the blob store; the blobs of older ones that nobody needs any more."""
        values = {
            "id": job.id, "step": step, "epoch": epoch, "attempt": job.attempt, "blob": blob, "bytes": size,
            "now": self.ledger.now(),
        }  # fmt: skip
        with self.ledger.write() as connection:
            self._hold(connection, job)
            connection.execute(self._sql(SAVE), values)
            gone = connection.execute(self._sql(PRUNE), {"id": job.id, "keep": keep}).fetchall()
            blobs = {checkpoint(row).blob for row in gone}
            used = connection.execute(self._sql(STILL_USED), {"ids": self.ledger.bind(sorted(blobs))}).scalars()
            return sorted(blobs - set(used))

    def finish(
        self, job: ClaimedJob, request: TrainRequest, model: ModelVersion, trained: Trained, metric: str,
        result: Callable[[ModelVersion, bool, str], bytes],
    ) -> tuple[ModelVersion, Ended]:  # fmt: skip
        """Register `model` as its name's next version, move the alias if it is better by `metric`, and end the job.

        `result` makes the job's result of the version, whether the alias moved, and why. LeaseLost when the job is no longer this
        attempt's: then nothing has been done.
        """
        now = self.ledger.now()
        with self.ledger.write() as connection:
            self._hold(connection, job)
            version = add_version(connection, model, now)
            promoted, verdict = _promote(connection, version, request.alias, metric, trained)
            data = result(version, promoted, verdict)
            end = {"id": job.id, "attempt": job.attempt, "now": now, "result": data, "result_ref": None}
            if connection.execute(self._sql(SUCCEED), end).rowcount == 0:
                raise LeaseLost(job.id)
            told = {
                "id": job.id, "version": version.version, "metrics": json.dumps(dict(trained.metrics)),
                "confusion": jsons(trained.confusion), "promoted": promoted, "verdict": verdict,
            }  # fmt: skip
            connection.execute(self._sql(END), told)
        return version, Ended(job.id, job.client)

    def advance(self, job: ClaimedJob, done: int, total: int, message: str) -> bool:
        """Show how far a running job is: whether a user has asked it to stop. LeaseLost when it is no longer this attempt's."""
        shown = {"id": job.id, "attempt": job.attempt, "done": done, "total": max(1, done, total), "message": message}
        with self.ledger.write(durable=False) as connection:
            row = connection.execute(self._sql(ADVANCE), shown).fetchone()
        if row is None:
            raise LeaseLost(job.id)
        return row[0] is not None

    def evaluated(self, job: ClaimedJob, evaluation: Evaluation, result: bytes) -> Ended:
        """Keep what a version was found to be worth, and end the job. LeaseLost when it is no longer this attempt's."""
        values = {
            name: getattr(evaluation, name) for name in ("id", "model", "version", "sha256", "rows", "ms_per_row", "failed")
        } | {
            "dataset": plain_text(evaluation.dataset), "metrics": json.dumps(dict(evaluation.metrics)),
            "confusion": jsons(evaluation.confusion), "classes": jsons(evaluation.classes), "now": self.ledger.now(),
        }  # fmt: skip
        end = {"id": job.id, "attempt": job.attempt, "now": values["now"], "result": result, "result_ref": None}
        with self.ledger.write() as connection:
            self._hold(connection, job)
            connection.execute(self._sql(ADD_EVALUATION), values)
            connection.execute(self._sql(SUCCEED), end)
        return Ended(job.id, job.client)

    def _hold(self, connection: Connection, job: ClaimedJob) -> None:
        if connection.execute(self._sql(HELD), {"id": job.id, "attempt": job.attempt}).fetchone() is None:
            raise LeaseLost(job.id)


def _promote(
    connection: Connection, version: ModelVersion, alias: str | None, metric: str, trained: Trained
) -> tuple[bool, str]:
    """Whether the alias moved to `version`, and why."""
    if alias is None:
        return False, "no alias was asked for"
    value = trained.metrics.get(metric)
    if value is None:
        return False, f"@{alias} stays: the run gave no {metric}"
    champion = aliased(connection, version.name, alias)
    if champion is None:
        point(connection, version.name, alias, version.version)
        return True, f"@{alias} is new: {metric} {value:.6g}"
    theirs = (champion.metadata.get("metrics") or {}).get(metric)
    if theirs is None:
        return False, f"@{alias} stays at {champion.ref}, of which no {metric} is known; move it by hand: models alias"
    if not better(metric, value, float(theirs)):
        return False, f"@{alias} stays at {champion.ref}: {metric} {value:.6g} is not better than {float(theirs):.6g}"
    point(connection, version.name, alias, version.version)
    return True, f"@{alias} moved from {champion.ref}: {metric} {value:.6g} is better than {float(theirs):.6g}"
