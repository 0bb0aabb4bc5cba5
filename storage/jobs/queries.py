"""JobQueries: single jobs, lists, results, and what the queues hold. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Unpack

from forebay.contract.errors import JobNotFound
from forebay.contract.job import (
    FINAL,
    Attempt,
    AttemptEnd,
    JobError,
    JobInfo,
    JobKind,
    JobState,
    Progress,
    at,
    utc,
    worker_of,
)
from forebay.contract.wire.messages import RoutedJob
from forebay.storage.jobs.records import Outcome, json_text, routed_jobs
from forebay.storage.jobs.statements import COUNTED, FAILED, ROUTED_JOB, STATE_OF_IDS
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

INFO = f"""id, kind, state, model, version, queue, priority, {COUNTED} AS attempt, max_attempts, worker, created_at, started_at,
finished_at, deadline_at, progress_done, progress_total, progress_message, error_type, error_message, metadata, parent_id,
cancel_requested_at, not_before, submitted_by"""

# As the partial indexes have them, or SQLite would not use these.
RARE_KINDS = frozenset(JobKind) - {JobKind.PREDICT, JobKind.SHARD}
IS_RARE_KIND, HAS_METADATA = "kind NOT IN ('predict', 'shard')", "metadata <> '{}'"

FINAL_STATES = ", ".join(f"'{state}'" for state in sorted(FINAL))

GET = Statement(f"SELECT {INFO} FROM jobs WHERE id = :id")
INFOS = Statement(f"SELECT {INFO} FROM jobs WHERE id = ANY(:ids)")
OWNER = Statement("SELECT kind, client FROM jobs WHERE id = :id")
IDS_WITH = Statement("SELECT id FROM jobs WHERE id >= :low AND id < :high ORDER BY id LIMIT :limit")
OUTCOMES = Statement(f"""
SELECT id, state, result, result_ref, error_type, error_message, worker, {COUNTED} AS attempt, kind FROM jobs
WHERE id = ANY(:ids) AND state IN ({FINAL_STATES})""")
STATES = Statement("SELECT id, state FROM jobs WHERE id = ANY(:ids)")
QUEUED = Statement(
    f"SELECT {ROUTED_JOB} FROM jobs WHERE id = ANY(:ids) AND {STATE_OF_IDS} = 'queued' AND not_before IS NULL"
)
ATTEMPTS = Statement("SELECT id, attempt FROM jobs WHERE id = ANY(:ids) AND state = 'running'")
PAST_ATTEMPTS = Statement("""
SELECT attempt, worker, started_at, ended_at, ended, reason FROM job_attempts WHERE job_id = :id
ORDER BY attempt, ended_at""")
# A running batch has no worker: its shards are what runs.
DEPTHS = Statement("""
SELECT queue, 'queued' AS state, count(*) AS jobs, min(created_at) AS oldest FROM jobs WHERE state = 'queued' GROUP BY queue
UNION ALL
SELECT queue, 'running', count(*), 0 FROM jobs WHERE state = 'running' AND worker IS NOT NULL GROUP BY queue""")
COUNT_WAITING = Statement(
    "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' AND queue = :queue LIMIT :at_most) AS waiting"
)
CANCEL_REQUESTED = Statement(
    "SELECT id FROM jobs WHERE worker = :worker AND state = 'running' AND cancel_requested_at IS NOT NULL"
)
# The oldest of a queue comes first in the index, and is most likely to have been sent long ago: few rows are looked at.
QUEUES_WITH_UNSENT = Statement("""
SELECT queue FROM (SELECT DISTINCT queue FROM jobs WHERE state = 'queued') AS waiting WHERE EXISTS (
    SELECT 1 FROM jobs WHERE state = 'queued' AND jobs.queue = waiting.queue AND sent_at < :before AND not_before IS NULL)""")
# Of the jobs that ended last, whatever queue they were of: so it reads a bounded number of rows.
COMPLETED = Statement("""
SELECT min(finished_at) AS first, sum(CASE WHEN queue = :queue AND state IN ('succeeded', 'failed') THEN 1 ELSE 0 END) AS jobs
FROM (SELECT queue, state, finished_at FROM jobs WHERE finished_at > :since ORDER BY finished_at DESC LIMIT :limit) AS recent""")
RATE_WINDOW_S, RATE_SAMPLE = 60.0, 2000

# Whichever of its starts it was.
OF_WORKER = """(worker = CAST(:worker AS text)
    OR substr(worker, 1, length(CAST(:worker AS text)) + 1) = CAST(:worker AS text) || '#')"""
CLOCKS_APART_S = 3600.0  # ids are made by clients: how far their clocks may be from the ledger's
FILTERS = {
    "states": "state = ANY(:states)",
    "worker": OF_WORKER,
    "before": "id < :before",
    "since": "created_at >= :since AND id >= :since_id",
}  # all others: equality


class JobFilters(TypedDict, total=False):
    """Which jobs are looked for; what is left out, or None, does not matter. `since` is in seconds since the epoch."""

    state: Sequence[JobState]
    kind: JobKind | None
    model: str | None
    version: int | None
    queue: str | None
    worker: str | None
    parent_id: str | None
    since: float | None
    metadata: Mapping[str, Any] | None


class JobQueries:
    """Reads jobs from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def get(self, id: str) -> JobInfo:
        """One job; JobNotFound when there is none of this id."""
        return job_info(self._of_id(GET, id))

    def infos(self, ids: Sequence[str]) -> dict[str, JobInfo]:
        """Those of these jobs that are there, by id."""
        return {row.id: job_info(row) for row in self._ledger.rows(INFOS, ids=list(ids))}

    def owner(self, id: str) -> tuple[JobKind, str]:
        """A job's kind, and the client that is told of its end; "" where there is none. JobNotFound likewise."""
        row = self._of_id(OWNER, id)
        return JobKind(row.kind), row.client or ""

    def _of_id(self, statement: Statement, id: str) -> Any:
        row = self._ledger.row(statement, id=id)
        if row is None:
            raise JobNotFound(f"no job has the id {id!r}; it never existed, or retention has deleted it")
        return row

    def find(self, *, limit: int = 100, before: str | None = None, **filters: Unpack[JobFilters]) -> list[JobInfo]:
        """The newest jobs that meet every filter given, newest first; `before` an id gives the next page."""
        values: dict[str, Any] = {
            "states": list(filters.get("state", ())) or None, "before": before,
            **{name: filters.get(name) for name in ("kind", "model", "version", "queue", "worker", "parent_id", "since")},
        }  # fmt: skip
        values = {name: value for name, value in values.items() if value is not None}
        where = [FILTERS.get(name, f"{name} = :{name}") for name in values]
        if "since" in values:
            values["since_id"] = id_at(values["since"] - CLOCKS_APART_S)
        where += [IS_RARE_KIND] if filters.get("kind") in RARE_KINDS else []
        clauses, wanted = metadata_filter(filters.get("metadata") or {}, self._ledger.sqlite)
        all_of = " AND ".join([*where, *clauses]) or "1 = 1"
        listed = Statement(f"SELECT {INFO} FROM jobs WHERE {all_of} ORDER BY id DESC LIMIT :limit")
        return [job_info(row) for row in self._ledger.rows(listed, **values, **wanted, limit=limit)]

    def ids_with(self, prefix: str, limit: int) -> list[str]:
        """The ids that begin with these hexadecimal digits, the oldest first, at most `limit`."""
        return [row.id for row in self._ledger.rows(IDS_WITH, low=prefix, high=f"{prefix}g", limit=limit)]

    def outcomes(self, ids: Sequence[str]) -> list[Outcome]:
        """Those of the jobs that are finished, with their results or errors, in no order."""
        return [
            Outcome(
                id=row.id, state=JobState(row.state), result=row.result, result_ref=row.result_ref,
                error=_job_error(row.error_type, row.error_message), worker=worker_of(row.worker),
                attempt=row.attempt, kind=JobKind(row.kind),
            )
            for row in self._ledger.rows(OUTCOMES, ids=ids)
        ]  # fmt: skip

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each of the jobs that exist."""
        return {row.id: JobState(row.state) for row in self._ledger.rows(STATES, ids=ids)}

    def queued(self, ids: Sequence[str]) -> list[RoutedJob]:
        """Those of the jobs that are queued and due, as what to send them with."""
        return routed_jobs(self._ledger.rows(QUEUED, ids=ids))

    def attempts(self, ids: Sequence[str]) -> dict[str, int]:
        """Which attempt holds each of the jobs that run; whoever has another number has lost it."""
        return {row.id: row.attempt for row in self._ledger.rows(ATTEMPTS, ids=ids)}

    def past_attempts(self, id: str) -> list[Attempt]:
        """The attempts of a job that its row no longer tells of, oldest first."""
        return [
            Attempt(
                row.attempt,
                worker_of(row.worker),
                utc(row.started_at),
                at(row.ended_at),
                AttemptEnd(row.ended),
                row.reason,
            )
            for row in self._ledger.rows(PAST_ATTEMPTS, id=id)
        ]

    def counts(self, *, model: str | None = None) -> dict[JobState, int]:
        """How many jobs are in each state, those with none included."""
        # The plus keeps SQLite from looking at each row of the model, where the index of finished jobs has all it needs.
        of_model = "+model = :model" if self._ledger.sqlite else "model = :model"
        where, values = (of_model, {"model": model}) if model else ("1 = 1", {})
        open_, over = count_statements(where)
        counts = {JobState(row.state): row.jobs for row in self._ledger.rows(open_, **values)}
        return counts | {JobState(s): int(jobs) for s, jobs in self._ledger.row(over, **values)._asdict().items()}

    def depths(self) -> dict[str, tuple[int, float | None, int]]:
        """By queue: jobs waiting, the age of the oldest of them in seconds (None without any), jobs running."""
        now = self._ledger.now()
        found: dict[str, tuple[int, float | None, int]] = {}
        for row in self._ledger.rows(DEPTHS):
            depth, age, running = found.get(row.queue, (0, None, 0))
            if row.state == JobState.QUEUED:
                found[row.queue] = (row.jobs, max(0.0, now - row.oldest), running)
            else:
                found[row.queue] = (depth, age, row.jobs)
        return found

    def count_waiting(self, queue: str, at_most: int) -> int:
        """How many jobs wait in this queue; counted up to `at_most`."""
        return int(self._ledger.scalar(COUNT_WAITING, queue=queue, at_most=at_most))

    def completion_rate(self, queue: str) -> float:
        """How many of this queue's jobs succeeded or failed per second, of late; 0.0 when none did within a minute."""
        now = self._ledger.now()
        row = self._ledger.row(COMPLETED, queue=queue, since=now - RATE_WINDOW_S, limit=RATE_SAMPLE)
        return (row.jobs or 0) / max(1.0, now - row.first) if row.first is not None else 0.0

    def cancel_requested(self, worker: str) -> set[str]:
        """Those of this worker's running jobs that a user wants to stop. Cheap: an index holds just these."""
        return {row.id for row in self._ledger.rows(CANCEL_REQUESTED, worker=worker)}

    def queues_with_unsent(self, older_than_s: float) -> list[str]:
        """The queues with jobs last sent longer ago than `older_than_s` seconds."""
        return [row.queue for row in self._ledger.rows(QUEUES_WITH_UNSENT, before=self._ledger.now() - older_than_s)]

    def failed_ids(self, model: str | None, version: int | None, after: str, limit: int) -> list[str]:
        """The ids of failed and expired jobs, in order, from the one after `after` on."""
        where, values = _failed(model, version)
        statement = Statement(f"SELECT id FROM jobs WHERE {where} AND id > :after ORDER BY id LIMIT :limit")
        return [row.id for row in self._ledger.rows(statement, **values, after=after, limit=limit)]

    def count_failed(self, *, model: str | None = None, version: int | None = None) -> int:
        """How many jobs have failed or expired."""
        where, values = _failed(model, version)
        return int(self._ledger.scalar(Statement(f"SELECT count(*) FROM jobs WHERE {where}"), **values))


