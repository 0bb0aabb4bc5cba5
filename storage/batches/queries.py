"""The reading half of BatchStore: how far a batch is, what its shards have become. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from sqlalchemy import text

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobState
from forebay.contract.requests.batch import BatchProgress, Piece, Position
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import ShardOutcome, ShardWork
from forebay.storage.batches.records import Batch, Totals
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.ledger.connection import Ledger

BATCH = """
SELECT j.id, j.model, j.version, j.queue, j.priority, j.max_attempts, j.state, b.bytes, b.next_file, b.next_first, b.steps,
    b.planned, j.started_at
FROM jobs j JOIN batches b ON b.id = j.id WHERE j.id = :id"""
REQUEST = "SELECT input, input_ref FROM jobs WHERE id = :id"
SHARD = "SELECT batch_id, part, pieces, rows, bytes FROM shards WHERE id = :id"
OPEN_SHARDS = "SELECT state, count(*) FROM jobs WHERE parent_id = :id AND state IN ('queued', 'running') GROUP BY state"
# The share of a running shard's bytes is that of its rows; where those are a guess it stays below all of them.
DONE_ROWS = "s.rows_done + s.rows_failed"
DONE_BYTES = f"s.bytes * 1.0 * CASE WHEN {DONE_ROWS} < s.rows THEN ({DONE_ROWS}) * 1.0 / s.rows ELSE 1.0 END"
TOTALS = f"""
SELECT j.state, count(*), sum(CASE WHEN {DONE_ROWS} > s.rows THEN {DONE_ROWS} ELSE s.rows END), sum(s.rows_done),
    sum(s.rows_failed), sum(CASE WHEN {DONE_ROWS} > 0 OR j.state = 'succeeded' THEN {DONE_BYTES} ELSE 0 END), sum(s.seconds)
