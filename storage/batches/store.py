"""BatchStore: starts batches, plans and finishes their shards, ends them. Their rows in `jobs` move by the same rules as others.

A batch's own job is claimed by a worker only to start it or to take it up again; then it is `running` without a lease until
its last shard has ended. Planning is compare-and-swap on `steps`: of two workers that plan at once, one succeeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from forebay.contract.job import JobError, JobKind, Transition, new_ids
from forebay.contract.references import plain_text
from forebay.contract.requests.batch import BatchRequest, Position, Shard
from forebay.contract.requests.request import encode
from forebay.contract.requests.shards import ShardOutcome, ShardWork
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.batches.queries import BatchQueries
from forebay.storage.batches.records import Batch
from forebay.storage.jobs import statements as sql
from forebay.storage.jobs.records import ClaimedJob, Ended, LeaseLost, NewJob, claimed_job, ended, new_row, routed_jobs
from forebay.storage.jobs.statements import END_LEASE, HELD, NO_LEASE, RESET, ROUTED_JOB, guard, new_state
from forebay.storage.ledger import job_tables
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

OPEN = Statement("""
INSERT INTO batches (id, output, files, bytes, next_file, next_first, steps, planned, part_schema)
VALUES (:id, :output, :files, :bytes, 0, 0, 0, :planned, :part_schema) ON CONFLICT (id) DO NOTHING""")

# A batch that is retried does what is missing: shards that failed before it ended, or were canceled, wait again. Not those
# that have failed since: a batch that was only queued again would never end.
_UNDONE = f"""parent_id = :id AND {guard(Transition.RETRY)} AND (state = 'canceled' OR finished_at <= (
    SELECT max(ended_at) FROM job_attempts WHERE job_id = :id AND ended IN ('failed', 'canceled', 'expired')))"""
KEEP_UNDONE = sql.keep_outcome(_UNDONE)
RETRY_UNDONE = Statement(f"UPDATE jobs SET {RESET} WHERE {_UNDONE} RETURNING {ROUTED_JOB}")

# What was still stopping when its batch was retried has been canceled since, and nobody means that any more.
_CANCELED = "parent_id = :id AND state = 'canceled'"
KEEP_CANCELED = sql.keep_outcome(_CANCELED)
RETRY_CANCELED = Statement(f"UPDATE jobs SET {RESET} WHERE {_CANCELED} RETURNING {ROUTED_JOB}")

HOLD = Statement(f"UPDATE jobs SET progress_done = progress_done {HELD}")
HAND_OFF = Statement(f"UPDATE jobs SET {NO_LEASE} {HELD}")

STEP = Statement("""
UPDATE batches SET next_file = :file, next_first = :first, planned = :planned, steps = steps + 1
WHERE id = :id AND steps = :steps""")
SETTLE_SCHEMA = Statement("UPDATE batches SET part_schema = :settled WHERE id = :id AND part_schema = :known")
# A batch that has ended gets no shards; the row is held, so that it does not end before the new ones are there.
TOUCH = Statement(f"UPDATE jobs SET sent_at = :now WHERE id = :id AND {guard(Transition.SUCCEED)}")

# Not one with which a process has died: such a shard is run alone, by its own message.
NEXT = Statement("""
SELECT id FROM jobs WHERE parent_id = :id AND state = 'queued' AND crashes = 0 AND not_before IS NULL
ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED""")

RENEW = Statement(f"UPDATE jobs SET lease_until = :lease_until {HELD} RETURNING cancel_requested_at")
COUNT = Statement("UPDATE shards SET rows_done = :done, rows_failed = :failed, seconds = :seconds WHERE id = :id")
# Only of the pieces that the ledger knows as this shard's: what was split off is another's.
FINISH = Statement("""
UPDATE shards SET rows = :rows, rows_done = :done, rows_failed = :failed, seconds = :seconds, outcome = :outcome
WHERE id = :id AND pieces = :pieces""")
# Its parts are suspects, each with all its attempts before it.
SUSPECT = Statement(f"UPDATE jobs SET crashes = 1, uncounted = attempt - 1 {HELD}")
SHRINK = Statement("UPDATE shards SET pieces = :pieces, rows = :rows, bytes = :bytes WHERE id = :id")

_NO_OPEN_SHARD = "NOT EXISTS (SELECT 1 FROM jobs s WHERE s.parent_id = jobs.id AND s.state IN ('queued', 'running'))"
COMPLETE = Statement(f"""
UPDATE jobs SET {new_state(Transition.SUCCEED)}, {END_LEASE}, result = :result, result_ref = :ref,
    progress_done = :done, progress_total = :total, progress_message = ''
{HELD} AND {_NO_OPEN_SHARD} RETURNING id, client""")
FAIL_BATCH = Statement(f"""
UPDATE jobs SET {new_state(Transition.FAIL)}, {END_LEASE}, error_type = :type, error_message = :message,
    progress_done = :done, progress_total = :total
{HELD} RETURNING id, client""")
SET_PROGRESS = Statement("""
UPDATE jobs SET progress_done = :done, progress_total = :total, progress_message = :message
WHERE id = :id AND state = 'running'""")

# A batch whose last worker died between a shard's end and what comes after it: nothing is open, so nobody would look again.
REQUEUE_STALLED = Statement(f"""
UPDATE jobs SET {new_state(Transition.RELEASE)}, uncounted = uncounted + 1, sent_at = :now WHERE id IN (
    SELECT id FROM jobs WHERE kind = 'batch' AND {guard(Transition.RELEASE)} AND lease_until IS NULL AND sent_at < :before
    AND {_NO_OPEN_SHARD} FOR UPDATE SKIP LOCKED) RETURNING {ROUTED_JOB}""")

MAX_PROGRESS = 2**31 - 1  # what the columns of progress hold


class BatchStore:
    """Writes batches and their shards. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.queries = BatchQueries(ledger)

    def start(self, job: ClaimedJob, request: BatchRequest, part_schema: bytes = b"") -> list[RoutedJob]:
        """Make the batch's row where there is none; the shards that wait again because the batch starts again, to be sent.

        A batch that starts again keeps the schema that its parts have.
        """
        now = self.ledger.now()
        about = {
            "output": request.output, "files": len(request.files), "bytes": request.bytes, "planned": False,
            "part_schema": part_schema,
        }  # fmt: skip
        with self.ledger.write() as connection:
            if HOLD.execute(connection, id=job.id, attempt=job.attempt).rowcount == 0:
                raise LeaseLost(job.id)
            OPEN.execute(connection, id=job.id, **about)
            KEEP_UNDONE.execute(connection, id=job.id, now=now)
            return routed_jobs(RETRY_UNDONE.execute(connection, id=job.id, now=now))

    def settle_schema(self, id: str, known: bytes, settled: bytes) -> bytes:
        """Make `settled` the schema of a batch's parts if it is still `known`; the schema that it has then."""
        with self.ledger.write() as connection:
            SETTLE_SCHEMA.execute(connection, id=id, known=known, settled=settled)
        return self.queries.get(id).part_schema

    def hand_off(self, job: ClaimedJob) -> None:
        """From now on the batch runs without a lease: its shards have theirs."""
        with self.ledger.write() as connection:
            HAND_OFF.execute(connection, id=job.id, attempt=job.attempt)

    def plan(
        self, batch: Batch, planned: Sequence[Shard], position: Position, all_planned: bool
    ) -> list[RoutedJob] | None:
        """Add these shards and move on to `position`; None, and nothing is added, when another worker has planned meanwhile
        or the batch has ended.
        """  # fmt: skip
        step = {"file": position.file, "first": position.first, "planned": all_planned, "steps": batch.steps}
        with suppress(LeaseLost), self.ledger.write() as connection:
            if TOUCH.execute(connection, id=batch.id, now=self.ledger.now()).rowcount == 0:
                return None
            if STEP.execute(connection, id=batch.id, **step).rowcount == 0:
                raise LeaseLost(batch.id)  # rolled back
            return self._add(connection, batch, planned, planned_now=True)
        return None

    def claim_next(self, batch: str, worker: str, lease_s: float) -> ClaimedJob | None:
        """The next shard of a batch that waits and has killed nobody, claimed as any job is; None when there is none."""
        now = self.ledger.now()
        with self.ledger.write(durable=not self.ledger.sqlite) as connection:
            id = NEXT.execute(connection, id=batch).scalar()
            if id is None:
                return None
            claim = {"worker": worker, "now": now, "lease_until": now + lease_s}
            claimed = sql.CLAIM.dicts(connection, ids=[id], **claim)
        return claimed_job(claimed[0], now) if claimed else None

    def renew(self, work: ShardWork, done: int, failed: int, seconds: float, lease_s: float) -> bool | None:
        """Note a running shard's progress and prolong its lease; whether it is to stop, None when the lease is lost."""
        lease_until = self.ledger.now() + lease_s
        with self.ledger.write(durable=False) as connection:
            row = RENEW.execute(connection, id=work.id, attempt=work.attempt, lease_until=lease_until).fetchone()
            if row is None:
                return None
            COUNT.execute(connection, id=work.id, done=done, failed=failed, seconds=seconds)
        return row.cancel_requested_at is not None

    def finish(self, work: ShardWork, outcome: ShardOutcome) -> bool:
        """Write a shard's outcome if the attempt still holds it; what is refused must not be put in place."""
        end = {"now": self.ledger.now(), "result": None, "result_ref": None}
        counts = {"done": outcome.rows, "failed": outcome.failed, "rows": outcome.rows + outcome.failed}
        about = {
            "seconds": outcome.seconds,
            "outcome": encode(outcome).decode(),
            "pieces": encode(work.pieces).decode(),
        }
        with suppress(LeaseLost), self.ledger.write() as connection:
            if sql.SUCCEED.execute(connection, id=work.id, attempt=work.attempt, **end).rowcount == 0:
                raise LeaseLost(work.id)
            if FINISH.execute(connection, id=work.id, **counts, **about).rowcount == 0:
                raise LeaseLost(work.id)  # rolled back: a part of another range than the ledger's must not count
            return True
        return False

    def stop(self, work: ShardWork) -> None:
        """End an attempt that was to be canceled: its work has stopped."""
        with self.ledger.write() as connection:
            sql.STOP.execute(connection, id=work.id, attempt=work.attempt, now=self.ledger.now())

    def split(self, work: ShardWork, kept: Shard, given: Shard, batch: Batch) -> list[RoutedJob] | None:
        """Keep the first half of a running shard and make a waiting one of the rest; None when the lease is lost, or the batch
        has ended.
        """  # fmt: skip
        return self._give(work, kept, [given], batch)

    def split_suspect(
        self, work: ShardWork, kept: Shard, given: Sequence[Shard], batch: Batch
    ) -> list[RoutedJob] | None:
        """The same with the parts of one that has killed. All are suspects: they run alone, their attempts count from 1 again."""
        return self._give(work, kept, given, batch, crashes=1)

    def _give(
        self, work: ShardWork, kept: Shard, given: Sequence[Shard], batch: Batch, crashes: int = 0
    ) -> list[RoutedJob] | None:
        now, held = self.ledger.now(), {"id": work.id, "attempt": work.attempt}
        with self.ledger.write() as connection:
            if TOUCH.execute(connection, id=batch.id, now=now).rowcount == 0:
                return None
            if RENEW.execute(connection, **held, lease_until=now + work.lease_s).first() is None:
                return None
            if crashes:
                SUSPECT.execute(connection, **held)
            SHRINK.execute(
                connection, id=work.id, pieces=encode(kept.pieces).decode(), rows=kept.rows, bytes=kept.bytes
            )
            return self._add(connection, batch, given, crashes)

    def _add(
        self,
        connection: Connection,
        batch: Batch,
        planned: Sequence[Shard],
        crashes: int = 0,
        planned_now: bool = False,
    ) -> list[RoutedJob]:
        if not planned:
            return []
        now = self.ledger.now()
        ids = new_ids(len(planned))
        jobs = [new_row(_new_job(batch, s, id), now) | {"crashes": crashes} for id, s in zip(ids, planned, strict=True)]
        sql.INSERT.execute_many(connection, jobs)
        shards = [
            {"id": id, "batch_id": batch.id, "pieces": encode(shard.pieces).decode(), "part": shard.part, "rows": shard.rows,
             "bytes": shard.bytes, "rows_done": 0, "rows_failed": 0, "seconds": 0.0, "outcome": None,
             "planned": encode(shard.pieces).decode() if planned_now else None}
            for id, shard in zip(ids, planned, strict=True)
        ]  # fmt: skip
        connection.execute(job_tables.shards.insert(), shards)
        return [
            RoutedJob(id, batch.model, batch.version, batch.queue, batch.priority, crashes, exclusive=True)
            for id in ids
        ]

    def complete(self, batch: Batch, result: bytes | None, ref: str | None, done: int, total: int) -> list[Ended]:
        """The batch, as it was looked at, has succeeded; nothing when it has ended or begun again, or a shard is open."""
        end = {"now": self.ledger.now(), "attempt": batch.attempt, "result": result, "ref": ref}
        with self.ledger.write() as connection:
            return ended(COMPLETE.execute(connection, id=batch.id, **end, **_progress(done, total)))

    def fail_batch(self, id: str, attempt: int, error: JobError, done: int, total: int) -> list[Ended]:
        """This attempt of the batch has failed; shards that wait are canceled, those that run are asked to stop."""
        end = {"now": self.ledger.now(), "type": error.type, "message": plain_text(error.message)}
        with self.ledger.write() as connection:
            over = ended(FAIL_BATCH.execute(connection, id=id, attempt=attempt, **end, **_progress(done, total)))
            if over:
                sql.CANCEL_CHILDREN.execute(connection, ids=[id], now=end["now"])
        return over

    def cancel_shards(self, id: str) -> None:
        """Of a batch that has ended: cancel the shards that wait, ask those that run to stop. Nothing of another one."""
        with self.ledger.write() as connection:
            sql.CANCEL_LEFT_CHILDREN.execute(connection, ids=[id], now=self.ledger.now())

    def retry_canceled(self, id: str) -> list[RoutedJob]:
        """Queue the canceled shards of a batch that runs: they were stopped before it was retried, and have ended since."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            if TOUCH.execute(connection, id=id, now=now).rowcount == 0:
                return []
            KEEP_CANCELED.execute(connection, id=id, now=now)
            return routed_jobs(RETRY_CANCELED.execute(connection, id=id, now=now))

    def set_progress(self, id: str, done: int, total: int, message: str) -> None:
        """What `forebay jobs` shows of a running batch."""
        with self.ledger.write(durable=False) as connection:
            SET_PROGRESS.execute(connection, id=id, message=message, **_progress(done, total))

    def requeue_stalled(self, older_than_s: float) -> list[RoutedJob]:
        """Batches that nobody has looked after for so long though nothing of them is open: queued again, to be sent."""
        now = self.ledger.now()
        with self.ledger.write() as connection:
            return routed_jobs(REQUEUE_STALLED.execute(connection, now=now, before=now - older_than_s))


def _new_job(batch: Batch, shard: Shard, id: str) -> NewJob:
    return NewJob(
        id, JobKind.SHARD, batch.model, batch.version, batch.queue, batch.priority, batch.max_attempts,
        rows=min(shard.rows, MAX_PROGRESS), parent_id=batch.id,
    )  # fmt: skip


def _progress(done: int, total: int) -> dict[str, int]:
    return {"done": min(done, MAX_PROGRESS), "total": min(total, MAX_PROGRESS)}
