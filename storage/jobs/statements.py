"""The statements that move jobs from state to state, and what they have in common.

Each is one transition of contract.job, whose table gives its guard. Who waits for rows takes them in the order of their ids,
else two of them could wait for each other.
"""

from __future__ import annotations

from sqlalchemy import Double, Integer, LargeBinary, SmallInteger, String, Text

from forebay.contract.job import FINAL, PARENTS, TRANSITIONS, JobKind, JobState, Transition
from forebay.storage.jobs.records import NEW_ROW
from forebay.storage.ledger.job_tables import jobs
from forebay.storage.ledger.statement import Insert, Statement

_FINAL = ", ".join(f"'{state}'" for state in sorted(FINAL))


def guard(transition: Transition, column: str = "state") -> str:
    """SQL for 'the job is in a state from which it may make this transition'."""
    sources = ", ".join(f"'{state}'" for state in sorted(TRANSITIONS[transition][0]))
    return f"{column} IN ({sources})"


# For statements that name ids: no index has these values. PostgreSQL takes that of all that waits for the shorter way before it
# has statistics, and reads through a million jobs to claim a thousand.
STATE_OF_IDS, QUEUE_OF_IDS = "state || ''", "queue || ''"


def new_state(transition: Transition) -> str:
    """SQL for 'it is then in this state'."""
    return f"state = '{TRANSITIONS[transition][1]}'"


# `attempt` only ever grows, so a zombie's number never comes up again; `uncounted` of them do not count against the limit.
COUNTED = "attempt - uncounted"
# Those that are not of rows are each as long as many jobs, and travel alone.
OF_ROWS = ", ".join(f"'{kind}'" for kind in JobKind if kind.of_rows)
ROUTED_JOB = (
    f"id, model, version, queue, priority, crashes, CASE WHEN kind IN ({OF_ROWS}) THEN 0 ELSE 1 END AS exclusive"
)
NO_LEASE = "worker = NULL, lease_until = NULL"
END_LEASE = "lease_until = NULL, finished_at = :now"
HELD = (
    f"WHERE id = :id AND attempt = :attempt AND {guard(Transition.SUCCEED, STATE_OF_IDS)}"  # by the attempt that writes
)

# --- what users ask for

# Text of any length, which a column then refuses that is shorter: a cast would cut it.
_TYPES = {
    Double: "double precision", Integer: "integer", LargeBinary: "bytea", SmallInteger: "smallint", String: "text", Text: "text",
}  # fmt: skip
INSERT = Insert("jobs", {name: _TYPES[type(jobs.columns[name].type)] for name in NEW_ROW})

# PostgreSQL only. One lock for each of 256 buckets of keys, in order: many keys must not fill its table of locks.
LOCK_KEYS = Statement("""
SELECT pg_advisory_xact_lock(1701013616, bucket) FROM (
    SELECT DISTINCT hashtext(key) & 255 AS bucket FROM unnest(CAST(:keys AS text[])) AS key ORDER BY bucket) AS buckets""")
# PostgreSQL only, where two who count at once would not see what the other adds.
LOCK_QUEUE = Statement("SELECT pg_advisory_xact_lock(1701013617, hashtext(:queue))")
BY_KEY = Statement("SELECT idempotency_key, id, request_hash FROM jobs WHERE idempotency_key = ANY(:keys)")

# What waits ends here and now, and so does a parent, which no worker runs: its children are what runs. Another running job is
# only marked, for the worker that runs it to see.
_PARENTS = ", ".join(f"'{kind}'" for kind in sorted(PARENTS))
IS_PARENT = f"kind IN ({_PARENTS})"
_ENDS_NOW = f"state = 'queued' OR {IS_PARENT}"


def _cancel(which: str) -> Statement:
    return Statement(f"""
UPDATE jobs SET
    cancel_requested_at = CASE WHEN {_ENDS_NOW} THEN NULL ELSE coalesce(cancel_requested_at, :now) END,
    finished_at = CASE WHEN {_ENDS_NOW} THEN :now ELSE finished_at END,
    lease_until = CASE WHEN {_ENDS_NOW} THEN NULL ELSE lease_until END,
    not_before = NULL,
    state = CASE WHEN {_ENDS_NOW} THEN '{JobState.CANCELED}' ELSE state END
WHERE id IN (SELECT id FROM jobs WHERE {which} AND {guard(Transition.CANCEL)} ORDER BY id FOR UPDATE)
RETURNING id, client, state, kind""")


