"""What users ask of the ledger: adding jobs, within what a queue may hold, canceling and retrying them.

Part of JobStore, which adds what workers and sweepers do. Sending what was added or retried is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from forebay.contract.errors import IllegalTransition, InvalidInput, QueueFull
from forebay.contract.job import JobKind, JobState, Transition, after
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.past import REMEMBER_RETRIED
from forebay.storage.jobs.queries import WAITING, JobQueries
from forebay.storage.jobs.records import Ended, NewJob, json_text
from forebay.storage.jobs.statements import NO_LEASE, ROUTED_JOB, becomes, ended, may, routed_jobs
from forebay.storage.ledger import tables
from forebay.storage.ledger.connection import Ledger

# PostgreSQL only. One lock for each of 256 buckets of keys, in order: many keys must not fill its table of locks.
LOCK_KEYS = """
SELECT pg_advisory_xact_lock(1701013616, bucket) FROM (
    SELECT DISTINCT hashtext(key) & 255 AS bucket FROM unnest(CAST(:ids AS text[])) AS key ORDER BY bucket) AS buckets"""
BY_KEY = "SELECT idempotency_key, id, request_hash FROM jobs WHERE idempotency_key {ids}"
# PostgreSQL only, where two who count at once would not see what the other adds.
LOCK_QUEUE = "SELECT pg_advisory_xact_lock(1701013617, hashtext(:queue))"

# What waits ends here and now, and so does a batch, which no worker runs: its shards are what runs. Another running job is
# only marked, for the worker that runs it to see.
ENDS_NOW = "state = 'queued' OR kind = 'batch'"
CANCEL = f"""
UPDATE jobs SET
    cancel_requested_at = CASE WHEN {ENDS_NOW} THEN NULL ELSE coalesce(cancel_requested_at, :now) END,
    finished_at = CASE WHEN {ENDS_NOW} THEN :now ELSE finished_at END,
    lease_until = CASE WHEN {ENDS_NOW} THEN NULL ELSE lease_until END,
    not_before = NULL,
    state = CASE WHEN {ENDS_NOW} THEN '{JobState.CANCELED}' ELSE state END
