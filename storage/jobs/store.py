"""JobStore: every SQL statement about jobs. Here is what workers and sweepers do to them; its bases hold what users ask for
(storage.job_requests) and what is only read (storage.job_reports).

Each statement is one transition of contract.job, fenced so that only whoever may make it can: a claim takes queued rows, a
finish needs the attempt it was claimed with. What the payloads mean, and who is told, is left to others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from forebay.contract.job import JobError, JobKind, Transition
from forebay.contract.references import plain_text
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs import past
from forebay.storage.jobs.records import ClaimedJob, Ended, Finished, Postponed
from forebay.storage.jobs.requests import JobRequests
from forebay.storage.jobs.statements import COUNTED, END_LEASE, NO_LEASE, ROUTED_JOB, becomes, ended, may, routed_jobs

ERROR_TYPE_LENGTH = 200

CLAIM = f"""
UPDATE jobs SET {becomes(Transition.CLAIM)}, attempt = attempt + 1, worker = :worker,
    lease_until = :lease_until, started_at = :now, not_before = NULL
WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND {may(Transition.CLAIM)} {{served}}
    AND (deadline_at IS NULL OR deadline_at > :now) AND (not_before IS NULL OR not_before <= :now) {{skip_locked}})
RETURNING id, kind, model, version, queue, attempt, max_attempts, client, progress_total, input, input_ref, {COUNTED},
    crashes, deadline_at, created_at"""
CLAIM_ANY = CLAIM.replace("{served}", "")
CLAIM_SERVED = CLAIM.replace("{served}", "AND queue {queues}")

# Who waits for rows takes them in the order of their ids, else two of them could wait for each other.
RENEW = f"""
UPDATE jobs SET lease_until = :lease_until WHERE id IN (
    SELECT id FROM jobs WHERE id {{ids}} AND worker = :worker AND {may(Transition.SUCCEED)} ORDER BY id {{for_update}})
RETURNING id"""

OWNED = f"""
SELECT id, attempt, client, cancel_requested_at FROM jobs
WHERE id {{ids}} AND {may(Transition.SUCCEED)} ORDER BY id {{for_update}}"""

SUCCEED = f"""
UPDATE jobs SET {becomes(Transition.SUCCEED)}, {END_LEASE}, result = :result, result_ref = :result_ref,
    progress_done = progress_total, error_type = NULL, error_message = NULL
WHERE id = :id AND attempt = :attempt AND {may(Transition.SUCCEED)}"""

FAIL = f"""
UPDATE jobs SET {becomes(Transition.FAIL)}, {END_LEASE}, error_type = :error_type, error_message = :error_message
WHERE id = :id AND attempt = :attempt AND {may(Transition.FAIL)}"""

# The work of a running job has ended without a result: canceled, or claimed and not begun before its deadline.
ENDED = f"WHERE id = :id AND attempt = :attempt AND {may(Transition.SUCCEED)}"
STOP = f"UPDATE jobs SET {becomes(Transition.CANCEL)}, {END_LEASE} {ENDED}"
EXPIRE_UNBEGUN = f"UPDATE jobs SET {becomes(Transition.EXPIRE)}, {END_LEASE} {ENDED}"

POSTPONE = f"""
UPDATE jobs SET {becomes(Transition.RELEASE)}, {NO_LEASE}, uncounted = uncounted + :uncounted, started_at = NULL,
    sent_at = :now, not_before = :not_before, progress_message = :reason
