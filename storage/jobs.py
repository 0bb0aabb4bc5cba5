"""JobStore: every SQL statement about jobs. This half changes them; storage.job_reports, its base, only reads.

Each statement is one transition of contract.job, fenced so that only whoever may make it can: a claim takes queued rows, a
finish needs the attempt it was claimed with. What the payloads mean, and who is told, is left to others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, text

from forebay.contract.errors import IllegalTransition, InvalidInput
from forebay.contract.job import TRANSITIONS, JobError, JobKind, JobState, Transition, after
from forebay.contract.messages import Ticket
from forebay.storage import tables
from forebay.storage.job_reports import JobReports
from forebay.storage.ledger import Ledger
from forebay.storage.records import ClaimedJob, Ended, Finished, NewJob, json_text, plain_text


def _may(transition: Transition) -> str:
    sources = ", ".join(f"'{state}'" for state in sorted(TRANSITIONS[transition][0]))
    return f"state IN ({sources})"


def _becomes(transition: Transition) -> str:
    return f"state = '{TRANSITIONS[transition][1]}'"


# `attempt` only ever grows, so a zombie's number never comes up again; `uncounted` of them do not count against the limit.
COUNTED = "attempt - uncounted"
# Batches and shards travel alone, each as long as many jobs, like jobs that were tried before.
TICKET = f"id, model, version, queue, priority, {COUNTED} + CASE WHEN kind IN ('batch', 'shard') THEN 1 ELSE 0 END"
ERROR_TYPE_LENGTH = 200
NO_LEASE = "worker = NULL, lease_until = NULL"
END_LEASE = "lease_until = NULL, finished_at = :now"

CLAIM = f"""
UPDATE jobs SET {_becomes(Transition.CLAIM)}, attempt = attempt + 1, worker = :worker,
    lease_until = :lease_until, started_at = :now
WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND {_may(Transition.CLAIM)}
    AND (deadline_at IS NULL OR deadline_at > :now) {{skip_locked}})
RETURNING id, kind, model, version, queue, attempt, max_attempts, client, progress_total, input, input_ref, {COUNTED}"""

# Who waits for rows takes them in the order of their ids, else two of them could wait for each other.
RENEW = f"""
UPDATE jobs SET lease_until = :lease_until WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND worker = :worker AND {_may(Transition.SUCCEED)} ORDER BY id {{for_update}})
RETURNING id"""

OWNED = (
    f"SELECT id, attempt, client FROM jobs WHERE id {{ids}} AND {_may(Transition.SUCCEED)} ORDER BY id {{for_update}}"
)

SUCCEED = f"""
UPDATE jobs SET {_becomes(Transition.SUCCEED)}, {END_LEASE}, result = :result, result_ref = :result_ref,
    progress_done = progress_total, error_type = NULL, error_message = NULL
WHERE id = :id AND attempt = :attempt AND {_may(Transition.SUCCEED)}"""

FAIL = f"""
UPDATE jobs SET {_becomes(Transition.FAIL)}, {END_LEASE}, error_type = :error_type, error_message = :error_message
WHERE id = :id AND attempt = :attempt AND {_may(Transition.FAIL)}"""

RELEASE = f"""
UPDATE jobs SET {_becomes(Transition.RELEASE)}, {NO_LEASE}, uncounted = uncounted + 1, started_at = NULL, sent_at = :now
WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND worker = :worker AND {_may(Transition.RELEASE)} ORDER BY id {{for_update}})
RETURNING {TICKET}"""

# A crash, told by the worker's parent for its own jobs or by the sweeper for lapsed leases: the attempt counts.
LOST = "({whose}) AND " + _may(Transition.RELEASE)
WHOSE_CRASHED = "id {ids} AND worker = :worker"
WHOSE_LAPSED = "lease_until < :now"
FAIL_LOST = f"""
UPDATE jobs SET {_becomes(Transition.FAIL)}, {END_LEASE}, error_type = 'WorkerLost', error_message = :reason
WHERE id IN (SELECT id FROM jobs WHERE {LOST} AND {COUNTED} >= max_attempts {{skip_locked}}) RETURNING id, client"""
FREE_LOST = f"""
UPDATE jobs SET {_becomes(Transition.RELEASE)}, {NO_LEASE}, sent_at = :now, progress_message = :reason
WHERE id IN (SELECT id FROM jobs WHERE {LOST} AND {COUNTED} < max_attempts {{skip_locked}}) RETURNING {TICKET}"""

# The parent of a dead child speaks once: it waits for its rows, where a sweeper would pass over those that are locked.
LOCK_CRASHED = f"SELECT id FROM jobs WHERE {WHOSE_CRASHED} AND {_may(Transition.RELEASE)} ORDER BY id {{for_update}}"

EXPIRE = f"""
UPDATE jobs SET {_becomes(Transition.EXPIRE)}, finished_at = :now
WHERE id IN (
    SELECT id FROM jobs WHERE {_may(Transition.EXPIRE)} AND deadline_at IS NOT NULL AND deadline_at <= :now {{skip_locked}})