WHERE id IN (SELECT id FROM jobs WHERE {{whose}} AND {may(Transition.CANCEL)} ORDER BY id {{for_update}})
RETURNING id, client, state, kind"""
CANCEL_JOBS = CANCEL.replace("{whose}", "id {ids}")
CANCEL_SHARDS = CANCEL.replace("{whose}", "parent_id {ids}")

AFRESH = f"""{becomes(Transition.RETRY)}, {NO_LEASE}, uncounted = attempt, crashes = 0, sent_at = :now, started_at = NULL,
    finished_at = NULL, deadline_at = NULL, cancel_requested_at = NULL, not_before = NULL, error_type = NULL,
    error_message = NULL, progress_done = 0, progress_message = ''"""
RETRY = f"UPDATE jobs SET {AFRESH} WHERE id = :id AND {may(Transition.RETRY)} RETURNING {ROUTED_JOB}"

# What has failed is looked for by a read, which holds up nobody; only then are those rows, a bounded number, written.
# A shard is retried by its batch.
FAILED = "state IN ('failed', 'expired') AND parent_id IS NULL"
FIND_FAILED = f"SELECT id FROM jobs WHERE {FAILED} AND id > :after {{model}} ORDER BY id LIMIT :limit"
COUNT_FAILED = f"SELECT count(*) FROM jobs WHERE {FAILED} {{model}}"
RETRY_FAILED = f"""
UPDATE jobs SET {AFRESH} WHERE id IN (SELECT id FROM jobs WHERE id {{ids}} AND {FAILED} ORDER BY id {{for_update}})
RETURNING {ROUTED_JOB}"""

REMEMBER_ONE = REMEMBER_RETRIED.replace("{which}", f"id = :id AND {may(Transition.RETRY)}")
REMEMBER_FAILED = REMEMBER_RETRIED.replace("{which}", f"id {{ids}} AND {FAILED}")


class JobRequests(JobQueries):
    """The users' half of JobStore. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._insert = tables.jobs.insert()

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
        with self.ledger.write() as connection:
            ids = self._known(connection, jobs)
            fresh = [row for row, id in zip(rows, ids, strict=True) if row["id"] == id]
            if not fresh:
                return ids
            if max_queue_size is None or self._fits(connection, jobs[0].queue, len(fresh), max_queue_size):
                connection.execute(self._insert, fresh)
                return ids
        raise self.refusal(jobs[0].queue, len(fresh), max_queue_size)

    def _known(self, connection: Connection, jobs: Sequence[NewJob]) -> list[str]:
        """For each job its id, or that of the job whose idempotency key it shares."""
        keys = sorted({job.idempotency_key for job in jobs if job.idempotency_key is not None})
        if not keys:
            return [job.id for job in jobs]
        if not self.ledger.sqlite:  # two clients with one key: the second waits here and then finds the first's job
            connection.execute(text(LOCK_KEYS), {"ids": keys})
        found = connection.execute(self._sql(BY_KEY), {"ids": self.ledger.bind(keys)})
        known: dict[str, tuple[str, str | None]] = {key: (id, hash) for key, id, hash in found}
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
            connection.execute(text(LOCK_QUEUE), {"queue": queue})
        waiting = connection.execute(self._sql(WAITING), {"queue": queue, "at_most": maximum}).scalar_one()
        return int(waiting) + adding <= maximum

    def refusal(self, queue: str, adding: int, maximum: int) -> QueueFull:
        """Why `adding` jobs do not fit into this queue, and when they might, by the pace at which its jobs end."""
        depth = self.waiting(queue, 2 * maximum)
        about = f"queue {queue!r} takes at most {maximum} waiting jobs and holds {depth}"
        if adding > maximum:
            advice = f"{adding} jobs at once never fit: submit at most {maximum} at a time, or raise max_queue_size"
            return QueueFull(f"{about}; {advice}; nothing was stored", queue=queue, depth=depth, maximum=maximum)
        pace = self.pace(queue)
        wait = max(0.1, round((depth + adding - maximum) / pace, 1)) if pace else None
        advice = f"try again in about {wait:g} s" if wait else "none of its jobs has ended of late: is a worker there?"
        return QueueFull(
            f"{about}: there is no room for {adding} more; {advice}; nothing was stored",
            queue=queue, depth=depth, maximum=maximum, retry_after_s=wait,
        )  # fmt: skip

    def cancel(self, ids: Sequence[str]) -> list[Ended]:
        """Cancel those of the jobs that wait or are batches, which are given back; ask those that run, and the running shards
        of those batches, to stop (`cancel_requested_at`).
        """  # fmt: skip
        with self.ledger.write() as connection:
            values = {"ids": self.ledger.bind(ids), "now": self.ledger.now()}
            rows = connection.execute(self._sql(CANCEL_JOBS), values).fetchall()
            batches = [id for id, _, _, kind in rows if kind == JobKind.BATCH]
            if batches:
                connection.execute(self._sql(CANCEL_SHARDS), values | {"ids": self.ledger.bind(batches)})
            return ended((id, client) for id, client, state, _ in rows if state == JobState.CANCELED)

    def retry(self, id: str) -> RoutedJob:
        """Queue a failed, expired or canceled job afresh; JobNotFound or IllegalTransition otherwise."""
        values = {"id": id, "now": self.ledger.now()}
        with self.ledger.write() as connection:
            connection.execute(self._sql(REMEMBER_ONE), values)
            retried = routed_jobs(connection.execute(self._sql(RETRY), values))
        if retried:
            return retried[0]
        after(self.get(id).state, Transition.RETRY)
        raise IllegalTransition(f"job {id} changed while it was being retried; look at it again")

    def retry_failed(
        self, *, model: str | None = None, version: int | None = None, after_id: str = "", limit: int = 5000
    ) -> tuple[list[RoutedJob], str | None]:
        """Queue up to `limit` failed and expired jobs afresh, in the order of their ids from `after_id` on.

        The routed_jobs to send them with, and the last id that was looked at: `after_id` of the next call, None when there is
        nothing behind it.
        """
        sql, values = _of_model(FIND_FAILED, model, version)
        with self.ledger.read() as connection:
            ids = list(connection.execute(self._sql(sql), values | {"after": after_id, "limit": limit}).scalars())
        if not ids:
            return [], None
        with self.ledger.write() as connection:
            those = {"ids": self.ledger.bind(ids), "now": self.ledger.now()}
            connection.execute(self._sql(REMEMBER_FAILED), those)
            found = connection.execute(self._sql(RETRY_FAILED), those)
            return routed_jobs(found), ids[-1] if len(ids) == limit else None

    def count_failed(self, *, model: str | None = None, version: int | None = None) -> int:
        """How many jobs have failed or expired."""
        sql, values = _of_model(COUNT_FAILED, model, version)
        with self.ledger.read() as connection:
            return int(connection.execute(self._sql(sql), values).scalar_one())


def _of_model(statement: str, model: str | None, version: int | None) -> tuple[str, dict[str, Any]]:
    given = {"model": model, "version": version}
    values = {name: value for name, value in given.items() if value is not None}
    return statement.replace("{model}", "".join(f"AND {name} = :{name} " for name in values)), values


def new_row(job: NewJob, now: float) -> dict[str, Any]:
    """A new job as the values of its row."""
    return {
        "id": job.id,
        "kind": job.kind.value,
        "state": JobState.QUEUED.value,
        "model": job.model,
        "version": job.version,
        "queue": job.queue,
        "priority": job.priority,
        "attempt": 0,
        "uncounted": 0,
        "max_attempts": job.max_attempts,
        "created_at": now,
        "sent_at": now,
        "deadline_at": job.deadline_at,
        "progress_done": 0,
        "progress_total": job.rows,
        "progress_message": "",
        "metadata": json_text("metadata", dict(job.metadata), sort_keys=True) if job.metadata else "{}",
        "parent_id": job.parent_id,
        "client": job.client,
        "idempotency_key": job.idempotency_key,
        "request_hash": job.request_hash,
        "input": job.input,
        "input_ref": job.input_ref,
    }