WHERE id = :id AND attempt = :attempt AND {may(Transition.RELEASE)}"""
FIRST_DUE = "SELECT min(not_before) FROM jobs WHERE state = 'queued' AND not_before IS NOT NULL"
TAKE_DUE = f"""
UPDATE jobs SET sent_at = :now, not_before = NULL WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND not_before IS NOT NULL AND not_before <= :now
    ORDER BY not_before LIMIT :limit {{skip_locked}}) RETURNING {ROUTED_JOB}"""

# What nobody runs any more and a user has asked to stop is canceled; it must not be queued again.
ASKED, NOT_ASKED = "cancel_requested_at IS NOT NULL", "cancel_requested_at IS NULL"
RELEASED = f"id {{ids}} AND worker = :worker AND {may(Transition.RELEASE)}"
STOP_RELEASED = f"""
UPDATE jobs SET {becomes(Transition.CANCEL)}, {END_LEASE} WHERE id IN (
    SELECT id FROM jobs WHERE {RELEASED} AND {ASKED} ORDER BY id {{for_update}})"""
RELEASE = f"""
UPDATE jobs SET {becomes(Transition.RELEASE)}, {NO_LEASE}, uncounted = uncounted + 1, started_at = NULL, sent_at = :now
WHERE id IN (SELECT id FROM jobs WHERE {RELEASED} AND {NOT_ASKED} ORDER BY id {{for_update}})
RETURNING {ROUTED_JOB}"""

# A crash, told by the worker's parent for its own jobs or by the sweeper for lapsed leases: the attempt counts.
LOST = "({whose}) AND " + may(Transition.RELEASE)
WHOSE_CRASHED = "id {ids} AND worker = :worker"
WHOSE_LAPSED = "lease_until < :now"
LAPSED = "the worker's lease lapsed: it died, hung or lost the ledger"
EVIDENCE = f"'attempt ' || ({COUNTED}) || ' of ' || max_attempts || ': ' || CAST(:reason AS text)"
STOP_LOST = f"""
UPDATE jobs SET {becomes(Transition.CANCEL)}, {END_LEASE}
WHERE id IN (SELECT id FROM jobs WHERE {LOST} AND {ASKED} {{skip_locked}}) RETURNING id, client"""
FAIL_LOST = f"""
UPDATE jobs SET {becomes(Transition.FAIL)}, {END_LEASE}, error_type = 'WorkerLost', error_message = {EVIDENCE}
WHERE id IN (SELECT id FROM jobs WHERE {LOST} AND {NOT_ASKED} AND {COUNTED} >= max_attempts {{skip_locked}})
RETURNING id, client"""
FREE_LOST = f"""
UPDATE jobs SET {becomes(Transition.RELEASE)}, {NO_LEASE}, sent_at = :now, progress_message = {EVIDENCE},
    crashes = crashes + :crashes
