"""JobStore: what users and workers do to jobs.

Each step is fenced so that only whoever may take it can: a claim takes queued rows, a finish needs the attempt it was claimed
with. Sending, announcing and the meaning of payloads are left to others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy

from forebay.contract.errors import IllegalTransition, InvalidInput, QueueFull
from forebay.contract.job import PARENTS, JobState, Transition, after
from forebay.contract.references import plain_text
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs import statements as sql
from forebay.storage.jobs.lost import CRASHED, free_lost
from forebay.storage.jobs.queries import COUNT_WAITING, JobQueries
from forebay.storage.jobs.records import (
    ClaimedJob,
    Ended,
    Finished,
    NewJob,
    Postponed,
    claimed_job,
    ended,
    new_row,
    routed_jobs,
)
from forebay.storage.jobs.sweeps import JobSweeps
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

ERROR_TYPE_LENGTH = 200
TOO_LATE = "its lease had lapsed, so the result was dropped"


class JobStore:
    """Adds jobs to the ledger and moves them from state to state. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.queries = JobQueries(ledger)
        self.sweeps = JobSweeps(ledger)

    def add(self, jobs: Sequence[NewJob], *, max_queue_size: int | None = None) -> list[str]:
        """Commit all jobs in one transaction and give their ids, in order.

        A job whose idempotency key is known and whose request is the same gives the existing id and adds nothing;
        InvalidInput when the request differs, and then none of the jobs is added. With `max_queue_size` the jobs are of one
        queue; QueueFull, and none is added, when more would then wait in it. However many ask at once, it holds.
        """
        if not jobs:
            return []
        now = self.ledger.now()
        rows = [new_row(job, now) for job in jobs]
        fresh = rows
        with self.ledger.write(stored=lambda asked: _is_there(asked, fresh[0]["id"])) as connection:
            ids = self._known(connection, jobs)
            fresh = [row for row, id in zip(rows, ids, strict=True) if row["id"] == id]
            if not fresh:
                return ids
            if max_queue_size is None or self._fits(connection, jobs[0].queue, len(fresh), max_queue_size):
                sql.INSERT.execute_many(connection, fresh)
                return ids
        raise self.refusal(jobs[0].queue, len(fresh), max_queue_size)

    def _known(self, connection: Connection, jobs: Sequence[NewJob]) -> list[str]:
        """For each job its id, or that of the job whose idempotency key it shares."""
        keys = sorted({job.idempotency_key for job in jobs if job.idempotency_key is not None})
        if not keys:
            return [job.id for job in jobs]
        if not self.ledger.sqlite:  # two clients with one key: the second waits here and then finds the first's job
            sql.LOCK_KEYS.execute(connection, keys=keys)
        found = sql.BY_KEY.execute(connection, keys=keys)
        known: dict[str, tuple[str, str | None]] = {row.idempotency_key: (row.id, row.request_hash) for row in found}
        ids = []
        for job in jobs:
            key = job.idempotency_key
            id, request_hash = (job.id, None) if key is None else known.setdefault(key, (job.id, job.request_hash))
            if key is not None and request_hash != job.request_hash:
                raise InvalidInput(
                    f"idempotency_key {key!r} belongs to job {id}, which is a different request; use another key"
                )
            ids.append(id)
        return ids

    def _fits(self, connection: Connection, queue: str, adding: int, maximum: int) -> bool:
        if not self.ledger.sqlite:
            sql.LOCK_QUEUE.execute(connection, queue=queue)
        waiting = COUNT_WAITING.execute(connection, queue=queue, at_most=maximum).scalar_one()
        return int(waiting) + adding <= maximum

    def refusal(self, queue: str, adding: int, maximum: int) -> QueueFull:
        """Why `adding` jobs do not fit into this queue, and when they might, by the rate at which its jobs end."""
        depth = self.queries.count_waiting(queue, 2 * maximum)
        about = f"queue {queue!r} takes at most {maximum} waiting jobs and holds {depth}"
        if adding > maximum:
            advice = f"{adding} jobs at once never fit: submit at most {maximum} at a time, or raise max_queue_size"
            return QueueFull(f"{about}; {advice}; nothing was stored", queue=queue, depth=depth, maximum=maximum)
        rate = self.queries.completion_rate(queue)
        wait = max(0.1, round((depth + adding - maximum) / rate, 1)) if rate else None
        advice = f"try again in about {wait:g} s" if wait else "none of its jobs has ended of late: is a worker there?"
        return QueueFull(
            f"{about}: there is no room for {adding} more; {advice}; nothing was stored",
            queue=queue, depth=depth, maximum=maximum, retry_after_s=wait,
        )  # fmt: skip

    def cancel(self, ids: Sequence[str]) -> list[Ended]:
        """Cancel those of the jobs that wait or have children, which are given back; ask those that run, and the running children
        of those, to stop (`cancel_requested_at`).
        """  # fmt: skip
        return [Ended(row.id, row.client) for row in self._cancel(ids) if row.state == JobState.CANCELED]

    def cancel_job(self, id: str) -> JobState | None:
        """The same of one job: the state in which that leaves it, None when it had ended before."""
        return next((JobState(row.state) for row in self._cancel([id])), None)

    def _cancel(self, ids: Sequence[str]) -> Sequence[Any]:
        now = self.ledger.now()
        with self.ledger.write() as connection:
            rows = sql.CANCEL.execute(connection, ids=ids, now=now).fetchall()
            parents = [row.id for row in rows if row.kind in PARENTS]
            if parents:
                sql.CANCEL_CHILDREN.execute(connection, ids=parents, now=now)
            return rows

    def retry(self, id: str) -> RoutedJob:
        """Queue a failed, expired or canceled job again; JobNotFound or IllegalTransition otherwise."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            sql.KEEP_RETRIED.execute(connection, id=id, now=now)
            retried = routed_jobs(sql.RETRY.execute(connection, id=id, now=now))
        if retried:
            return retried[0]
        after(self.queries.get(id).state, Transition.RETRY)
        raise IllegalTransition(f"job {id} changed while it was being retried; look at it again")

    def retry_failed(
        self, *, model: str | None = None, version: int | None = None, after_id: str = "", limit: int = 5000
    ) -> tuple[list[RoutedJob], str | None]:
        """Queue up to `limit` failed and expired jobs again, in the order of their ids from `after_id` on.

        Gives what to send them with, and the last id that was looked at: `after_id` of the next call, None at the end. A read,
        which holds up nobody, finds them; only then are those rows, a bounded number, written.
        """
        ids = self.queries.failed_ids(model, version, after_id, limit)
        if not ids:
            return [], None
        now = self.ledger.now()
        with self.ledger.write() as connection:
            sql.KEEP_FAILED.execute(connection, ids=ids, now=now)
            retried = routed_jobs(sql.RETRY_FAILED.execute(connection, ids=ids, now=now))
        return retried, ids[-1] if len(ids) == limit else None

    def claim(
        self, ids: Sequence[str], worker: str, lease_s: float, queues: Sequence[str] | None = None
    ) -> list[ClaimedJob]:
        """Take those of the jobs that are queued, due and not past their deadline, in the order given; the rest is not ours.

        With `queues` only jobs of these are taken, whatever the message said that brought the ids. On PostgreSQL a claim waits
        for the disk: a server that restarts without having kept it would hand out the same attempt twice. On SQLite what
        takes a claim back takes the worker too.
        """
        now = self.ledger.now()
        values = {"ids": ids, "worker": worker, "now": now, "lease_until": now + lease_s}
        with self.ledger.write(durable=not self.ledger.sqlite) as connection:
            if queues is None:
                rows = sql.CLAIM.dicts(connection, **values)
            else:
                rows = sql.CLAIM_FROM_QUEUES.dicts(connection, **values, queues=queues)
        place = {id: i for i, id in enumerate(ids)}
        return sorted((claimed_job(row, now) for row in rows), key=lambda job: place[job.id])

    def renew(self, ids: Sequence[str], worker: str, lease_s: float) -> set[str]:
        """Prolong the leases of this worker's running jobs; the ids it still holds."""
        lease_until = self.ledger.now() + lease_s
        with self.ledger.write(durable=False) as connection:
            return set(sql.RENEW.execute(connection, ids=ids, worker=worker, lease_until=lease_until).scalars())

    def finish(self, outcomes: Sequence[Finished]) -> list[Ended]:
        """Write how attempts ended that still hold their jobs; those written, the others are dropped."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            if len(outcomes) == 1:
                [(statement, [row])] = _by_statement(outcomes, now).items()
                return ended(statement.execute(connection, **row))
            owned = self._owned(connection, [o.id for o in outcomes])
            ours = [o for o in outcomes if o.id in owned and owned[o.id].attempt == o.attempt]
            for statement, rows in _by_statement(ours, now).items():
                statement.execute_many(connection, rows)
        return [Ended(o.id, owned[o.id].client) for o in ours]

    def _owned(self, connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
        return {row.id: row for row in sql.OWNED.execute(connection, ids=ids).all()}

    def keep_refused(self, attempts: Mapping[str, int], worker: str) -> None:
        """Keep, for the jobs' history, that these attempts came back too late and were not written."""
        fixed = {"worker": worker, "now": self.ledger.now(), "reason": TOO_LATE}
        with self.ledger.write(durable=False) as connection:
            rows = [fixed | {"id": id, "attempt": attempt} for id, attempt in attempts.items()]
            sql.KEEP_REFUSED.execute_many(connection, rows)

    def postpone(self, jobs: Sequence[Postponed]) -> tuple[list[str], list[Ended]]:
        """Queue attempts that met a transient error again, for later; the ids so queued, and the jobs that ended instead.

        Those are canceled: a user had asked for it. What the attempts no longer hold is in neither list.
        """
        now = self.ledger.now()
        with self.ledger.write() as connection:
            owned = self._owned(connection, [job.id for job in jobs])
            ours = [job for job in jobs if job.id in owned and owned[job.id].attempt == job.attempt]
            stop = [job for job in ours if owned[job.id].cancel_requested_at is not None]
            later = [job for job in ours if owned[job.id].cancel_requested_at is None]
            if stop:
                sql.STOP.execute_many(connection, [_attempt(job, now) for job in stop])
            if later:
                rows = [_later(job, now) for job in later]
                sql.KEEP_POSTPONED.execute_many(connection, rows)
                sql.POSTPONE.execute_many(connection, rows)
        return [job.id for job in later], [Ended(job.id, owned[job.id].client) for job in stop]

    def release(self, ids: Sequence[str], worker: str, attempts: Mapping[str, int] | None = None) -> list[RoutedJob]:
        """Give claimed jobs back unrun, their attempt uncounted; what to send them again with.

        Those that a user wants canceled are canceled instead. With `attempts` only these are given back: another worker of the
        same name may hold a later one.
        """
        with self.ledger.write() as connection:
            if attempts is not None:
                owned = self._owned(connection, ids)
                ids = [id for id in ids if id in owned and owned[id].attempt == attempts[id]]
            values = {"ids": ids, "worker": worker, "now": self.ledger.now()}
            sql.STOP_RELEASED.execute(connection, **values)
            sql.KEEP_RELEASED.execute(connection, **values)
            return routed_jobs(sql.RELEASE.execute(connection, **values))

    def free_crashed(
        self, ids: Sequence[str], worker: str, reason: str, *, suspect: bool = True, attempt: int | None = None
    ) -> tuple[list[RoutedJob], list[Ended]]:
        """The process that ran these jobs died: free those with attempts left, fail the others as WorkerLost.

        What a user wanted canceled is canceled instead, and is among those that ended. Jobs that are not `suspect`, because the
        process died of something else, do not count a crash. With `attempt` only this one is meant.
        """
        return free_lost(
            self.ledger, CRASHED, reason, int(suspect), {"ids": ids, "worker": worker, "only_attempt": attempt}
        )

    def mark_unsent(self, ids: Sequence[str]) -> None:
        """Note that the message of these jobs did not go out, so that the next sweep sends it."""
        with self.ledger.write() as connection:
            sql.MARK_UNSENT.execute(connection, ids=ids)


