"""Writes of a claimed job's own store, fenced by the attempt of its claim: who has lost the lease raises LeaseLost, and changes
nothing.
"""

from __future__ import annotations

from typing import Any

from forebay.storage.jobs.records import ClaimedJob, LeaseLost
from forebay.storage.jobs.statements import HELD, SUCCEED
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

# Locks the row on PostgreSQL and SQLite alike, until the transaction ends.
HOLD = Statement(f"UPDATE jobs SET progress_done = progress_done {HELD} RETURNING id")


def fenced(connection: Connection, statement: Statement, job: ClaimedJob, **values: Any) -> Any:
    """The row that a statement with HELD returns."""
    row = statement.execute(connection, id=job.id, attempt=job.attempt, **values).fetchone()
    if row is None:
        raise LeaseLost(job.id)
    return row


def hold(connection: Connection, job: ClaimedJob) -> None:
    """Keep the job this attempt's until the transaction ends."""
    fenced(connection, HOLD, job)


def succeed(connection: Connection, job: ClaimedJob, result: bytes, now: float) -> None:
    """End a job that is held."""
    SUCCEED.execute(connection, id=job.id, attempt=job.attempt, now=now, result=result, result_ref=None)