def count_statements(where: str) -> tuple[Statement, Statement]:
    """Counts by state of the jobs that meet `where`: of those that wait or run, and of those that have ended.

    A part for each partial index, or the whole table would be read. Sums, because SQLite would sort a million rows to group them.
    """
    sums = ", ".join(f"coalesce(sum(CASE WHEN state = '{s}' THEN 1 ELSE 0 END), 0) AS {s}" for s in sorted(FINAL))
    return Statement(f"""
SELECT 'queued' AS state, count(*) AS jobs FROM jobs WHERE state = 'queued' AND {where} UNION ALL
SELECT 'running', count(*) FROM jobs WHERE state = 'running' AND {where}"""), Statement(
        f"SELECT {sums} FROM jobs WHERE finished_at IS NOT NULL AND {where}"
    )


def metadata_filter(metadata: Mapping[str, Any], sqlite: bool) -> tuple[list[str], dict[str, Any]]:
    """Conditions for 'metadata holds each key with an equal value', and what to bind to them.

    The type is part of the value: 1 is neither "1" nor true. Looking for the text comes first, for it costs a tenth of reading
    JSON.
    """
    clauses = [HAS_METADATA] if metadata else []
    values: dict[str, Any] = {}
    for i, (key, value) in enumerate(metadata.items()):
        clauses.append(_SQLITE_METADATA.format(i=i) if sqlite else _POSTGRES_METADATA.format(i=i))
        wanted = json_text("metadata", value, sort_keys=True)
        # As JobStore.add writes it; but equal numbers may be written in several ways.
        part = wanted if value is None or isinstance(value, (str, bool)) else ""
        values |= {f"key{i}": key, f"value{i}": wanted, f"text{i}": f"{json.dumps(key)}: {part}"}
    return clauses, values


