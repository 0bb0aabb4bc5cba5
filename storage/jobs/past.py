"""What a job's row is about to forget, kept in job_attempts: attempts that were lost, given back, postponed or refused, and
outcomes that a retry takes back.

Statements that storage.jobs and storage.job_requests run in the transaction that makes the row forget. None is on the way of a
job that runs once and ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forebay.contract.job import Transition
from forebay.contract.references import plain_text
from forebay.storage.jobs.statements import may

ADD = "INSERT INTO job_attempts (job_id, attempt, worker, started_at, ended_at, ended, reason)"
ONCE = "ON CONFLICT (job_id, attempt, ended) DO NOTHING"
FROM_ROW = f"""
{ADD}
SELECT id, attempt, worker, started_at, coalesce(finished_at, :now), {{ended}}, {{reason}} FROM jobs WHERE {{which}} {ONCE}"""
OUTCOME = "CASE WHEN error_type IS NULL THEN '' ELSE error_type || ': ' || error_message END"

# Read before its row is freed; `lock` keeps it as it is until then.
LOST = "SELECT id, attempt, worker, started_at FROM jobs WHERE {whose} ORDER BY id {lock}"
REMEMBER_LOST = f"{ADD} VALUES (:id, :attempt, :worker, :started_at, :now, 'lost', :reason) {ONCE}"
REMEMBER_RETRIED = FROM_ROW.format(ended="state", reason=OUTCOME, which="{which}")
REMEMBER_RELEASED = FROM_ROW.format(
    ended="'released'", reason="''", which=f"id {{ids}} AND worker = :worker AND {may(Transition.RELEASE)}"
)
REMEMBER_POSTPONED = FROM_ROW.format(
    ended="'postponed'",
    reason="CAST(:reason AS text)",
    which=f"id = :id AND attempt = :attempt AND {may(Transition.RELEASE)}",
)
REMEMBER_REFUSED = f"{ADD} SELECT id, :attempt, :worker, NULL, :now, 'refused', :reason FROM jobs WHERE id = :id {ONCE}"

TOO_LATE = "its lease had lapsed, so the result was dropped"


def lost_rows(lost: Mapping[str, Any], ids: Sequence[str], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What to bind to REMEMBER_LOST for the jobs that were freed, from the rows of LOST."""
    told = {"now": values["now"], "reason": plain_text(values["reason"])}
    return [told | dict(lost[id]._mapping) for id in ids if id in lost]