FROM shards s JOIN jobs j ON j.parent_id = s.batch_id AND j.id = s.id WHERE s.batch_id = :id GROUP BY j.state"""
WAITING = """
SELECT id FROM jobs WHERE parent_id = :id AND state = 'queued' AND crashes = 0 AND not_before IS NULL
ORDER BY id LIMIT :limit"""
OUTCOMES = """
SELECT s.part, s.pieces, s.outcome FROM shards s JOIN jobs j ON j.id = s.id
WHERE s.batch_id = :id AND j.state = 'succeeded' AND s.part > :after ORDER BY s.part LIMIT 1000"""
FIRST_ERROR = """
SELECT error_type, error_message FROM jobs WHERE parent_id = :id AND state = 'failed' ORDER BY id LIMIT 1"""
EVIDENCE = "SELECT progress_message FROM jobs WHERE id = :id"
# Since the batch was last started: a retry begins afresh. What one death has freed has one time.
DEATHS = """
SELECT (SELECT count(DISTINCT a.ended_at) FROM jobs j JOIN job_attempts a ON a.job_id = j.id
        WHERE j.parent_id = :id AND a.ended = 'lost' AND a.ended_at >= :since),
    (SELECT count(*) FROM jobs WHERE parent_id = :id AND state = 'succeeded')"""
LAST_DEATH = """
SELECT a.reason FROM jobs j JOIN job_attempts a ON a.job_id = j.id
WHERE j.parent_id = :id AND a.ended = 'lost' ORDER BY a.ended_at DESC LIMIT 1"""
COUNTED = (JobState.RUNNING, JobState.SUCCEEDED)


class BatchQueries:
    """Reads batches from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sql = cache(ledger.statement)

    def batch(self, id: str) -> Batch:
        """A batch that has been started; JobNotFound otherwise."""
        row = self._row(BATCH, id=id)
        if row is None:
            raise JobNotFound(f"job {id} is no batch that has been started")
        (id, model, version, queue, priority, attempts, state, size, file, first, steps, planned, started) = row
        return Batch(
            id, model, version, queue, priority, attempts, JobState(state), size, Position(file, first), steps,
            bool(planned), started,
        )  # fmt: skip

    def request(self, id: str) -> tuple[bytes | None, str | None]:
        """What was asked for, as a payload: in the row or by reference."""
        row = self._row(REQUEST, id=id)
        if row is None:
            raise JobNotFound(f"no job has the id {id!r}; it never existed, or retention has deleted it")
        return row[0], row[1]

    def shard(self, job: ClaimedJob, lease_s: float) -> ShardWork:
        """What a claimed shard covers."""
        row = self._row(SHARD, id=job.id)
        if row is None:
            raise JobNotFound(f"shard {job.id} has lost its batch")
        batch, part, pieces, rows, size = row
        return ShardWork(job.id, batch, job.attempt, part, decode(pieces, tuple[Piece, ...]), rows, size, lease_s)

    def under_way(self, id: str) -> tuple[int, int]:
        """How many shards of a batch wait, and how many run."""
        with self.ledger.read() as connection:
            counts = {row.state: row[1] for row in connection.execute(text(OPEN_SHARDS), {"id": id})}
        return counts.get(JobState.QUEUED, 0), counts.get(JobState.RUNNING, 0)

    def waiting(self, id: str, limit: int) -> list[str]:
        """The ids of the next shards that wait."""
        with self.ledger.read() as connection:
            return list(connection.execute(text(WAITING), {"id": id, "limit": limit}).scalars())

    def totals(self, id: str) -> Totals:
        """A batch's shards summed up."""
        with self.ledger.read() as connection:
            rows = connection.execute(text(TOTALS), {"id": id}).fetchall()
        counted = [row for row in rows if row[0] in COUNTED]
        return Totals(
            {JobState(state): count for state, count, *_ in rows},
            *(sum(int(row[i] or 0) for row in rows) for i in (2,)),
            *(sum(int(row[i] or 0) for row in counted) for i in (3, 4)),
            *(float(sum(row[i] or 0 for row in counted)) for i in (5, 6)),
        )

    def progress(self, id: str) -> BatchProgress:
        """How far a batch is; one that waits for its first worker has done nothing of nothing."""
        try:
            batch = self.batch(id)
        except JobNotFound:
            return BatchProgress(0, 0, 0, False, {}, 0.0, None, None)
        totals = self.totals(id)
        share = 1.0 if batch.state is JobState.SUCCEEDED else min(1.0, totals.bytes_done / max(1, self._size(batch)))
        rate, eta = None, None
        if batch.state is JobState.RUNNING and totals.seconds and totals.done + totals.failed:
            seconds = totals.seconds / max(
                1, totals.shards.get(JobState.RUNNING, 0)
            )  # as many workers do it side by side
            rate = (totals.done + totals.failed) / seconds
            eta = seconds * (1 - share) / share if share else None
        return BatchProgress(totals.rows, totals.done, totals.failed, batch.planned, totals.shards, share, rate, eta)

    def _size(self, batch: Batch) -> float:
        """What `bytes_done` is a share of. Shards count decoded bytes, files stored ones: once planned, shards are asked."""
        if not batch.planned:
            return float(batch.bytes)
        row = self._row("SELECT sum(bytes) FROM shards WHERE batch_id = :id", id=batch.id)
        return float((row[0] if row else 0) or batch.bytes)

    def outcomes(self, id: str) -> Iterator[tuple[str, tuple[Piece, ...], ShardOutcome]]:
        """The part, pieces and outcome of every shard that succeeded, in the order of the input."""
        after = ""
        while True:
            with self.ledger.read() as connection:
                rows = connection.execute(text(OUTCOMES), {"id": id, "after": after}).fetchall()
            if not rows:
                return
            for part, pieces, outcome in rows:
                yield part, decode(pieces, tuple[Piece, ...]), decode(outcome, ShardOutcome)
            after = rows[-1][0]

    def first_error(self, id: str) -> tuple[str, str]:
        """Type and message of the first failed shard's error."""
        row = self._row(FIRST_ERROR, id=id)
        return ("", "") if row is None else (row[0] or "", row[1] or "")

    def evidence(self, shard: str) -> str:
        """What was told of the last process that died with a shard; '' when none has."""
        row = self._row(EVIDENCE, id=shard)
        return "" if row is None else row[0]

    def deaths(self, batch: Batch) -> tuple[int, int]:
        """How often a process has died with shards of a batch since it was started, and how many shards have succeeded."""
        deaths, succeeded = self._row(DEATHS, id=batch.id, since=batch.started_at or 0.0)
        return int(deaths), int(succeeded)

    def last_evidence(self, id: str) -> str:
        """What was told of the last process that died with a shard of a batch."""
        row = self._row(LAST_DEATH, id=id)
        return "" if row is None else row[0]

    def _row(self, statement: str, **values: Any) -> Any:
        with self.ledger.read() as connection:
            return connection.execute(text(statement), values).fetchone()
