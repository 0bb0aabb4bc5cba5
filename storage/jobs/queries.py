"""The reading half of JobStore: single jobs, lists, results, and what the queues hold. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import text

from forebay.contract.errors import JobNotFound
from forebay.contract.job import FINAL, Attempt, AttemptEnd, JobError, JobInfo, JobKind, JobState, Progress, at, utc
from forebay.storage.jobs.records import Outcome, json_text
from forebay.storage.ledger.connection import Ledger

INFO = """id, kind, state, model, version, queue, priority, attempt - uncounted, max_attempts, worker, created_at, started_at,
finished_at, deadline_at, progress_done, progress_total, progress_message, error_type, error_message, metadata, parent_id,
cancel_requested_at, not_before"""

# As the partial indexes have them, or SQLite would not use these.
RARE_KINDS = frozenset({JobKind.BATCH, JobKind.EVALUATE, JobKind.NODE, JobKind.TRAIN})
FEW_KINDS, HAS_METADATA = "kind IN ('batch', 'evaluate', 'node', 'train')", "metadata <> '{}'"

FINAL_STATES = ", ".join(f"'{state}'" for state in sorted(FINAL))

GET = f"SELECT {INFO} FROM jobs WHERE id = :id"
LIST = f"SELECT {INFO} FROM jobs WHERE {{where}} ORDER BY id DESC LIMIT :limit"
OUTCOMES = f"""
SELECT id, state, result, result_ref, error_type, error_message, worker, attempt - uncounted, kind FROM jobs
WHERE id {{ids}} AND state IN ({FINAL_STATES})"""
STATES = "SELECT id, state FROM jobs WHERE id {ids}"
# One part for each partial index, or the whole table would be read. Sums, because SQLite would sort a million rows to group them.
COUNTS = """
SELECT 'queued', count(*) FROM jobs WHERE state = 'queued' AND {where} UNION ALL
SELECT 'running', count(*) FROM jobs WHERE state = 'running' AND {where}"""
ENDED_STATES = sorted(FINAL)
COUNTS_ENDED = f"""
SELECT {", ".join(f"coalesce(sum(CASE WHEN state = '{state}' THEN 1 ELSE 0 END), 0)" for state in ENDED_STATES)}
FROM jobs WHERE finished_at IS NOT NULL AND {{where}}"""
# A running batch has no worker: its shards are what runs.
DEPTHS = """
SELECT queue, 'queued', count(*), min(created_at) FROM jobs WHERE state = 'queued' GROUP BY queue UNION ALL
SELECT queue, 'running', count(*), 0 FROM jobs WHERE state = 'running' AND worker IS NOT NULL GROUP BY queue"""
# The oldest of a queue comes first in the index, and is most likely to have been sent long ago: few rows are looked at.
QUEUES_WAITING = """
SELECT queue FROM (SELECT DISTINCT queue FROM jobs WHERE state = 'queued') AS waiting WHERE EXISTS (
    SELECT 1 FROM jobs WHERE state = 'queued' AND jobs.queue = waiting.queue AND sent_at < :before AND not_before IS NULL)"""
PAST = """
SELECT attempt, worker, started_at, ended_at, ended, reason FROM job_attempts WHERE job_id = :id
ORDER BY attempt, ended_at"""
ATTEMPTS = "SELECT id, attempt FROM jobs WHERE id {ids} AND state = 'running'"
WAITING = (
    "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'queued' AND queue = :queue LIMIT :at_most) AS waiting"
)
CANCEL_REQUESTED = """
SELECT id FROM jobs WHERE worker = :worker AND state = 'running' AND cancel_requested_at IS NOT NULL"""
# Of the jobs that ended last, whatever queue they were of: so it reads a bounded number of rows.
PACE = """
SELECT min(finished_at), sum(CASE WHEN queue = :queue AND state IN ('succeeded', 'failed') THEN 1 ELSE 0 END)
FROM (SELECT queue, state, finished_at FROM jobs WHERE finished_at > :since ORDER BY finished_at DESC LIMIT :limit) AS recent"""
PACE_WINDOW_S, PACE_SAMPLE = 60.0, 2000


class JobQueries:
    """Reads jobs from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sql = cache(ledger.statement)

    def get(self, id: str) -> JobInfo:
        """One job; JobNotFound when there is none of this id."""
        with self.ledger.read() as connection:
            row = connection.execute(self._sql(GET), {"id": id}).fetchone()
        if row is None:
            raise JobNotFound(f"no job has the id {id!r}; it never existed, or retention has deleted it")
        return _info(row)

    def find(
        self,
        *,
        state: Sequence[JobState] = (),
        kind: JobKind | None = None,
        model: str | None = None,
        version: int | None = None,
        parent_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[JobInfo]:
        """The newest jobs that meet every filter given, newest first; `before` an id gives the next page."""
        filters: dict[str, tuple[str, Any]] = {
            "states": (f"state {self.ledger.ids('states')}", self.ledger.bind(list(state)) if state else None),
            "kind": ("kind = :kind", kind and kind.value),
            "model": ("model = :model", model),
            "version": ("version = :version", version),
            "parent_id": ("parent_id = :parent_id", parent_id),
            "before": ("id < :before", before),
        }
        where = [clause for clause, value in filters.values() if value is not None]
        where += [FEW_KINDS] if kind in RARE_KINDS else []
        where += [HAS_METADATA] if metadata else []
        values = {name: value for name, (_, value) in filters.items() if value is not None}
        for i, (key, value) in enumerate((metadata or {}).items()):
            where.append(self._metadata_filter(i))
            values |= self._metadata_values(i, key, value)
        statement = LIST.format(where=" AND ".join(where) or "1 = 1")
        with self.ledger.read() as connection:
            rows = connection.execute(text(statement), values | {"limit": limit}).fetchall()
        return [_info(row) for row in rows]

    def _metadata_filter(self, i: int) -> str:
        """SQL for 'metadata holds this key with an equal value', the type being part of it: 1 is neither "1" nor true.

        Looking for the text comes first, for it costs a tenth of reading JSON.
        """
        if not self.ledger.sqlite:
            equal = f"CAST(metadata AS jsonb) -> CAST(:key{i} AS text) = CAST(:value{i} AS jsonb)"
            return f"strpos(metadata, CAST(:text{i} AS text)) > 0 AND {equal}"
        return f"""instr(metadata, :text{i}) > 0 AND EXISTS (
            SELECT 1 FROM json_each(metadata) AS has, json_each(json_array(json(:value{i}))) AS wanted
            WHERE has.key = :key{i} AND has.value IS wanted.value
            AND replace(has.type, 'real', 'integer') = replace(wanted.type, 'real', 'integer'))"""

    def _metadata_values(self, i: int, key: str, value: Any) -> dict[str, Any]:
        wanted = json_text("metadata", value, sort_keys=True)
        # As JobStore.add writes it; but equal numbers may be written in several ways.
        part = wanted if value is None or isinstance(value, (str, bool)) else ""
        return {f"key{i}": key, f"value{i}": wanted, f"text{i}": f"{json.dumps(key)}: {part}"}

    def outcomes(self, ids: Sequence[str]) -> list[Outcome]:
        """Those of the jobs that are finished, with their results or errors, in no order."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(OUTCOMES), {"ids": self.ledger.bind(ids)}).fetchall()
        return [
            Outcome(id, JobState(state), result, ref, _error(type_, message), worker, attempt, JobKind(kind))
            for id, state, result, ref, type_, message, worker, attempt, kind in rows
        ]

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each of the jobs that exist."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(STATES), {"ids": self.ledger.bind(ids)}).fetchall()
        return {id: JobState(state) for id, state in rows}

    def attempts(self, ids: Sequence[str]) -> dict[str, int]:
        """Which attempt holds each of the jobs that run; whoever has another number has lost it."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(ATTEMPTS), {"ids": self.ledger.bind(ids)}).fetchall()
        return {row.id: row.attempt for row in rows}

    def counts(self, *, model: str | None = None) -> dict[JobState, int]:
        """How many jobs are in each state, those with none included."""
        # The plus keeps SQLite from looking at each row of the model, where the index of finished jobs has all it needs.
        of_model = "+model = :model" if self.ledger.sqlite else "model = :model"
        where, values = (of_model, {"model": model}) if model else ("1 = 1", {})
        with self.ledger.read() as connection:
            open_ = connection.execute(text(COUNTS.format(where=where)), values).fetchall()
            ended = connection.execute(text(COUNTS_ENDED.format(where=where)), values).one()
        found = {JobState(state): count for state, count in open_}
        return found | {state: int(count) for state, count in zip(ENDED_STATES, ended, strict=True)}

    def depths(self) -> dict[str, tuple[int, float | None, int]]:
        """By queue: jobs waiting, the age of the oldest of them in seconds (None without any), jobs running."""
        now = self.ledger.now()
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(DEPTHS)).fetchall()
        found: dict[str, tuple[int, float | None, int]] = {}
        for queue, state, count, oldest in rows:
            depth, age, running = found.get(queue, (0, None, 0))
            found[queue] = (count, max(0.0, now - oldest), running) if state == JobState.QUEUED else (depth, age, count)
        return found

    def past(self, id: str) -> list[Attempt]:
        """The attempts of a job that its row no longer tells of, oldest first."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(PAST), {"id": id}).fetchall()
        return [
            Attempt(attempt, worker, utc(started), at(ended_at), AttemptEnd(ended), reason)
            for attempt, worker, started, ended_at, ended, reason in rows
        ]

    def waiting(self, queue: str, at_most: int) -> int:
        """How many jobs wait in this queue; counted up to `at_most`."""
        with self.ledger.read() as connection:
            return int(connection.execute(self._sql(WAITING), {"queue": queue, "at_most": at_most}).scalar_one())

    def pace(self, queue: str) -> float:
        """How many of this queue's jobs succeeded or failed per second, of late; 0.0 when none did within a minute."""
        now = self.ledger.now()
        values = {"queue": queue, "since": now - PACE_WINDOW_S, "limit": PACE_SAMPLE}
        with self.ledger.read() as connection:
            first, of_queue = connection.execute(self._sql(PACE), values).one()
        return (of_queue or 0) / max(1.0, now - first) if first is not None else 0.0

    def cancel_requested(self, worker: str) -> set[str]:
        """Those of this worker's running jobs that a user wants to stop. Cheap: an index holds just these."""
        with self.ledger.read() as connection:
            return set(connection.execute(self._sql(CANCEL_REQUESTED), {"worker": worker}).scalars())

    def queues_waiting(self, older_than_s: float) -> list[str]:
        """The queues with jobs last sent longer ago than `older_than_s` seconds."""
        with self.ledger.read() as connection:
            return list(
                connection.execute(self._sql(QUEUES_WAITING), {"before": self.ledger.now() - older_than_s}).scalars()
            )


def _error(type_: str | None, message: str | None) -> JobError | None:
    return None if type_ is None else JobError(type_, message or "")


def _info(row: Any) -> JobInfo:
    (id, kind, state, model, version, queue, priority, attempt, max_attempts, worker, created, started, finished, deadline,
     done, total, message, error_type, error_message, metadata, parent, cancel_requested, not_before) = row  # fmt: skip
    return JobInfo(
        id, JobKind(kind), JobState(state), model, version, queue, priority, attempt, max_attempts, worker,
        at(created), utc(started), utc(finished), utc(deadline), Progress(done, total, message),
        _error(error_type, error_message), json.loads(metadata), parent, utc(cancel_requested), utc(not_before),
    )  # fmt: skip
