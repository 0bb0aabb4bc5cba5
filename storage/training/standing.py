"""Standing trainings: what is to be trained when a version drifts, and for which versions that was done.

Which of several sweepers sets one off is told by one statement: the first to note version and reference as the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from msgspec import Struct

from forebay.contract.errors import InvalidInput
from forebay.contract.job import at, new_ids
from forebay.contract.references import plain_text, shown
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import TrainRequest
from forebay.storage.jobs.records import NewJob, new_row
from forebay.storage.jobs.statements import INSERT
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

ADD = Statement("""
INSERT INTO standing_trainings (id, model, threshold, created_at, about, problem)
VALUES (:id, :model, :threshold, :now, :about, '')""")
ALL = Statement("SELECT id, model, threshold, created_at, about, problem FROM standing_trainings ORDER BY id")
TRIGGERS = Statement("""
SELECT standing_id, version, revision, job_id, reason, at FROM drift_triggers ORDER BY standing_id, at""")
REMOVE = Statement("DELETE FROM standing_trainings WHERE id = :id")
SET_PROBLEM = Statement("UPDATE standing_trainings SET problem = :problem WHERE id = :id AND problem <> :problem")
TRIGGER = Statement("""
INSERT INTO drift_triggers (standing_id, version, revision, job_id, reason, at)
SELECT id, :version, :revision, :job, :reason, :now FROM standing_trainings WHERE id = :id
ON CONFLICT (standing_id, version, revision) DO NOTHING RETURNING job_id""")


class Asked(Struct, frozen=True):
    """What is trained: a request, whose files are found anew each time by `dataset`, and the options of its job."""

    request: TrainRequest
    dataset: tuple[str, ...]
    queue: str
    priority: int
    max_attempts: int
    submitted_by: str | None = None


class DriftTrigger(Struct, frozen=True):
    """A version, and the revision of its reference, for which a training was set off: by which job, and why."""

    version: int
    revision: int
    job: str
    reason: str
    at: datetime


class StandingTraining(Struct, frozen=True):
    """A training that is set off when a column's PSI reaches `threshold`, of the version that the request's alias names, or
    else the newest. `problem` says why that could not be done lately.
    """  # fmt: skip

    id: str
    model: str
    threshold: float
    created_at: datetime
    asked: Asked
    problem: str = ""
    triggers: tuple[DriftTrigger, ...] = ()

    @property
    def watched(self) -> str:
        """The reference of the version whose drift counts."""
        alias = self.asked.request.alias
        return self.model if alias is None else f"{self.model}@{alias}"


class StandingTrainings:
    """Keeps them. Thread-safe, and safe for several sweepers."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(self, model: str, threshold: float, asked: Asked) -> StandingTraining:
        [id], now = new_ids(1), self._ledger.now()
        with self._ledger.write() as connection:
            ADD.execute(connection, id=id, model=model, threshold=threshold, now=now, about=encode(asked).decode())
        return StandingTraining(id, model, threshold, at(now), asked)

    def all(self, model: str | None = None) -> list[StandingTraining]:
        """All of them, or a model's, oldest first, with what they have set off."""
        triggers: dict[str, list[DriftTrigger]] = {}
        for row in self._ledger.rows(TRIGGERS):
            trigger = DriftTrigger(row.version, row.revision, row.job_id, row.reason, at(row.at))
            triggers.setdefault(row.standing_id, []).append(trigger)
        return [
            StandingTraining(
                row.id, row.model, row.threshold, at(row.created_at), decode(row.about, Asked), row.problem,
                tuple(triggers.get(row.id, ())),
            )
            for row in self._ledger.rows(ALL)
            if model in (None, row.model)
        ]  # fmt: skip

    def remove(self, id: str) -> None:
        """Set nothing off any more; InvalidInput when there is none of this id."""
        with self._ledger.write() as connection:
            if not REMOVE.execute(connection, id=id).rowcount:
                raise InvalidInput(f"there is no standing training {shown(id)}: forebay models retraining lists them")

    def set_problem(self, id: str, problem: str) -> None:
        with self._ledger.write() as connection:
            SET_PROBLEM.execute(connection, id=id, problem=plain_text(problem))

    def trigger(self, standing: StandingTraining, version: int, revision: int, reason: str, job: NewJob) -> bool:
        """Add the job, for a sweep to send, unless it was set off for this version and reference already, or removed."""
        now = self._ledger.now()
        values: dict[str, Any] = {"version": version, "revision": revision, "job": job.id, "reason": plain_text(reason)}
        with self._ledger.write() as connection:
            if TRIGGER.execute(connection, id=standing.id, now=now, **values).first() is None:
                return False
            added: Sequence[dict[str, Any]] = [new_row(job, now) | {"sent_at": 0.0}]
            INSERT.execute_many(connection, added)
            SET_PROBLEM.execute(connection, id=standing.id, problem="")
        return True
