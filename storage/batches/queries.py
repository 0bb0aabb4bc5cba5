"""BatchQueries: how far a batch is, what its shards have become. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobState
from forebay.contract.requests.batch import BatchProgress, Piece, Position
from forebay.contract.requests.coverage import CoveredPart
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import ShardOutcome, ShardWork, writer_of
from forebay.storage.batches.records import Batch, EndedBatch, Totals
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

BATCH = Statement("""
SELECT j.id, j.model, j.version, j.queue, j.priority, j.max_attempts, j.state, j.attempt, b.bytes, b.next_file, b.next_first,
    b.steps, b.planned, b.part_schema, j.started_at
FROM jobs j JOIN batches b ON b.id = j.id WHERE j.id = :id""")
REQUEST = Statement("SELECT input, input_ref FROM jobs WHERE id = :id")
SHARD = Statement("SELECT batch_id, part, pieces, rows, bytes FROM shards WHERE id = :id")
OPEN_SHARDS = Statement("""
SELECT state, count(*) AS jobs FROM jobs WHERE parent_id = :id AND state IN ('queued', 'running') GROUP BY state""")
# The share of a running shard's bytes is that of its rows; where those are a guess it stays below all of them.
_DONE_ROWS = "s.rows_done + s.rows_failed"
_DONE_BYTES = f"s.bytes * 1.0 * CASE WHEN {_DONE_ROWS} < s.rows THEN ({_DONE_ROWS}) * 1.0 / s.rows ELSE 1.0 END"
TOTALS = Statement(f"""
SELECT j.state, count(*) AS shards, sum(CASE WHEN {_DONE_ROWS} > s.rows THEN {_DONE_ROWS} ELSE s.rows END) AS rows_planned,
    sum(s.rows_done) AS rows_done, sum(s.rows_failed) AS rows_failed, sum(s.seconds) AS seconds,
    sum(CASE WHEN {_DONE_ROWS} > 0 OR j.state = 'succeeded' THEN {_DONE_BYTES} ELSE 0 END) AS bytes_done
FROM shards s JOIN jobs j ON j.parent_id = s.batch_id AND j.id = s.id WHERE s.batch_id = :id GROUP BY j.state""")
WAITING_SHARDS = Statement("""
SELECT id FROM jobs WHERE parent_id = :id AND state = 'queued' AND crashes = 0 AND not_before IS NULL
ORDER BY id LIMIT :limit""")
PLANNED_BYTES = Statement("SELECT sum(bytes) FROM shards WHERE batch_id = :id")
OUTCOMES = Statement("""
SELECT s.part, s.pieces, s.outcome FROM shards s JOIN jobs j ON j.id = s.id
WHERE s.batch_id = :id AND j.state = 'succeeded' AND s.part > :after ORDER BY s.part LIMIT 1000""")
LAST_END = Statement("SELECT max(finished_at) FROM jobs WHERE parent_id = :id")
PLANNED_PIECES = Statement("""
SELECT part, planned FROM shards WHERE batch_id = :id AND planned IS NOT NULL AND part > :after ORDER BY part LIMIT 1000""")
FIRST_ERROR = Statement("""
SELECT error_type, error_message FROM jobs WHERE parent_id = :id AND state = 'failed' ORDER BY id LIMIT 1""")
CRASH_EVIDENCE = Statement("SELECT progress_message FROM jobs WHERE id = :id")
# Since the batch was last started: a retry counts from 0 again. All shards that one death has freed have the same time.
CRASHES = Statement("""
SELECT (SELECT count(DISTINCT a.ended_at) FROM jobs j JOIN job_attempts a ON a.job_id = j.id
        WHERE j.parent_id = :id AND a.ended = 'lost' AND a.ended_at >= :since) AS crashes,
    (SELECT count(*) FROM jobs WHERE parent_id = :id AND state = 'succeeded') AS succeeded""")
LAST_CRASH = Statement("""
SELECT a.reason FROM jobs j JOIN job_attempts a ON a.job_id = j.id
WHERE j.parent_id = :id AND a.ended = 'lost' ORDER BY a.ended_at DESC LIMIT 1""")

ENDED_BADLY = Statement("""
SELECT j.id, j.attempt, b.output FROM batches b JOIN jobs j ON j.id = b.id
WHERE j.state IN ('failed', 'canceled', 'expired') AND NOT EXISTS (
    SELECT 1 FROM jobs s WHERE s.parent_id = j.id AND s.state IN ('queued', 'running'))