def _by_statement(outcomes: Sequence[Finished], now: float) -> dict[Statement, list[dict[str, Any]]]:
    """What to execute for these: few statements, each for many jobs."""
    found: dict[Statement, list[dict[str, Any]]] = {}
    for o in outcomes:
        row = _attempt(o, now)
        if o.ending is not None:
            statement = sql.STOP if o.ending is Transition.CANCEL else sql.EXPIRE_UNBEGUN
        elif o.error is None:
            statement = sql.SUCCEED
            row |= {"result": o.result, "result_ref": o.result_ref}
        else:
            statement = sql.FAIL
            row["error_type"] = plain_text(o.error.type, ERROR_TYPE_LENGTH)
            row["error_message"] = plain_text(o.error.message)
        found.setdefault(statement, []).append(row)
    return found


def _attempt(job: Finished | Postponed, now: float) -> dict[str, Any]:
    return {"id": job.id, "attempt": job.attempt, "now": now}


def _later(job: Postponed, now: float) -> dict[str, Any]:
    uncounted = 0 if job.counted else 1
    return _attempt(job, now) | {
        "not_before": now + job.delay_s, "uncounted": uncounted, "reason": plain_text(job.reason),
    }  # fmt: skip


def _is_there(connection: sqlalchemy.Connection, id: str) -> bool:
    return connection.execute(sqlalchemy.text("SELECT 1 FROM jobs WHERE id = :id"), {"id": id}).scalar() is not None