WHERE id IN (SELECT id FROM jobs WHERE {LOST} AND {NOT_ASKED} AND {COUNTED} < max_attempts {{skip_locked}})
RETURNING {ROUTED_JOB}"""

EXPIRE = f"""
UPDATE jobs SET {becomes(Transition.EXPIRE)}, finished_at = :now
WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND deadline_at IS NOT NULL AND deadline_at <= :now {{skip_locked}})
RETURNING id, client"""

# Whether a queue lost its messages is the sweeper's to know: it asks Redis. Marking them sent keeps a second sweeper off.
RESEND = f"""
UPDATE jobs SET sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE state = 'queued' AND queue = :queue AND sent_at < :before AND not_before IS NULL
    ORDER BY priority, id LIMIT :limit {{skip_locked}}) RETURNING {ROUTED_JOB}"""
QUEUED = f"SELECT {ROUTED_JOB} FROM jobs WHERE id {{ids}} AND state = 'queued' AND not_before IS NULL"
MARK_UNSENT = """
UPDATE jobs SET sent_at = 0 WHERE id IN (
    SELECT id FROM jobs WHERE id {ids} AND state = 'queued' ORDER BY id {for_update})"""

# A shard tells what its batch has written, also to a retry of the batch: it goes after it.
PURGE = """
DELETE FROM jobs WHERE id IN (
    SELECT id FROM jobs WHERE state IN ('succeeded', 'failed', 'canceled', 'expired') AND finished_at < :before
    AND (parent_id IS NULL OR NOT EXISTS (SELECT 1 FROM jobs AS batch WHERE batch.id = jobs.parent_id))
    LIMIT :limit {skip_locked})"""


class JobStore(JobRequests):
    """Keeps the ledger's jobs and moves them from state to state. Thread-safe."""

    def claim(
        self, ids: Sequence[str], worker: str, lease_s: float, queues: Sequence[str] | None = None
    ) -> list[ClaimedJob]:
        """Take those of the jobs that are queued, due and not past their deadline, in the order given; the rest is not ours.

        With `queues` only jobs of these are taken, whatever the message said that brought the ids. On PostgreSQL a claim waits
        for the disk: a server that restarts without having kept it would hand out the same attempt twice. On SQLite what
        takes a claim back takes the worker too.
        """
        now = self.ledger.now()
        values = {"ids": self.ledger.bind(ids), "worker": worker, "now": now, "lease_until": now + lease_s}
        if queues is not None:
            values["queues"] = self.ledger.bind(queues)
        with self.ledger.write(durable=not self.ledger.sqlite) as connection:
            rows = connection.execute(self._sql(CLAIM_ANY if queues is None else CLAIM_SERVED), values).fetchall()
        place = {id: i for i, id in enumerate(ids)}
        return [claimed_job(r, now) for r in sorted(rows, key=lambda r: place[r[0]])]

    def renew(self, ids: Sequence[str], worker: str, lease_s: float) -> set[str]:
        """Prolong the leases of this worker's running jobs; the ids it still holds."""
        values = {"ids": self.ledger.bind(ids), "worker": worker, "lease_until": self.ledger.now() + lease_s}
        with self.ledger.write(durable=False) as connection:
            return set(connection.execute(self._sql(RENEW), values).scalars())

    def finish(self, outcomes: Sequence[Finished]) -> list[Ended]:
        """Write how attempts ended that still hold their jobs; those written, the others are dropped."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            owned = self._owned(connection, [o.id for o in outcomes])
            ours = [o for o in outcomes if o.id in owned and owned[o.id].attempt == o.attempt]
            for statement, values in _by_statement(ours, now).items():
                connection.execute(self._sql(statement), values)
        return [Ended(o.id, owned[o.id].client) for o in ours]

    def _owned(self, connection: Connection, ids: Sequence[str]) -> dict[str, Any]:
        return {row.id: row for row in connection.execute(self._sql(OWNED), {"ids": self.ledger.bind(ids)})}

    def refused(self, attempts: Mapping[str, int], worker: str) -> None:
        """Keep, for the jobs' history, that these attempts came back too late and were not written."""
        told = {"worker": worker, "now": self.ledger.now(), "reason": past.TOO_LATE}
        with self.ledger.write(durable=False) as connection:
            rows = [told | {"id": id, "attempt": attempt} for id, attempt in attempts.items()]
            connection.execute(self._sql(past.REMEMBER_REFUSED), rows)

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
                connection.execute(self._sql(STOP), [{"id": j.id, "attempt": j.attempt, "now": now} for j in stop])
            if later:
                rows = [_later(job, now) for job in later]
                connection.execute(self._sql(past.REMEMBER_POSTPONED), rows)
                connection.execute(self._sql(POSTPONE), rows)
        return [job.id for job in later], [Ended(job.id, owned[job.id].client) for job in stop]

    def take_due(self, limit: int = 10_000) -> list[RoutedJob]:
        """Queued jobs whose `not_before` has come, marked as sent now: the caller sends them. One quick read when none is."""
        with self.ledger.read() as connection:
            first = connection.execute(self._sql(FIRST_DUE)).scalar()
        now = self.ledger.now()
        if first is None or first > now:
            return []
        with self.ledger.write() as connection:
            return routed_jobs(connection.execute(self._sql(TAKE_DUE), {"now": now, "limit": limit}))

    def release(self, ids: Sequence[str], worker: str) -> list[RoutedJob]:
        """Give claimed jobs back unrun, their attempt uncounted; routed_jobs to send them again.

        Those that a user wants canceled are canceled instead.
        """
        values = {"ids": self.ledger.bind(ids), "worker": worker, "now": self.ledger.now()}
        with self.ledger.write() as connection:
            connection.execute(self._sql(STOP_RELEASED), values)
            connection.execute(self._sql(past.REMEMBER_RELEASED), values)
            return routed_jobs(connection.execute(self._sql(RELEASE), values))

    def crashed(
        self, ids: Sequence[str], worker: str, reason: str, *, suspect: bool = True, attempt: int | None = None
    ) -> tuple[list[RoutedJob], list[Ended]]:
        """The process that ran these jobs died: free those with attempts left, fail the others as WorkerLost.

        What a user wanted canceled is canceled instead, and is among those that ended. Jobs that are not `suspect`, for the
        process died of something else, do not count a crash. With `attempt` only this one is meant.
        """
        whose = WHOSE_CRASHED if attempt is None else f"{WHOSE_CRASHED} AND attempt = :attempt"
        values = {"ids": self.ledger.bind(ids), "worker": worker, "reason": plain_text(reason), "crashes": int(suspect)}
        return self._lost(whose, values if attempt is None else values | {"attempt": attempt})

    def free_lapsed(self) -> tuple[list[RoutedJob], list[Ended]]:
        """The same for every job whose lease was not renewed."""
        return self._lost(WHOSE_LAPSED, {"reason": LAPSED, "crashes": 1})

    def _lost(self, whose: str, values: dict[str, Any]) -> tuple[list[RoutedJob], list[Ended]]:
        values["now"] = self.ledger.now()
        with self.ledger.write() as connection:
            # The parent of a dead child speaks once: it waits for its rows, where a sweeper passes over those that are locked.
            lock = "{skip_locked}" if whose == WHOSE_LAPSED else "{for_update}"
            look = past.LOST.format(whose=LOST.replace("{whose}", whose), lock=lock)
            lost = {row.id: row for row in connection.execute(self._sql(look), values)}
            over = [
                job
                for statement in (STOP_LOST, FAIL_LOST)
                for job in ended(connection.execute(self._sql(statement.replace("{whose}", whose)), values))
            ]
            freed = routed_jobs(connection.execute(self._sql(FREE_LOST.replace("{whose}", whose)), values))
            forgotten = past.lost_rows(lost, [routed_job.id for routed_job in freed], values)
            if forgotten:
                connection.execute(self._sql(past.REMEMBER_LOST), forgotten)
            return freed, over

    def expire(self) -> list[Ended]:
        """End every queued job whose deadline has passed."""
        with self.ledger.write() as connection:
            return ended(connection.execute(self._sql(EXPIRE), {"now": self.ledger.now()}))

    def take_unsent(self, queue: str, older_than_s: float, limit: int = 10_000) -> list[RoutedJob]:
        """Queued jobs last sent longer ago than `older_than_s` seconds, marked as sent now: the caller sends them."""
        now = self.ledger.now()
        values = {"queue": queue, "now": now, "before": now - older_than_s, "limit": limit}
        with self.ledger.write() as connection:
            return routed_jobs(connection.execute(self._sql(RESEND), values))

    def queued(self, ids: Sequence[str]) -> list[RoutedJob]:
        """Routes of those of the jobs that are queued."""
        with self.ledger.read() as connection:
            return routed_jobs(connection.execute(self._sql(QUEUED), {"ids": self.ledger.bind(ids)}))

    def mark_unsent(self, ids: Sequence[str]) -> None:
        """Say that the message of these jobs did not go out, so that the next sweep sends it."""
        with self.ledger.write() as connection:
            connection.execute(self._sql(MARK_UNSENT), {"ids": self.ledger.bind(ids)})

    def purge(self, older_than_s: float, limit: int = 1000) -> int:
        """Delete up to `limit` jobs that ended longer ago than `older_than_s` seconds; how many."""
        with self.ledger.write() as connection:
            values = {"before": self.ledger.now() - older_than_s, "limit": limit}
            return connection.execute(self._sql(PURGE), values).rowcount