ORDER BY j.id DESC LIMIT :limit""")
ATTEMPTS = Statement("""
SELECT j.id, j.state, j.attempt, s.outcome FROM jobs j JOIN shards s ON s.id = j.id WHERE j.id = ANY(:ids)""")


class BatchQueries:
    """Reads batches from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, id: str) -> Batch:
        """A batch that has been started; JobNotFound otherwise."""
        row = self._ledger.row(BATCH, id=id)
        if row is None:
            raise JobNotFound(f"job {id} is not a batch that has been started")
        return Batch(
            id=row.id, model=row.model, version=row.version, queue=row.queue, priority=row.priority,
            max_attempts=row.max_attempts, state=JobState(row.state), bytes=row.bytes,
            position=Position(row.next_file, row.next_first), steps=row.steps, planned=bool(row.planned),
            started_at=row.started_at, part_schema=bytes(row.part_schema), attempt=row.attempt,
        )  # fmt: skip

    def part_schema(self, id: str) -> bytes | None:
        """The schema that a batch's parts have; None before it has been started."""
        row = self._ledger.row(BATCH, id=id)
        return None if row is None else bytes(row.part_schema)

    def request(self, id: str) -> tuple[bytes | None, str | None]:
        """What was asked for, as a payload: in the row or by reference."""
        row = self._ledger.row(REQUEST, id=id)
        if row is None:
            raise JobNotFound(f"no job has the id {id!r}; it never existed, or retention has deleted it")
        return row.input, row.input_ref

    def shard(self, job: ClaimedJob, lease_s: float) -> ShardWork:
        """What a claimed shard covers."""
        row = self._ledger.row(SHARD, id=job.id)
        if row is None:
            raise JobNotFound(f"shard {job.id} has lost its batch")
        pieces = decode(row.pieces, tuple[Piece, ...])
        return ShardWork(job.id, row.batch_id, job.attempt, row.part, pieces, row.rows, row.bytes, lease_s)

    def open_shards(self, id: str) -> tuple[int, int]:
        """How many shards of a batch wait, and how many run."""
        counts = {row.state: row.jobs for row in self._ledger.rows(OPEN_SHARDS, id=id)}
        return counts.get(JobState.QUEUED, 0), counts.get(JobState.RUNNING, 0)

    def waiting_shards(self, id: str, limit: int) -> list[str]:
        """The ids of the next shards that wait."""
        return [row.id for row in self._ledger.rows(WAITING_SHARDS, id=id, limit=limit)]

    def totals(self, id: str) -> Totals:
        """A batch's shards summed up."""
        rows = self._ledger.rows(TOTALS, id=id)
        counted = [row for row in rows if row.state in (JobState.RUNNING, JobState.SUCCEEDED)]
        return Totals(
            shards={JobState(row.state): row.shards for row in rows},
            rows=sum(int(row.rows_planned or 0) for row in rows),
            done=sum(int(row.rows_done or 0) for row in counted),
            failed=sum(int(row.rows_failed or 0) for row in counted),
            bytes_done=float(sum(row.bytes_done or 0 for row in counted)),
            seconds=float(sum(row.seconds or 0 for row in counted)),
        )

    def progress(self, id: str) -> BatchProgress:
        """How far a batch is; one that waits for its first worker has done nothing of nothing."""
        try:
            batch = self.get(id)
        except JobNotFound:
            return BatchProgress(0, 0, 0, False, {}, 0.0, None, None)
        totals = self.totals(id)
        share = 1.0 if batch.state is JobState.SUCCEEDED else min(1.0, totals.bytes_done / max(1, self._size(batch)))
        rate, eta = None, None
        if batch.state is JobState.RUNNING and totals.seconds and totals.done + totals.failed:
            workers = max(1, totals.shards.get(JobState.RUNNING, 0))  # as many do it side by side
            seconds = totals.seconds / workers
            rate = (totals.done + totals.failed) / seconds
            eta = seconds * (1 - share) / share if share else None
        return BatchProgress(totals.rows, totals.done, totals.failed, batch.planned, totals.shards, share, rate, eta)

    def _size(self, batch: Batch) -> float:
        """What `bytes_done` is a share of. Shards count decoded bytes, files stored ones: once planned, shards are asked."""
        return float((self._ledger.scalar(PLANNED_BYTES, id=batch.id) if batch.planned else 0) or batch.bytes)

    def outcomes(self, id: str) -> Iterator[tuple[str, tuple[Piece, ...], ShardOutcome]]:
        """The part, pieces and outcome of every shard that succeeded, in the order of the input."""
        after = ""
        while rows := self._ledger.rows(OUTCOMES, id=id, after=after):
            for row in rows:
                yield row.part, decode(row.pieces, tuple[Piece, ...]), decode(row.outcome, ShardOutcome)
            after = rows[-1].part

    def last_end(self, id: str) -> float | None:
        """When the last shard of a batch ended."""
        end = self._ledger.scalar(LAST_END, id=id)
        return None if end is None else float(end)

    def planned_pieces(self, id: str) -> Iterator[Piece]:
        """What the batch was planned to cover, in the order of the input."""
        after = ""
        while rows := self._ledger.rows(PLANNED_PIECES, id=id, after=after):
            for row in rows:
                yield from decode(row.planned, tuple[Piece, ...])
            after = rows[-1].part

    def covered_parts(self, id: str) -> Iterator[CoveredPart]:
        """What the shards that succeeded have covered."""
        for part, pieces, outcome in self.outcomes(id):
            yield CoveredPart(part, pieces, outcome.rows + outcome.failed)

    def first_error(self, id: str) -> tuple[str, str]:
        """Type and message of the first failed shard's error."""
        row = self._ledger.row(FIRST_ERROR, id=id)
        return ("", "") if row is None else (row.error_type or "", row.error_message or "")

    def crash_evidence(self, shard: str) -> str:
        """What was reported of the last process that died with a shard; '' when none has."""
        return self._ledger.scalar(CRASH_EVIDENCE, id=shard) or ""

    def crashes(self, batch: Batch) -> tuple[int, int]:
        """How often a process has died with shards of a batch since it was started, and how many shards have succeeded."""
        row = self._ledger.row(CRASHES, id=batch.id, since=batch.started_at or 0.0)
        return int(row.crashes), int(row.succeeded)

    def ended_badly(self, limit: int) -> list[EndedBatch]:
        """The newest batches that ended otherwise than well, and have no shard that waits or runs."""
        return [EndedBatch(row.id, row.attempt, row.output) for row in self._ledger.rows(ENDED_BADLY, limit=limit)]

    def abandoned(self, temporary: Sequence[str]) -> list[str]:
        """Those of these files of attempts that no attempt writes any more and no outcome names. That stays so: an attempt that
        is over never runs again.
        """  # fmt: skip
        writers = {name: writer_of(name) for name in temporary}
        shards = {row.id: row for row in self._ledger.rows(ATTEMPTS, ids=sorted({id for id, _ in writers.values()}))}

        def needed(name: str, row: Any, attempt: int) -> bool:
            if row.state == JobState.SUCCEEDED:
                return name in {file.temporary for file in decode(row.outcome, ShardOutcome).files}
            return bool(row.state == JobState.RUNNING and row.attempt == attempt)

        return [n for n, (id, attempt) in writers.items() if id in shards and not needed(n, shards[id], attempt)]

    def last_crash_evidence(self, id: str) -> str:
        """What was reported of the last process that died with a shard of a batch."""
        return self._ledger.scalar(LAST_CRASH, id=id) or ""
