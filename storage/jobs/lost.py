"""Freeing the jobs of lost attempts: those of a process that died, and those whose lease was not renewed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forebay.contract.job import Transition
from forebay.contract.references import plain_text
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import Ended, ended, routed_jobs
from forebay.storage.jobs.statements import (
    ASKED,
    COUNTED,
    END_LEASE,
    KEEP_LOST,
    NO_LEASE,
    NOT_ASKED,
    ROUTED_JOB,
    guard,
    new_state,
)
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

EVIDENCE = f"'attempt ' || ({COUNTED}) || ' of ' || max_attempts || ': ' || CAST(:reason AS text)"


class LostAttempts:
    """The statements for lost attempts of the jobs that meet `which`."""

    def __init__(self, which: str, lock: str) -> None:
        lost = f"({which}) AND {guard(Transition.RELEASE)}"

        def those(more: str) -> str:
            return f"id IN (SELECT id FROM jobs WHERE {lost} AND {more} FOR UPDATE SKIP LOCKED)"

        self.read = Statement(f"SELECT id, attempt, worker, started_at FROM jobs WHERE {lost} ORDER BY id {lock}")
        self.cancel = Statement(f"""
UPDATE jobs SET {new_state(Transition.CANCEL)}, {END_LEASE} WHERE {those(ASKED)} RETURNING id, client""")
        self.fail = Statement(f"""
UPDATE jobs SET {new_state(Transition.FAIL)}, {END_LEASE}, error_type = 'WorkerLost', error_message = {EVIDENCE}
WHERE {those(f"{NOT_ASKED} AND {COUNTED} >= max_attempts")} RETURNING id, client""")
        self.free = Statement(f"""
UPDATE jobs SET {new_state(Transition.RELEASE)}, {NO_LEASE}, sent_at = :now, progress_message = {EVIDENCE},
    crashes = crashes + :crashes
WHERE {those(f"{NOT_ASKED} AND {COUNTED} < max_attempts")} RETURNING {ROUTED_JOB}""")


# The parent of a dead child reports once: it waits for its rows, where a sweeper passes over those that are locked.
CRASHED = LostAttempts(
    "id = ANY(:ids) AND worker = :worker AND attempt = coalesce(:only_attempt, attempt)", "FOR UPDATE"
)
LAPSED = LostAttempts("lease_until < :now", "FOR UPDATE SKIP LOCKED")


def free_lost(
    ledger: Ledger, lost: LostAttempts, reason: str, crashes: int, which: Mapping[str, Any]
) -> tuple[list[RoutedJob], list[Ended]]:
    """Free what has attempts left; cancel what a user wanted canceled, fail the rest. What to send again, and what ended."""
    values = {**which, "reason": plain_text(reason), "now": ledger.now()}
    with ledger.write() as connection:
        attempts = {row.id: row for row in lost.read.execute(connection, **values)}
        over = [*ended(lost.cancel.execute(connection, **values)), *ended(lost.fail.execute(connection, **values))]
        freed = routed_jobs(lost.free.execute(connection, **values, crashes=crashes))
        # Read before its row was freed, which forgets it.
        kept = [attempts[job.id] for job in freed if job.id in attempts]
        if kept:
            fixed = {"now": values["now"], "reason": values["reason"]}
            KEEP_LOST.execute_many(connection, [{**row._asdict(), **fixed} for row in kept])
        return freed, over
