"""BatchStore: every SQL statement about batch jobs and their shards. Their rows in `jobs` move by the same rules as others.

A batch's own job is claimed by a worker only to start it or to take it up again; then it is `running` without a lease until
its last shard has ended. Planning is compare-and-swap on `steps`: of two workers that plan at once, one is heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, text

from forebay.contract.job import JobError, JobKind, Transition, new_ids
from forebay.contract.references import plain_text
from forebay.contract.requests.batch import BatchRequest, Position, Shard
from forebay.contract.requests.request import encode
from forebay.contract.requests.shards import ShardOutcome, ShardWork
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.batches.queries import BatchQueries
from forebay.storage.batches.records import Batch
from forebay.storage.jobs.past import REMEMBER_RETRIED
from forebay.storage.jobs.records import ClaimedJob, Ended, NewJob
from forebay.storage.jobs.requests import AFRESH, CANCEL_SHARDS, new_row
from forebay.storage.jobs.statements import END_LEASE, NO_LEASE, ROUTED_JOB, becomes, ended, may, routed_jobs
from forebay.storage.jobs.store import CLAIM_ANY, ENDED, FAIL, STOP, SUCCEED, claimed_job
from forebay.storage.ledger import tables

OPEN = """
INSERT INTO batches (id, output, files, bytes, next_file, next_first, steps, planned)
VALUES (:id, :output, :files, :bytes, 0, 0, 0, :planned) ON CONFLICT (id) DO NOTHING"""

# A batch that is retried does what is missing: shards that failed before it ended, or were canceled, wait afresh. Not those
# that have failed since: a batch that was only woken would never end.
UNDONE = f"""parent_id = :id AND {may(Transition.RETRY)} AND (state = 'canceled' OR finished_at <= (
    SELECT max(ended_at) FROM job_attempts WHERE job_id = :id AND ended IN ('failed', 'canceled', 'expired')))"""
REMEMBER_UNDONE = REMEMBER_RETRIED.replace("{which}", UNDONE)
REVIVE = f"UPDATE jobs SET {AFRESH} WHERE {UNDONE} RETURNING {ROUTED_JOB}"

HAND_OFF = f"UPDATE jobs SET {NO_LEASE} WHERE id = :id AND attempt = :attempt AND {may(Transition.SUCCEED)}"

# Nobody plans for a batch that has ended.
STEP = f"""
UPDATE batches SET next_file = :file, next_first = :first, planned = :planned, steps = steps + 1
WHERE id = :id AND steps = :steps AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = :id AND {may(Transition.SUCCEED)})"""
TOUCH = "UPDATE jobs SET sent_at = :now WHERE id = :id"

# Not with which a process has died: such a shard is run alone, by its own message.
NEXT = """
SELECT id FROM jobs WHERE parent_id = :id AND state = 'queued' AND crashes = 0 AND not_before IS NULL
ORDER BY id LIMIT 1 {skip_locked}"""

BEAT = f"UPDATE jobs SET lease_until = :lease_until {ENDED} RETURNING cancel_requested_at"
COUNT = "UPDATE shards SET rows_done = :done, rows_failed = :failed, seconds = :seconds WHERE id = :id"
FINISH = """
UPDATE shards SET rows = :rows, rows_done = :done, rows_failed = :failed, seconds = :seconds, outcome = :outcome
WHERE id = :id"""
# Its parts are suspects, each with all its attempts before it.
SUSPECT = f"UPDATE jobs SET crashes = 1, uncounted = attempt - 1 {ENDED}"
SHRINK = "UPDATE shards SET pieces = :pieces, rows = :rows, bytes = :bytes WHERE id = :id"

NO_OPEN_SHARD = "NOT EXISTS (SELECT 1 FROM jobs s WHERE s.parent_id = jobs.id AND s.state IN ('queued', 'running'))"
COMPLETE = f"""
UPDATE jobs SET {becomes(Transition.SUCCEED)}, {END_LEASE}, result = :result, result_ref = :ref,
    progress_done = :done, progress_total = :total, progress_message = ''
WHERE id = :id AND {may(Transition.SUCCEED)} AND {NO_OPEN_SHARD} RETURNING id, client"""
GIVE_UP = f"""
UPDATE jobs SET {becomes(Transition.FAIL)}, {END_LEASE}, error_type = :type, error_message = :message,
    progress_done = :done, progress_total = :total