RETURNING id, client"""

CANCEL = f"""
UPDATE jobs SET {_becomes(Transition.CANCEL)}, finished_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND state = 'queued' ORDER BY id {{for_update}}) RETURNING id, client"""

RETRY = f"""
UPDATE jobs SET {_becomes(Transition.RETRY)}, {NO_LEASE}, uncounted = attempt, sent_at = :now, started_at = NULL,
    finished_at = NULL, deadline_at = NULL, error_type = NULL, error_message = NULL, progress_done = 0, progress_message = ''
WHERE id = :id AND {_may(Transition.RETRY)} RETURNING {TICKET}"""

# Whether a queue lost its messages is the sweeper's to know: it asks Redis. Marking them sent keeps a second sweeper off.
RESEND = f"""
UPDATE jobs SET sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND queue = :queue AND sent_at < :before
    ORDER BY priority, id LIMIT :limit {{skip_locked}}) RETURNING {TICKET}"""
QUEUED = f"SELECT {TICKET} FROM jobs WHERE id {{ids}} AND state = 'queued'"
MARK_UNSENT = """
UPDATE jobs SET sent_at = 0 WHERE id IN (
    SELECT id FROM jobs WHERE id {ids} AND state = 'queued' ORDER BY id {for_update})"""

# PostgreSQL only. One lock for each of 256 buckets of keys, in order: many keys must not fill its table of locks.
LOCK_KEYS = """
SELECT pg_advisory_xact_lock(1701013616, bucket) FROM (
    SELECT DISTINCT hashtext(key) & 255 AS bucket FROM unnest(CAST(:ids AS text[])) AS key ORDER BY bucket) AS buckets"""
BY_KEY = "SELECT idempotency_key, id, request_hash FROM jobs WHERE idempotency_key {ids}"
PURGE = """
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE state IN ('succeeded', 'failed', 'canceled', 'expired') AND finished_at < :before
    AND (parent_id IS NULL OR NOT EXISTS (SELECT 1 FROM jobs AS batch WHERE batch.id = jobs.parent_id))
    LIMIT :limit {skip_locked})"""


class JobStore(JobReports):
    """Adds jobs to the ledger and moves them from state to state. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger)
        self._insert = tables.jobs.insert()

    def add(self, jobs: Sequence[NewJob]) -> list[str]:
        """Commit all jobs in one transaction and give their ids, in order.

        A job whose idempotency key is known and whose request is the same gives the existing id and adds nothing;
        InvalidInput when the request differs, and then none of the jobs is added.
        """
        if not jobs:
            return []
        now = self.ledger.now()
        rows = [_row(job, now) for job in jobs]
        keyed = [job for job in jobs if job.idempotency_key is not None]
        with self.ledger.write() as connection:
            if not keyed:
                connection.execute(self._insert, rows)
                return [job.id for job in jobs]
            return self._add_keyed(connection, jobs, rows)

    def _add_keyed(self, connection: Connection, jobs: Sequence[NewJob], rows: list[dict[str, Any]]) -> list[str]:
        keys = sorted({job.idempotency_key for job in jobs if job.idempotency_key is not None})
        if not self.ledger.sqlite:  # two clients with one key: the second waits here and then finds the first's job
            connection.execute(text(LOCK_KEYS), {"ids": keys})
        found = connection.execute(self._sql(BY_KEY), {"ids": self.ledger.bind(keys)})
        known: dict[str, tuple[str, str | None]] = {key: (id, hash) for key, id, hash in found}
        ids, fresh = [], []
        for job, row in zip(jobs, rows, strict=True):
            key = job.idempotency_key
            if key is not None and key in known:
                id, request_hash = known[key]
                if request_hash != job.request_hash:
                    raise InvalidInput(
                        f"idempotency_key {key!r} belongs to job {id}, which is a different request; use another key"
                    )
                ids.append(id)
                continue
            if key is not None:
                known[key] = (job.id, job.request_hash)
            ids.append(job.id)
            fresh.append(row)
        if fresh:
            connection.execute(self._insert, fresh)
        return ids

    def claim(self, ids: Sequence[str], worker: str, lease_s: float) -> list[ClaimedJob]:
        """Take those of the jobs that are queued and not past their deadline, in the order given; the rest is not ours."""
        now = self.ledger.now()
        values = {"ids": self.ledger.bind(ids), "worker": worker, "now": now, "lease_until": now + lease_s}
        with self.ledger.write(durable=False) as connection:
            rows = connection.execute(self._sql(CLAIM), values).fetchall()
        place = {id: i for i, id in enumerate(ids)}
        return [ClaimedJob(r[0], JobKind(r[1]), *r[2:]) for r in sorted(rows, key=lambda r: place[r[0]])]

    def renew(self, ids: Sequence[str], worker: str, lease_s: float) -> set[str]:
        """Prolong the leases of this worker's running jobs; the ids it still holds."""
        values = {"ids": self.ledger.bind(ids), "worker": worker, "lease_until": self.ledger.now() + lease_s}
        with self.ledger.write(durable=False) as connection:
            return set(connection.execute(self._sql(RENEW), values).scalars())

    def finish(self, outcomes: Sequence[Finished]) -> list[Ended]:
        """Write results and errors of attempts that still hold their jobs; those written, the others are dropped."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            owned = self._owned(connection, [o.id for o in outcomes])
            ours = [o for o in outcomes if owned.get(o.id, (0, None))[0] == o.attempt]
            good = [o for o in ours if o.error is None]
            bad = [(o, o.error) for o in ours if o.error is not None]
            if good:
                connection.execute(self._sql(SUCCEED), [_success(o, now) for o in good])
            if bad:
                connection.execute(self._sql(FAIL), [_failure(o, error, now) for o, error in bad])
        return [Ended(o.id, owned[o.id][1]) for o in ours]

    def _owned(self, connection: Connection, ids: Sequence[str]) -> dict[str, tuple[int, str | None]]:
        rows = connection.execute(self._sql(OWNED), {"ids": self.ledger.bind(ids)})
        return {id: (attempt, client) for id, attempt, client in rows}

    def release(self, ids: Sequence[str], worker: str) -> list[Ticket]:
        """Give claimed jobs back unrun, their attempt uncounted; tickets to send them again."""
        values = {"ids": self.ledger.bind(ids), "worker": worker, "now": self.ledger.now()}
        with self.ledger.write() as connection:
            return _tickets(connection.execute(self._sql(RELEASE), values))

    def crashed(self, ids: Sequence[str], worker: str, reason: str) -> tuple[list[Ticket], list[Ended]]:
        """The process that ran these jobs died: free those with attempts left, fail the others as WorkerLost."""
        return self._lost(WHOSE_CRASHED, {"ids": self.ledger.bind(ids), "worker": worker, "reason": plain_text(reason)})

    def free_lapsed(self) -> tuple[list[Ticket], list[Ended]]:
        """The same for every job whose lease was not renewed."""
        return self._lost(WHOSE_LAPSED, {"reason": "the worker's lease lapsed: it died, hung or lost the ledger"})

    def _lost(self, whose: str, values: dict[str, Any]) -> tuple[list[Ticket], list[Ended]]:
        values["now"] = self.ledger.now()
        with self.ledger.write() as connection:
            if whose == WHOSE_CRASHED:
                connection.execute(self._sql(LOCK_CRASHED), values).fetchall()
            failed = _ended(connection.execute(self._sql(FAIL_LOST.replace("{whose}", whose)), values))
            return _tickets(connection.execute(self._sql(FREE_LOST.replace("{whose}", whose)), values)), failed

    def expire(self) -> list[Ended]:
        """End every queued job whose deadline has passed."""
        with self.ledger.write() as connection:
            return _ended(connection.execute(self._sql(EXPIRE), {"now": self.ledger.now()}))

    def cancel(self, ids: Sequence[str]) -> list[Ended]:
        """Cancel those of the jobs that are still queued."""
        with self.ledger.write() as connection:
            values = {"ids": self.ledger.bind(ids), "now": self.ledger.now()}
            return _ended(connection.execute(self._sql(CANCEL), values))

    def retry(self, id: str) -> Ticket:
        """Queue a failed, expired or canceled job afresh; JobNotFound or IllegalTransition otherwise."""
        with self.ledger.write() as connection:
            tickets = _tickets(connection.execute(self._sql(RETRY), {"id": id, "now": self.ledger.now()}))
        if tickets:
            return tickets[0]
        after(self.get(id).state, Transition.RETRY)
        raise IllegalTransition(f"job {id} changed while it was being retried; look at it again")

    def take_unsent(self, queue: str, older_than_s: float, limit: int = 10_000) -> list[Ticket]:
        """Queued jobs last sent longer ago than `older_than_s` seconds, marked as sent now: the caller sends them."""
        now = self.ledger.now()
        values = {"queue": queue, "now": now, "before": now - older_than_s, "limit": limit}
        with self.ledger.write() as connection:
            return _tickets(connection.execute(self._sql(RESEND), values))

    def queued(self, ids: Sequence[str]) -> list[Ticket]:
        """Tickets of those of the jobs that are queued."""
        with self.ledger.read() as connection:
            return _tickets(connection.execute(self._sql(QUEUED), {"ids": self.ledger.bind(ids)}))

    def mark_unsent(self, ids: Sequence[str]) -> None:
        """Say that the message of these jobs did not go out, so that the next sweep sends it."""
        with self.ledger.write() as connection:
            connection.execute(self._sql(MARK_UNSENT), {"ids": self.ledger.bind(ids)})

    def purge(self, older_than_s: float, limit: int = 1000) -> int:
        """Delete up to `limit` jobs that ended longer ago than `older_than_s` seconds; how many."""
        with self.ledger.write() as connection:
            values = {"before": self.ledger.now() - older_than_s, "limit": limit}
            return connection.execute(self._sql(PURGE), values).rowcount


def _row(job: NewJob, now: float) -> dict[str, Any]:
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


def _success(o: Finished, now: float) -> dict[str, Any]:
    return {"id": o.id, "attempt": o.attempt, "now": now, "result": o.result, "result_ref": o.result_ref}


def _failure(o: Finished, error: JobError, now: float) -> dict[str, Any]:
    type_, message = plain_text(error.type, ERROR_TYPE_LENGTH), plain_text(error.message)
    return {"id": o.id, "attempt": o.attempt, "now": now, "error_type": type_, "error_message": message}


def _tickets(rows: Iterable[Any]) -> list[Ticket]:
    return [Ticket(*row) for row in sorted(rows)]


def _ended(rows: Iterable[Any]) -> list[Ended]:
    return [Ended(*row) for row in rows]