CANCEL = _cancel("id = ANY(:ids)")
CANCEL_CHILDREN = _cancel("parent_id = ANY(:ids)")
# Only of parents that have ended: one that is queued again goes on with its children.
CANCEL_LEFT_CHILDREN = _cancel(f"""parent_id = ANY(:ids) AND EXISTS (
    SELECT 1 FROM jobs AS parent WHERE parent.id = jobs.parent_id AND parent.state IN ({_FINAL}))""")

RESET = f"""{new_state(Transition.RETRY)}, {NO_LEASE}, uncounted = attempt, crashes = 0, sent_at = :now, started_at = NULL,
    finished_at = NULL, deadline_at = NULL, cancel_requested_at = NULL, not_before = NULL, error_type = NULL,
    error_message = NULL, progress_done = 0, progress_message = ''"""
# A shard is retried by its batch.
FAILED = "state IN ('failed', 'expired') AND parent_id IS NULL"
RETRY = Statement(f"UPDATE jobs SET {RESET} WHERE id = :id AND {guard(Transition.RETRY)} RETURNING {ROUTED_JOB}")
RETRY_FAILED = Statement(f"""
UPDATE jobs SET {RESET} WHERE id IN (SELECT id FROM jobs WHERE id = ANY(:ids) AND {FAILED} ORDER BY id FOR UPDATE)
RETURNING {ROUTED_JOB}""")

# --- what workers do


def _claim(more: str) -> Statement:
    return Statement(f"""
UPDATE jobs SET {new_state(Transition.CLAIM)}, attempt = attempt + 1, worker = :worker,
    lease_until = :lease_until, started_at = :now, not_before = NULL
WHERE id IN (
    SELECT id FROM jobs WHERE id = ANY(:ids) AND {guard(Transition.CLAIM, STATE_OF_IDS)} {more}
    AND (deadline_at IS NULL OR deadline_at > :now) AND (not_before IS NULL OR not_before <= :now) FOR UPDATE SKIP LOCKED)
RETURNING id, kind, model, version, queue, attempt, max_attempts, client, progress_total AS rows, input, input_ref,
    {COUNTED} AS tries, crashes, deadline_at, created_at""")


CLAIM = _claim("")
CLAIM_FROM_QUEUES = _claim(f"AND {QUEUE_OF_IDS} = ANY(:queues)")

RENEW = Statement(f"""
UPDATE jobs SET lease_until = :lease_until WHERE id IN (
    SELECT id FROM jobs WHERE id = ANY(:ids) AND worker = :worker AND {guard(Transition.SUCCEED, STATE_OF_IDS)}
    ORDER BY id FOR UPDATE)
RETURNING id""")
OWNED = Statement(f"""
SELECT id, attempt, client, cancel_requested_at FROM jobs
WHERE id = ANY(:ids) AND {guard(Transition.SUCCEED, STATE_OF_IDS)} ORDER BY id FOR UPDATE""")
SUCCEED = Statement(
    f"""
UPDATE jobs SET {new_state(Transition.SUCCEED)}, {END_LEASE}, result = :result, result_ref = :result_ref,
    progress_done = progress_total, error_type = NULL, error_message = NULL {HELD} RETURNING id, client""",
    many=f"""
UPDATE jobs SET {new_state(Transition.SUCCEED)}, lease_until = NULL, finished_at = made.at, result = made.result,
    result_ref = made.ref, progress_done = progress_total, error_type = NULL, error_message = NULL
FROM unnest(CAST(:id AS text[]), CAST(:attempt AS smallint[]), CAST(:now AS double precision[]), CAST(:result AS bytea[]),
    CAST(:result_ref AS text[])) AS made (id, attempt, at, result, ref)
WHERE jobs.id = made.id AND jobs.attempt = made.attempt AND {guard(Transition.SUCCEED)}""",
)
FAIL = Statement(f"""
UPDATE jobs SET {new_state(Transition.FAIL)}, {END_LEASE}, error_type = :error_type, error_message = :error_message
WHERE id = :id AND attempt = :attempt AND {guard(Transition.FAIL)} RETURNING id, client""")
# The work of a running job has ended without a result: canceled, or claimed and not begun before its deadline.
STOP = Statement(f"UPDATE jobs SET {new_state(Transition.CANCEL)}, {END_LEASE} {HELD} RETURNING id, client")
EXPIRE_UNBEGUN = Statement(f"UPDATE jobs SET {new_state(Transition.EXPIRE)}, {END_LEASE} {HELD} RETURNING id, client")
POSTPONE = Statement(f"""
UPDATE jobs SET {new_state(Transition.RELEASE)}, {NO_LEASE}, uncounted = uncounted + :uncounted, started_at = NULL,
    sent_at = :now, not_before = :not_before, progress_message = :reason
WHERE id = :id AND attempt = :attempt AND {guard(Transition.RELEASE)}""")

