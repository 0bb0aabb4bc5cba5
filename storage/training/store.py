"""TrainingStore: what is written about training runs, what is measured on the way, checkpoints, evaluations, and the further
machines of a run, which are jobs of kind `node` with the run as their parent.

Whatever a worker writes about a run is fenced by the attempt of its claim: who has lost the lease can neither save a checkpoint
nor register. A version, its job's end and the move of an alias are one transaction.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from forebay.contract.model import ModelVersion
from forebay.contract.references import plain_text
from forebay.contract.requests.request import encode
from forebay.contract.requests.training import DataSummary, Point, Trained, TrainRequest, better
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.fence import fenced, hold, succeed
from forebay.storage.jobs.records import ClaimedJob, Ended, NewJob, new_row
from forebay.storage.jobs.statements import CANCEL, CANCEL_CHILDREN, HELD, INSERT
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement
from forebay.storage.models.drift import set_reference
from forebay.storage.models.registry import add_version, aliased, point
from forebay.storage.training.queries import CHECKPOINT_COLUMNS, TrainingQueries, checkpoint
from forebay.storage.training.records import Evaluation

OPEN = Statement("""
INSERT INTO training_runs (id, model, recipe, request, resumed) VALUES (:id, :model, :recipe, :request, 0)
ON CONFLICT (id) DO NOTHING""")
RESUMED = Statement("UPDATE training_runs SET resumed = resumed + 1 WHERE id = :id")
SET_DATA = Statement("UPDATE training_runs SET data = :data WHERE id = :id")
SET_STEPS = Statement("UPDATE training_runs SET steps = :steps WHERE id = :id")
END = Statement("""
UPDATE training_runs SET version = :version, metrics = :metrics, confusion = :confusion, promoted = :promoted,
    verdict = :verdict WHERE id = :id""")

# What a later attempt does again is measured again.
DELETE_METRICS = Statement("DELETE FROM job_metrics WHERE job_id = :id AND step > :step")
ADD_METRICS = Statement("""
INSERT INTO job_metrics (job_id, split, step, epoch, at, measured, rows_per_s)
VALUES (:id, :split, :step, :epoch, :now, :measured, :rows_per_s)
ON CONFLICT (job_id, split, step) DO UPDATE SET epoch = :epoch, at = :now, measured = :measured, rows_per_s = :rows_per_s""")
SET_PROGRESS = Statement(f"""
UPDATE jobs SET progress_done = :done, progress_total = :total, progress_message = :message {HELD}
RETURNING cancel_requested_at""")
SET_MESSAGE = Statement(f"UPDATE jobs SET progress_message = :message {HELD} RETURNING id")

ADD_CHECKPOINT = Statement("""
INSERT INTO checkpoints (job_id, step, epoch, attempt, blob, bytes, at)
VALUES (:id, :step, :epoch, :attempt, :blob, :bytes, :now)
ON CONFLICT (job_id, step) DO UPDATE SET epoch = :epoch, attempt = :attempt, blob = :blob, bytes = :bytes, at = :now""")
DROP_CHECKPOINTS = Statement("DELETE FROM checkpoints WHERE job_id = :id AND step > :step")
PRUNE_CHECKPOINTS = Statement(f"""
DELETE FROM checkpoints WHERE job_id = :id AND step NOT IN (
    SELECT step FROM checkpoints WHERE job_id = :id ORDER BY step DESC LIMIT :keep) RETURNING {CHECKPOINT_COLUMNS}""")

ADD_EVALUATION = Statement("""
INSERT INTO evaluations (id, model, version, dataset, sha256, rows, metrics, confusion, classes, ms_per_row, failed, warning, at)
VALUES (:id, :model, :version, :dataset, :sha256, :rows, :metrics, :confusion, :classes, :ms_per_row, :failed,
    :warning, :now)
