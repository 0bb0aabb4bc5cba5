"""BatchStore: starts batches, plans and finishes their shards, ends them. Their rows in `jobs` move by the same rules as others.

A batch's own job is claimed by a worker only to start it or to take it up again; then it is `running` without a lease until
its last shard has ended. Planning is compare-and-swap on `steps`: of two workers that plan at once, one succeeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from forebay.contract.job import JobKind, new_ids
from forebay.contract.requests.batch import BatchRequest, Position, Shard
from forebay.contract.requests.request import encode
from forebay.contract.requests.shards import ShardOutcome, ShardWork
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.batches.queries import BatchQueries
from forebay.storage.batches.records import Batch
from forebay.storage.jobs import statements as sql
from forebay.storage.jobs.parents import COMPLETE, MAX_PROGRESS, TOUCH, ParentJobs, progress
from forebay.storage.jobs.records import ClaimedJob, Ended, LeaseLost, NewJob, claimed_job, ended, new_row
from forebay.storage.jobs.statements import HELD
from forebay.storage.ledger import job_tables
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

OPEN = Statement("""
INSERT INTO batches (id, output, files, bytes, next_file, next_first, steps, planned, part_schema)
VALUES (:id, :output, :files, :bytes, 0, 0, 0, :planned, :part_schema) ON CONFLICT (id) DO NOTHING""")

STEP = Statement("""
UPDATE batches SET next_file = :file, next_first = :first, planned = :planned, steps = steps + 1
WHERE id = :id AND steps = :steps""")
SETTLE_SCHEMA = Statement("UPDATE batches SET part_schema = :settled WHERE id = :id AND part_schema = :known")
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


class BatchStore:
    """Writes batches and their shards. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.queries, self.parents = BatchQueries(ledger), ParentJobs(ledger)

    def start(self, job: ClaimedJob, request: BatchRequest, part_schema: bytes = b"") -> list[RoutedJob]:
        """Make the batch's row where there is none; the shards that wait again because the batch starts again, to be sent.

        A batch that starts again keeps the schema that its parts have.
        """
        about = {
            "output": request.output, "files": len(request.files), "bytes": request.bytes, "planned": False,
            "part_schema": part_schema,
        }  # fmt: skip
        with self.ledger.write() as connection:
            revived = self.parents.revive(connection, job)
            OPEN.execute(connection, id=job.id, **about)
        return revived

    def settle_schema(self, id: str, known: bytes, settled: bytes) -> bytes:
        """Make `settled` the schema of a batch's parts if it is still `known`; the schema that it has then."""
        with self.ledger.write() as connection:
            SETTLE_SCHEMA.execute(connection, id=id, known=known, settled=settled)
        return self.queries.get(id).part_schema

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
            return ended(COMPLETE.execute(connection, id=batch.id, **end, **progress(done, total)))


def _new_job(batch: Batch, shard: Shard, id: str) -> NewJob:
    return NewJob(
        id, JobKind.SHARD, batch.model, batch.version, batch.queue, batch.priority, batch.max_attempts,
        rows=min(shard.rows, MAX_PROGRESS), parent_id=batch.id,
    )  # fmt: skip