_POSTGRES_METADATA = """strpos(metadata, CAST(:text{i} AS text)) > 0
    AND CAST(metadata AS jsonb) -> CAST(:key{i} AS text) = CAST(:value{i} AS jsonb)"""
_SQLITE_METADATA = """instr(metadata, :text{i}) > 0 AND EXISTS (
    SELECT 1 FROM json_each(metadata) AS has, json_each(json_array(json(:value{i}))) AS wanted
    WHERE has.key = :key{i} AND has.value IS wanted.value
    AND replace(has.type, 'real', 'integer') = replace(wanted.type, 'real', 'integer'))"""


def _failed(model: str | None, version: int | None) -> tuple[str, dict[str, Any]]:
    values = {name: value for name, value in (("model", model), ("version", version)) if value is not None}
    return " AND ".join([FAILED, *(f"{name} = :{name}" for name in values)]), values


def _job_error(type: str | None, message: str | None) -> JobError | None:
    return None if type is None else JobError(type, message or "")


def job_info(row: Any) -> JobInfo:
    """A row of INFO."""
    return JobInfo(
        id=row.id, kind=JobKind(row.kind), state=JobState(row.state), model=row.model, version=row.version, queue=row.queue,
        priority=row.priority, attempt=row.attempt, max_attempts=row.max_attempts, worker=worker_of(row.worker),
        created_at=at(row.created_at), started_at=utc(row.started_at), finished_at=utc(row.finished_at),
        deadline_at=utc(row.deadline_at), progress=Progress(row.progress_done, row.progress_total, row.progress_message),
        error=_job_error(row.error_type, row.error_message), metadata=json.loads(row.metadata), parent_id=row.parent_id,
        cancel_requested_at=utc(row.cancel_requested_at), not_before=utc(row.not_before), submitted_by=row.submitted_by,
    )  # fmt: skip


def id_at(seconds: float) -> str:
    """How the ids begin that clients make at a time, in seconds since the epoch."""
    return f"{max(0, round(seconds * 1000)):012x}"