# What nobody runs any more and a user has asked to stop is canceled; it must not be queued again.
ASKED, NOT_ASKED = "cancel_requested_at IS NOT NULL", "cancel_requested_at IS NULL"
_RELEASED = f"id = ANY(:ids) AND worker = :worker AND {guard(Transition.RELEASE)}"
STOP_RELEASED = Statement(f"""
UPDATE jobs SET {new_state(Transition.CANCEL)}, {END_LEASE} WHERE id IN (
    SELECT id FROM jobs WHERE {_RELEASED} AND {ASKED} ORDER BY id FOR UPDATE)""")
RELEASE = Statement(f"""
UPDATE jobs SET {new_state(Transition.RELEASE)}, {NO_LEASE}, uncounted = uncounted + 1, started_at = NULL, sent_at = :now
WHERE id IN (SELECT id FROM jobs WHERE {_RELEASED} AND {NOT_ASKED} ORDER BY id FOR UPDATE)
RETURNING {ROUTED_JOB}""")
MARK_UNSENT = Statement(f"""
UPDATE jobs SET sent_at = 0 WHERE id IN (
    SELECT id FROM jobs WHERE id = ANY(:ids) AND {STATE_OF_IDS} = 'queued' ORDER BY id FOR UPDATE)""")

# --- attempts that a job's row is about to forget, kept in job_attempts: none of a job that runs once and ends

_ADD_ATTEMPT = "INSERT INTO job_attempts (job_id, attempt, worker, started_at, ended_at, ended, reason)"
_ONCE = "ON CONFLICT (job_id, attempt, ended) DO NOTHING"


def _keep(ended: str, reason: str, which: str) -> Statement:
    return Statement(f"""
{_ADD_ATTEMPT} SELECT id, attempt, worker, started_at, coalesce(finished_at, :now), {ended}, {reason}
FROM jobs WHERE {which} {_ONCE}""")


def keep_outcome(which: str) -> Statement:
    """Keep how these jobs ended, before a retry takes it back."""
    return _keep("state", "CASE WHEN error_type IS NULL THEN '' ELSE error_type || ': ' || error_message END", which)


KEEP_RETRIED = keep_outcome(f"id = :id AND {guard(Transition.RETRY)}")
KEEP_FAILED = keep_outcome(f"id = ANY(:ids) AND {FAILED}")
KEEP_RELEASED = _keep("'released'", "''", _RELEASED)
KEEP_POSTPONED = _keep(
    "'postponed'", "CAST(:reason AS text)", f"id = :id AND attempt = :attempt AND {guard(Transition.RELEASE)}"
)
KEEP_REFUSED = Statement(
    f"{_ADD_ATTEMPT} SELECT id, :attempt, :worker, NULL, :now, 'refused', :reason FROM jobs WHERE id = :id {_ONCE}"
)
KEEP_LOST = Statement(f"{_ADD_ATTEMPT} VALUES (:id, :attempt, :worker, :started_at, :now, 'lost', :reason) {_ONCE}")