ON CONFLICT (id) DO UPDATE SET dataset = :dataset, sha256 = :sha256, rows = :rows, metrics = :metrics,
    confusion = :confusion, classes = :classes, ms_per_row = :ms_per_row, failed = :failed, warning = :warning,
    at = :now""")


class TrainingStore:
    """Follows training runs and registers what they make. Thread-safe.

    Every method that takes a claimed job raises LeaseLost, and does nothing, when the job is no longer this attempt's.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.queries = TrainingQueries(ledger)

    def start(self, job: ClaimedJob, request: TrainRequest) -> None:
        """Keep what the run was asked for."""
        about = json.dumps(request.summary())
        with self._ledger.write() as connection:
            hold(connection, job)
            OPEN.execute(connection, id=job.id, model=job.model, recipe=request.recipe, request=about)

    def resume(self, job: ClaimedJob, step: int | None) -> None:
        """The attempt goes on from the checkpoint of this step, or begins anew without one. What was measured after it is
        deleted, and so are later checkpoints, which cannot be used: new ones would count as older.
        """  # fmt: skip
        after = -1 if step is None else step
        with self._ledger.write() as connection:
            hold(connection, job)
            DELETE_METRICS.execute(connection, id=job.id, step=after)
            DROP_CHECKPOINTS.execute(connection, id=job.id, step=after)
            if step is not None:
                RESUMED.execute(connection, id=job.id)

    def set_data(self, job: ClaimedJob, data: DataSummary) -> None:
        """Keep what the trainer found in its data."""
        with self._ledger.write() as connection:
            hold(connection, job)
            SET_DATA.execute(connection, id=job.id, data=encode(data).decode())

    def add_metrics(self, job: ClaimedJob, points: Sequence[Point], message: str) -> None:
        """Keep these points and show how far the run is: steps of those planned, and a message about it."""
        if not points:
            return
        now = self._ledger.now()
        rows = [
            {"id": job.id, "split": p.split, "step": p.step, "epoch": p.epoch, "now": now, "rows_per_s": p.rows_per_s,
             "measured": json.dumps(dict(p.values))}
            for p in points
        ]  # fmt: skip
        done = max(p.step for p in points)
        steps = max((p.steps for p in points if p.steps), default=None)
        with self._ledger.write(durable=False) as connection:
            _set_progress(connection, job, done, steps or 1, message)
            ADD_METRICS.execute_many(connection, rows)
            if steps is not None:
                SET_STEPS.execute(connection, id=job.id, steps=steps)

    def set_message(self, job: ClaimedJob, message: str) -> None:
        """Show a message about a run that measures nothing yet."""
        with self._ledger.write(durable=False) as connection:
            fenced(connection, SET_MESSAGE, job, message=plain_text(message))

    def set_progress(self, job: ClaimedJob, done: int, total: int, message: str) -> bool:
        """Show how far a running job is: whether a user has asked it to stop."""
        with self._ledger.write(durable=False) as connection:
            return _set_progress(connection, job, done, total, message)

    def add_checkpoint(self, job: ClaimedJob, step: int, epoch: int, blob: str, size: int, keep: int) -> list[str]:
        """Note a checkpoint that lies in the blob store; the blobs of older ones that this run no longer needs."""
        about = {"step": step, "epoch": epoch, "attempt": job.attempt, "blob": blob, "bytes": size}
        with self._ledger.write() as connection:
            hold(connection, job)
            ADD_CHECKPOINT.execute(connection, id=job.id, now=self._ledger.now(), **about)
            return sorted({checkpoint(row).blob for row in PRUNE_CHECKPOINTS.execute(connection, id=job.id, keep=keep)})

    def finish(
        self, job: ClaimedJob, request: TrainRequest, model: ModelVersion, trained: Trained, metric: str,
        result: Callable[[ModelVersion, bool, str], bytes],
    ) -> tuple[ModelVersion, Ended]:  # fmt: skip
        """Register `model` as its name's next version, move the alias if it is better by `metric`, and end the job.

        `result` makes the job's result of the version, whether the alias moved, and why.
        """
        now = self._ledger.now()
        with self._ledger.write() as connection:
            hold(connection, job)
            version = add_version(connection, model, now, partial(with_parent, connection, request.alias))
            promoted, verdict = promote(connection, version, request.alias, metric, trained.metrics)
            if trained.reference is not None:
                set_reference(connection, version.name, version.version, trained.reference, now)
            succeed(connection, job, result(version, promoted, verdict), now)
            END.execute(
                connection, id=job.id, version=version.version, metrics=json.dumps(dict(trained.metrics)),
                confusion=_json(trained.confusion), promoted=promoted, verdict=verdict,
            )  # fmt: skip
        return version, Ended(job.id, job.client)

    def finish_evaluation(self, job: ClaimedJob, evaluation: Evaluation, result: bytes) -> Ended:
        """Keep how well a version did, and end the job."""
        now = self._ledger.now()
        plain = ("id", "model", "version", "sha256", "rows", "ms_per_row", "failed", "warning")
        values = {name: getattr(evaluation, name) for name in plain} | {
            "dataset": plain_text(evaluation.dataset), "metrics": json.dumps(dict(evaluation.metrics)),
            "confusion": _json(evaluation.confusion), "classes": _json(evaluation.classes),
        }  # fmt: skip
        with self._ledger.write() as connection:
            hold(connection, job)
            ADD_EVALUATION.execute(connection, **values, now=now)
            succeed(connection, job, result, now)
        return Ended(job.id, job.client)

    def add_nodes(self, job: ClaimedJob, nodes: Sequence[NewJob]) -> list[RoutedJob]:
        """Add the node jobs of this attempt, and cancel those of an earlier one; what to send them with."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            hold(connection, job)
            CANCEL_CHILDREN.execute(connection, ids=[job.id], now=now)
            INSERT.execute_many(connection, [new_row(node, now) for node in nodes])
        return [
            RoutedJob(node.id, node.model, node.version, node.queue, node.priority, exclusive=True) for node in nodes
        ]

    def cancel_nodes(self, ids: Sequence[str]) -> None:
        """The attempt that these node jobs were for has ended: cancel those that wait, ask those that run to stop."""
        with self._ledger.write() as connection:
            CANCEL.execute(connection, ids=ids, now=self._ledger.now())


def _set_progress(connection: Connection, job: ClaimedJob, done: int, total: int, message: str) -> bool:
    shown = {"done": done, "total": max(1, done, total), "message": plain_text(message)}
    return fenced(connection, SET_PROGRESS, job, **shown).cancel_requested_at is not None


def _json(value: Any) -> str | None:
    return None if value is None else json.dumps(value)


def with_parent(connection: Connection, alias: str | None, model: ModelVersion) -> ModelVersion:
    """The version with the one in its lineage that it is held against: what the alias names now."""
    champion = aliased(connection, model.name, alias) if alias is not None else None
    if champion is None:
        return model
    lineage = {**(model.metadata.get("lineage") or {}), "parent": champion.ref}
    return replace(model, metadata={**model.metadata, "lineage": lineage})


def promote(
    connection: Connection, version: ModelVersion, alias: str | None, metric: str, metrics: Mapping[str, float | None]
) -> tuple[bool, str]:
    """Whether the alias moved to `version`, and why."""
    if alias is None:
        return False, "no alias was asked for"
    value = metrics.get(metric)
    if value is None:
        return False, f"@{alias} stays: the run gave no {metric}"
    champion = aliased(connection, version.name, alias)
    if champion is None:
        point(connection, version.name, alias, version.version)
        return True, f"@{alias} is new: {metric} {value:.6g}"
    theirs = (champion.metadata.get("metrics") or {}).get(metric)
    if theirs is None:
        return False, f"@{alias} stays at {champion.ref}, of which no {metric} is known; move it by hand: models alias"
    if changed := champion.signature.differences(version.signature):
        return (
            False,
            f"@{alias} stays at {champion.ref}, whose callers expect others: {changed}; move it by hand: models alias",
        )
    if not better(metric, value, float(theirs)):
        return False, f"@{alias} stays at {champion.ref}: {metric} {value:.6g} is not better than {float(theirs):.6g}"
    point(connection, version.name, alias, version.version)
    told = f"@{alias} moved from {champion.ref}: {metric} {value:.6g} is better than {float(theirs):.6g}"
    return True, told if _judged_alike(champion, version) else f"{told}, though their held-out rows may differ"


def _judged_alike(*versions: ModelVersion) -> bool:
    """Whether the metrics of both are of the same held-out rows, as far as their lineages tell."""
    lineages = [version.metadata.get("lineage") or {} for version in versions]
    one, other = ([lineage.get(name) for name in ("sha256", "rows", "seed")] for lineage in lineages)
    return bool(one[0]) and one == other
