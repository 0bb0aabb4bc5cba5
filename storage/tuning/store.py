"""TuneStore: adds a tune's trials, keeps what came of them, and registers the best.

A trial is a training job with the tune as its parent. Of two workers that add the same trial one succeeds; of all trials only the
best so far keeps an artifact, and only the best of all becomes a version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec import Struct

from forebay.contract.drift.sketch import Reference
from forebay.contract.job import JobKind, new_ids
from forebay.contract.model import ModelVersion
from forebay.contract.requests.request import decode, encode
from forebay.contract.requests.training import Trained
from forebay.contract.requests.tuning import best_first
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.fence import HOLD, hold, succeed
from forebay.storage.jobs.parents import COMPLETE, TOUCH, ParentJobs, progress
from forebay.storage.jobs.records import ClaimedJob, Ended, LeaseLost, NewJob, ended, new_row
from forebay.storage.jobs.statements import INSERT
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement
from forebay.storage.models.drift import set_reference
from forebay.storage.models.registry import add_version, dump_version, load_version
from forebay.storage.training.store import END, promote, with_parent
from forebay.storage.tuning.queries import TuneQueries
from forebay.storage.tuning.records import TrialPlace, Tune

COUNT = Statement("SELECT count(*) FROM trials WHERE tune_id = :id")
ADD = Statement("INSERT INTO trials (id, tune_id, number, params) VALUES (:id, :tune, :number, :params)")
PRUNE = Statement("UPDATE trials SET pruned = :step, value = :value WHERE id = :id")
LOCK = Statement("SELECT id FROM jobs WHERE id = :id FOR UPDATE")
BEST = Statement("SELECT id, number, value, made FROM trials WHERE tune_id = :tune AND artifact IS NOT NULL")
DROP_MADE = Statement("UPDATE trials SET artifact = NULL, made = NULL WHERE tune_id = :tune AND artifact IS NOT NULL")
FINISH = Statement("UPDATE trials SET value = :value, artifact = :artifact, made = :made WHERE id = :id")
REGISTERED = Statement(
    "UPDATE training_runs SET version = :version, promoted = :promoted, verdict = :verdict WHERE id = :id"
)


class Made(Struct, frozen=True):
    """What a trial's training made: the version that is not registered yet, and what its inputs are held against for drift."""

    model: str
    reference: Reference | None = None


class TuneStore:
    """Writes tunes and their trials. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.queries, self.parents = TuneQueries(ledger), ParentJobs(ledger)

    def start(self, job: ClaimedJob) -> list[RoutedJob]:
        """The trials that wait again because the tune starts again, to be sent; LeaseLost if it is another's."""
        with self._ledger.write() as connection:
            return self.parents.revive(connection, job)

    def add_trial(
        self, tune: Tune, number: int, params: Mapping[str, Any], payload: tuple[bytes | None, str | None]
    ) -> RoutedJob | None:
        """Add the trial of this number, the next; None, and nothing is added, when there is one by now or the tune has ended."""
        [id], now = new_ids(1), self._ledger.now()
        job = NewJob(
            id, JobKind.TRAIN, tune.model, 0, tune.queue, tune.priority, tune.max_attempts, deadline_at=tune.deadline_at,
            parent_id=tune.id, input=payload[0], input_ref=payload[1],
        )  # fmt: skip
        with self._ledger.write() as connection:
            if TOUCH.execute(connection, id=tune.id, now=now).rowcount == 0:
                return None
            if COUNT.execute(connection, id=tune.id).scalar_one() != number:
                return None
            INSERT.execute(connection, **new_row(job, now))
            ADD.execute(connection, id=id, tune=tune.id, number=number, params=json.dumps(dict(params)))
        return RoutedJob(id, job.model, 0, job.queue, job.priority, exclusive=True)

    def prune(self, job: ClaimedJob, step: int, value: float) -> None:
        """The trial ends here: it had this value at this step. Its job is still to be canceled."""
        with self._ledger.write() as connection:
            hold(connection, job)
            PRUNE.execute(connection, id=job.id, step=step, value=value)

    def leads(self, trial: TrialPlace, metric: str, value: float) -> bool:
        """Whether no trial that has ended is better."""
        with self._ledger.read() as connection:
            return _leads(connection, trial, metric, value)

    def finish_trial(
        self, job: ClaimedJob, trial: TrialPlace, metric: str, value: float, trained: Trained, model: ModelVersion | None,
        result: bytes,
    ) -> Ended:  # fmt: skip
        """End a trial's job. It keeps `model`, the version that it would become, if it is better than all before."""
        now = self._ledger.now()
        with self._ledger.write() as connection:
            LOCK.execute(connection, id=trial.tune)
            hold(connection, job)
            made: dict[str, str | None] = {"artifact": None, "made": None}
            if model is not None and _leads(connection, trial, metric, value):
                DROP_MADE.execute(connection, tune=trial.tune)
                made = {
                    "artifact": model.artifact,
                    "made": encode(Made(dump_version(model), trained.reference)).decode(),
                }
            FINISH.execute(connection, id=job.id, value=value, **made)
            succeed(connection, job, result, now)
            END.execute(
                connection, id=job.id, version=None, metrics=json.dumps(dict(trained.metrics)), promoted=None, verdict=None,
                confusion=None if trained.confusion is None else json.dumps(trained.confusion),
            )  # fmt: skip
        return Ended(job.id, job.client)

    def complete(
        self,
        tune: Tune,
        alias: str | None,
        metric: str,
        trials: int,
        result: Callable[[ModelVersion, bool, str], bytes],
    ) -> tuple[ModelVersion, list[Ended]] | None:
        """Register the best trial's version, move the alias if it is better, and end the tune; None, and nothing is done, when
        it has ended or begun again, or a trial is open.
        """  # fmt: skip
        now = self._ledger.now()
        with suppress(LeaseLost), self._ledger.write() as connection:
            if HOLD.execute(connection, id=tune.id, attempt=tune.attempt).first() is None:
                raise LeaseLost(tune.id)
            best = BEST.execute(connection, tune=tune.id).fetchall()[0]
            made = decode(best.made, Made)
            version = add_version(connection, load_version(made.model), now, partial(with_parent, connection, alias))
            if made.reference is not None:
                set_reference(connection, version.name, version.version, made.reference, now)
            promoted, verdict = promote(connection, version, alias, metric, version.metadata["metrics"])
            end = {"now": now, "attempt": tune.attempt, "result": result(version, promoted, verdict), "ref": None}
            over = ended(COMPLETE.execute(connection, id=tune.id, **end, **progress(trials, trials)))
            if not over:
                raise LeaseLost(tune.id)  # rolled back
            REGISTERED.execute(connection, id=best.id, version=version.version, promoted=promoted, verdict=verdict)
            DROP_MADE.execute(connection, tune=tune.id)
            return version, over
        return None


def _leads(connection: Connection, trial: TrialPlace, metric: str, value: float) -> bool:
    kept = [(row.value, row.number) for row in BEST.execute(connection, tune=trial.tune) if row.number != trial.number]
    return best_first(metric, [*kept, (value, trial.number)])[0] == (value, trial.number)
