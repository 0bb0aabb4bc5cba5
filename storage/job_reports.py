"""The reading half of JobStore: single jobs, lists, results, and what the queues hold. Changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import TextClause, text

from forebay.contract.errors import JobNotFound
from forebay.contract.job import FINAL, JobError, JobInfo, JobKind, JobState, Progress, at, utc
from forebay.storage.ledger import Ledger
from forebay.storage.records import Outcome, json_text

INFO = """id, kind, state, model, version, queue, priority, attempt - uncounted, max_attempts, worker, created_at, started_at,
finished_at, deadline_at, progress_done, progress_total, progress_message, error_type, error_message, metadata, parent_id"""

FINAL_STATES = ", ".join(f"'{state}'" for state in sorted(FINAL))

GET = f"SELECT {INFO} FROM jobs WHERE id = :id"
LIST = f"SELECT {INFO} FROM jobs WHERE {{where}} ORDER BY id DESC LIMIT :limit"
OUTCOMES = f"""
SELECT id, state, result, result_ref, error_type, error_message, worker, attempt - uncounted FROM jobs
WHERE id {{ids}} AND state IN ({FINAL_STATES})"""
STATES = "SELECT id, state FROM jobs WHERE id {ids}"
COUNTS = "SELECT state, count(*) FROM jobs WHERE {where} GROUP BY state"
DEPTHS = """
SELECT queue, state, count(*), min(created_at) FROM jobs WHERE state IN ('queued', 'running') AND kind <> 'batch'
GROUP BY queue, state"""
QUEUES_WAITING = "SELECT DISTINCT queue FROM jobs WHERE state = 'queued' AND sent_at < :before"


class JobReports:
    """Reads jobs from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sql = cache(self._prepare)

    def _prepare(self, statement: str) -> TextClause:
        ledger = self.ledger
        return text(
            statement.replace("{ids}", ledger.ids())
            .replace("{skip_locked}", ledger.skip_locked())
            .replace("{for_update}", ledger.for_update())
        )

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
        values = {name: value for name, (_, value) in filters.items() if value is not None}
        for i, (key, value) in enumerate((metadata or {}).items()):
            where.append(self._metadata_filter(i))
            values |= self._metadata_values(i, key, value)
        statement = LIST.format(where=" AND ".join(where) or "1 = 1")
        with self.ledger.read() as connection:
            rows = connection.execute(text(statement), values | {"limit": limit}).fetchall()
        return [_info(row) for row in rows]

    def _metadata_filter(self, i: int) -> str:
        """SQL for 'metadata holds this key with an equal value', the type being part of it: 1 is neither "1" nor true."""
        if not self.ledger.sqlite:
            return f"CAST(metadata AS jsonb) -> CAST(:key{i} AS text) = CAST(:value{i} AS jsonb)"
        return f"""EXISTS (
            SELECT 1 FROM json_each(metadata) AS has, json_each(json_array(json(:value{i}))) AS wanted
            WHERE has.key = :key{i} AND has.value IS wanted.value
            AND replace(has.type, 'real', 'integer') = replace(wanted.type, 'real', 'integer'))"""

    def _metadata_values(self, i: int, key: str, value: Any) -> dict[str, Any]:
        return {f"key{i}": key, f"value{i}": json_text("metadata", value, sort_keys=True)}

    def outcomes(self, ids: Sequence[str]) -> list[Outcome]:
        """Those of the jobs that are finished, with their results or errors, in no order."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(OUTCOMES), {"ids": self.ledger.bind(ids)}).fetchall()
        return [
            Outcome(id, JobState(state), result, ref, _error(type_, message), worker, attempt)
            for id, state, result, ref, type_, message, worker, attempt in rows
        ]

    def states(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each of the jobs that exist."""
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(STATES), {"ids": self.ledger.bind(ids)}).fetchall()
        return {id: JobState(state) for id, state in rows}

    def counts(self, *, model: str | None = None) -> dict[JobState, int]:
        """How many jobs are in each state, those with none included."""
        where, values = ("model = :model", {"model": model}) if model else ("1 = 1", {})
        with self.ledger.read() as connection:
            rows = connection.execute(text(COUNTS.format(where=where)), values).fetchall()
        return dict.fromkeys(JobState, 0) | {JobState(state): count for state, count in rows}

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
     done, total, message, error_type, error_message, metadata, parent) = row  # fmt: skip
    return JobInfo(
        id, JobKind(kind), JobState(state), model, version, queue, priority, attempt, max_attempts, worker,
        at(created), utc(started), utc(finished), utc(deadline), Progress(done, total, message),
        _error(error_type, error_message), json.loads(metadata), parent,
    )  # fmt: skip