WHERE id = :id AND {may(Transition.FAIL)} RETURNING id, client"""
SHOW = """
UPDATE jobs SET progress_done = :done, progress_total = :total, progress_message = :message
WHERE id = :id AND state = 'running'"""

# A batch whose last worker died between a shard's end and what comes after it: nothing is open, so nobody would look again.
WAKE = f"""
UPDATE jobs SET {becomes(Transition.RELEASE)}, uncounted = uncounted + 1, sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE kind = 'batch' AND {may(Transition.RELEASE)} AND lease_until IS NULL AND sent_at < :before
    AND {NO_OPEN_SHARD} {{skip_locked}}) RETURNING {ROUTED_JOB}"""

MOST = 2**31 - 1  # what the columns of progress hold


class BatchStore(BatchQueries):
    """Starts batches, plans and finishes their shards, ends them. Thread-safe."""

    def start(self, job: ClaimedJob, request: BatchRequest) -> list[RoutedJob]:
        """Make the batch's row where there is none; routed_jobs of the shards that wait afresh because it starts again."""
        values = {"id": job.id, "output": request.output, "files": len(request.files), "bytes": request.bytes}
        with self.ledger.write() as connection:
            connection.execute(text(OPEN), values | {"planned": False})
            undone = {"id": job.id, "now": self.ledger.now()}
            connection.execute(text(REMEMBER_UNDONE), undone)
            return routed_jobs(connection.execute(text(REVIVE), undone))

    def hand_off(self, job: ClaimedJob) -> None:
        """From now on the batch runs without a lease: its shards have theirs."""
        with self.ledger.write() as connection:
            connection.execute(text(HAND_OFF), {"id": job.id, "attempt": job.attempt})

    def plan(
        self, batch: Batch, planned: Sequence[Shard], position: Position, all_planned: bool
    ) -> list[RoutedJob] | None:
        """Add these shards and move on to `position`; None, and nothing is added, when another worker has planned meanwhile
        or the batch has ended.
        """  # fmt: skip
        now = self.ledger.now()
        step = {"id": batch.id, "file": position.file, "first": position.first, "planned": all_planned}
        with self.ledger.write() as connection:
            if connection.execute(text(STEP), step | {"steps": batch.steps}).rowcount == 0:
                return None
            connection.execute(text(TOUCH), {"id": batch.id, "now": now})
            jobs = self._add(connection, batch, planned, now)
        return [_ticket(job) for job in jobs]

    def claim_next(self, batch: str, worker: str, lease_s: float) -> ClaimedJob | None:
        """The next shard of a batch that waits and has killed nobody, claimed as any job is; None when there is none."""
        now = self.ledger.now()
        with self.ledger.write(durable=not self.ledger.sqlite) as connection:
            id = connection.execute(self._sql(NEXT), {"id": batch}).scalar()
            if id is None:
                return None
            values = {"ids": self.ledger.bind([id]), "worker": worker, "now": now, "lease_until": now + lease_s}
            row = connection.execute(self._sql(CLAIM_ANY), values).fetchone()
        return None if row is None else claimed_job(row, now)

    def beat(self, work: ShardWork, done: int, failed: int, seconds: float, lease_s: float) -> bool | None:
        """Note a running shard's progress and prolong its lease; whether it is to stop, None when the lease is lost."""
        values = {"id": work.id, "attempt": work.attempt, "lease_until": self.ledger.now() + lease_s}
        with self.ledger.write(durable=False) as connection:
            row = connection.execute(text(BEAT), values).fetchone()
            if row is None:
                return None
            connection.execute(text(COUNT), {"id": work.id, "done": done, "failed": failed, "seconds": seconds})
        return row[0] is not None

    def finish(self, work: ShardWork, outcome: ShardOutcome) -> bool:
        """Write a shard's outcome if the attempt still holds it; what is refused must not be put in place."""
        now = self.ledger.now()
        values = {"id": work.id, "attempt": work.attempt, "now": now, "result": None, "result_ref": None}
        counts = {"id": work.id, "done": outcome.rows, "failed": outcome.failed, "seconds": outcome.seconds}
        rows = outcome.rows + outcome.failed
        with self.ledger.write() as connection:
            if connection.execute(text(SUCCEED), values).rowcount == 0:
                return False
            connection.execute(text(FINISH), counts | {"rows": rows, "outcome": encode(outcome).decode()})
        return True

    def fail(self, work: ShardWork, error: JobError) -> bool:
        """End an attempt with an error, if it still holds the shard."""
        type_, message = plain_text(error.type, 200), plain_text(error.message)
        values = {"id": work.id, "attempt": work.attempt, "now": self.ledger.now()}
        with self.ledger.write() as connection:
            return connection.execute(text(FAIL), values | {"error_type": type_, "error_message": message}).rowcount > 0

    def drop(self, work: ShardWork) -> None:
        """End an attempt that was to be canceled: its work has stopped."""
        with self.ledger.write() as connection:
            connection.execute(text(STOP), {"id": work.id, "attempt": work.attempt, "now": self.ledger.now()})

    def split(self, work: ShardWork, kept: Shard, given: Shard, batch: Batch) -> list[RoutedJob] | None:
        """Keep the first half of a running shard and make a waiting one of the rest; None when the lease is lost."""
        with self.ledger.write() as connection:
            return self._give(connection, work, kept, [given], batch, crashes=0)

    def cut(self, work: ShardWork, kept: Shard, given: Sequence[Shard], batch: Batch) -> list[RoutedJob] | None:
        """Keep the first part of a running shard that has killed, make waiting ones of the others; None when the lease is lost.

        All are suspects: they run alone, and count their attempts afresh.
        """
        with self.ledger.write() as connection:
            if connection.execute(text(SUSPECT), {"id": work.id, "attempt": work.attempt}).rowcount == 0:
                return None
            return self._give(connection, work, kept, given, batch, crashes=1)

    def _give(
        self,
        connection: Connection,
        work: ShardWork,
        kept: Shard,
        given: Sequence[Shard],
        batch: Batch,
        *,
        crashes: int,
    ) -> list[RoutedJob] | None:
        now = self.ledger.now()
        lease = {"id": work.id, "attempt": work.attempt, "lease_until": now + work.lease_s}
        if connection.execute(text(BEAT), lease).fetchone() is None:
            return None
        values = {"id": work.id, "pieces": encode(kept.pieces).decode(), "rows": kept.rows, "bytes": kept.bytes}
        connection.execute(text(SHRINK), values)
        jobs = self._add(connection, batch, given, now, crashes=crashes)
        return [_ticket(job, crashes) for job in jobs]

    def _add(
        self, connection: Connection, batch: Batch, planned: Sequence[Shard], now: float, *, crashes: int = 0
    ) -> list[NewJob]:
        jobs = [_new_job(batch, shard, id) for shard, id in zip(planned, new_ids(len(planned)), strict=True)]
        if jobs:
            connection.execute(tables.jobs.insert(), [new_row(job, now) | {"crashes": crashes} for job in jobs])
            pairs = zip(jobs, planned, strict=True)
            connection.execute(tables.shards.insert(), [_shard_row(batch.id, job.id, s) for job, s in pairs])
        return jobs

    def complete(self, id: str, result: bytes | None, ref: str | None, done: int, total: int) -> list[Ended]:
        """The batch has succeeded; nothing when it has ended otherwise, or a shard is open after all."""
        values = {"id": id, "now": self.ledger.now(), "result": result, "ref": ref}
        counts = {"done": min(done, MOST), "total": min(total, MOST)}
        with self.ledger.write() as connection:
            return ended(connection.execute(text(COMPLETE), values | counts))

    def give_up(self, id: str, error: JobError, done: int, total: int) -> list[Ended]:
        """The batch has failed; shards that wait are canceled, those that run are asked to stop."""
        values = {"id": id, "now": self.ledger.now(), "type": error.type, "message": plain_text(error.message)}
        counts = {"done": min(done, MOST), "total": min(total, MOST)}
        with self.ledger.write() as connection:
            over = ended(connection.execute(text(GIVE_UP), values | counts))
            for job in over:
                self._cancel_shards(connection, job.id)
        return over

    def cancel_shards(self, id: str) -> None:
        """Of a batch that has ended: cancel the shards that wait, ask those that run to stop."""
        with self.ledger.write() as connection:
            self._cancel_shards(connection, id)

    def show(self, id: str, done: int, total: int, message: str) -> None:
        """What `forebay jobs` shows of a running batch."""
        values = {"id": id, "done": min(done, MOST), "total": min(total, MOST), "message": message}
        with self.ledger.write(durable=False) as connection:
            connection.execute(text(SHOW), values)

    def wake(self, older_than_s: float) -> list[RoutedJob]:
        """Batches that nobody has looked after for so long though nothing of them is open: queued again, to be sent."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            rows = connection.execute(self._sql(WAKE), {"now": now, "before": now - older_than_s})
            return routed_jobs(rows)

    def _cancel_shards(self, connection: Connection, id: str) -> None:
        connection.execute(self._sql(CANCEL_SHARDS), {"ids": self.ledger.bind([id]), "now": self.ledger.now()})


def _new_job(batch: Batch, shard: Shard, id: str) -> NewJob:
    return NewJob(
        id, JobKind.SHARD, batch.model, batch.version, batch.queue, batch.priority, batch.max_attempts,
        rows=min(shard.rows, MOST), parent_id=batch.id,
    )  # fmt: skip


def _ticket(job: NewJob, crashes: int = 0) -> RoutedJob:
    return RoutedJob(job.id, job.model, job.version, job.queue, job.priority, crashes, exclusive=True)


def _shard_row(batch: str, id: str, shard: Shard) -> dict[str, Any]:
    return {
        "id": id, "batch_id": batch, "pieces": encode(shard.pieces).decode(), "part": shard.part, "rows": shard.rows,
        "bytes": shard.bytes, "rows_done": 0, "rows_failed": 0, "seconds": 0.0, "outcome": None,
    }  # fmt: skip