def claimed_job(row: Any, now: float) -> ClaimedJob:
    """A row that CLAIM gave, as the one who claimed it sees it."""
    id, kind, *rest, created_at = row
    return ClaimedJob(id, JobKind(kind), *(*rest, max(0.0, now - created_at)))


def _by_statement(outcomes: Sequence[Finished], now: float) -> dict[str, list[dict[str, Any]]]:
    """What to execute for these: few statements, each for many jobs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for o in outcomes:
        if o.ending is not None:
            statement = STOP if o.ending is Transition.CANCEL else EXPIRE_UNBEGUN
            found.setdefault(statement, []).append({"id": o.id, "attempt": o.attempt, "now": now})
        elif o.error is None:
            found.setdefault(SUCCEED, []).append(_success(o, now))
        else:
            found.setdefault(FAIL, []).append(_failure(o, o.error, now))
    return found


def _success(o: Finished, now: float) -> dict[str, Any]:
    return {"id": o.id, "attempt": o.attempt, "now": now, "result": o.result, "result_ref": o.result_ref}


def _failure(o: Finished, error: JobError, now: float) -> dict[str, Any]:
    type_, message = plain_text(error.type, ERROR_TYPE_LENGTH), plain_text(error.message)
    return {"id": o.id, "attempt": o.attempt, "now": now, "error_type": type_, "error_message": message}


def _later(job: Postponed, now: float) -> dict[str, Any]:
    return {
        "id": job.id, "attempt": job.attempt, "now": now, "not_before": now + job.delay_s,
        "uncounted": 0 if job.counted else 1, "reason": plain_text(job.reason),
    }  # fmt: skip
