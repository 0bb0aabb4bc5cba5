"""What the dashboard asks about jobs: pages of the list under filters, and everything the ledger knows of one job.

Reads only, and never much: a page looks at a bounded number of rows however many there are, and says where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from forebay.contract.errors import JobNotFound
from forebay.contract.job import JobInfo, JobKind, JobState, at, utc
from forebay.storage.jobs.queries import (
    CLOCKS_APART_S,
    HAS_METADATA,
    INFO,
    IS_RARE_KIND,
    OF_WORKER,
    RARE_KINDS,
    id_at,
    job_info,
    metadata_filter,
)
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.statement import Statement

FIRST_ID, LAST_ID = "0" * 32, "g" * 32  # an id is hexadecimal, and sorts by the time it was made
WINDOW, LARGEST_WINDOW = 2_000, 16_000  # rows looked at in one statement
FEW = 5_000
ENDED_BADLY = frozenset({JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})
IS_ENDED_BADLY = "state IN ('failed', 'canceled', 'expired')"  # as the partial index has it, or SQLite would not use it
UNFINISHED = frozenset({JobState.QUEUED, JobState.RUNNING})

WITH_STATE = {state: Statement(f"SELECT id FROM jobs WHERE state = '{state}' LIMIT :limit") for state in UNFINISHED}
CHILDREN = Statement("SELECT state, count(*) AS jobs FROM jobs WHERE parent_id = :id GROUP BY state")
DETAILS = Statement(f"""
SELECT {INFO}, attempt AS attempts, sent_at, lease_until, client, idempotency_key, input_ref, result_ref,
    length(input) AS input_size, length(result) AS result_size,
    CASE WHEN length(input) <= :limit THEN input END AS input,
    CASE WHEN length(result) <= :limit THEN result END AS result
FROM jobs WHERE id = :id""")


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs a page is to show; what is None or empty does not matter. Times are seconds since the epoch."""

    state: JobState | None = None
    kind: JobKind | None = None
    model: str | None = None
    version: int | None = None
    queue: str | None = None
    worker: str | None = None
    parent_id: str | None = None
    id_prefix: str = ""
    since: float | None = None
    until: float | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first. `next` is the `before` of the page that follows, None at the end.

    `searched_to` is set when the page is not full because the time was up: jobs older than it were not looked at yet.
    """

    jobs: list[JobInfo]
    next: str | None
    searched_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobDetails:
    """One job with what `JobInfo` leaves out. Payloads above the limit asked for are None, their sizes (bytes) are there.

    `attempts` counts every execution, those before a retry included. `children` are jobs by state, of a batch.
    """

    info: JobInfo
    attempts: int
    sent_at: datetime
    lease_until: datetime | None
    client: str | None
    idempotency_key: str | None
    input_ref: str | None
    result_ref: str | None
    input_size: int | None
    result_size: int | None
    input: bytes | None
    result: bytes | None
    children: Mapping[JobState, int]


class JobViews:
    """Pages of jobs and single jobs, for people. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def page(self, wanted: JobFilter, *, limit: int = 50, before: str | None = None, budget_s: float = 0.25) -> JobPage:
        """The newest jobs that meet the filter, of those older than the job `before`; about `budget_s` seconds of work.

        Rare states and children of a batch have an index; all other filters walk back over the jobs from the newest,
        a window at a time.
        """
        where, values = self._conditions(wanted)
        low, high = _bounds(wanted, before)
        with self._ledger.read() as connection:
            few = _few_ids(connection, wanted.state)
            if few is not None:
                where, values = f"{where} AND id = ANY(:few)", values | {"few": few}
            walk = _Walk(connection, _base(wanted), where, values)
            if few is not None or wanted.parent_id is not None:
                return _page(walk.jobs(low, high, limit), limit)
            return walk.page(low, high, limit, time.monotonic() + budget_s)

    def count_up_to(self, state: JobState, limit: int) -> int:
        """How many jobs are in a state, counted up to `limit`."""
        some = Statement(f"SELECT count(*) FROM (SELECT 1 FROM jobs WHERE {_in_state(state)} LIMIT :limit) AS found")
        return int(self._ledger.scalar(some, limit=limit))

    def details(self, id: str, payload_limit: int = 65536) -> JobDetails:
        """Everything about one job; JobNotFound when there is none of this id."""
        row = self._ledger.row(DETAILS, id=id, limit=payload_limit)
        if row is None:
            raise JobNotFound(f"no job has the id {id!r}; it never existed, or retention has deleted it")
        return JobDetails(
            info=job_info(row), attempts=row.attempts, sent_at=at(row.sent_at), lease_until=utc(row.lease_until),
            client=row.client, idempotency_key=row.idempotency_key, input_ref=row.input_ref, result_ref=row.result_ref,
            input_size=row.input_size, result_size=row.result_size, input=row.input, result=row.result,
            children={JobState(row.state): row.jobs for row in self._ledger.rows(CHILDREN, id=id)},
        )  # fmt: skip

    def _conditions(self, wanted: JobFilter) -> tuple[str, dict[str, Any]]:
        equal = {
            name: value
            for name in ("model", "version", "queue", "parent_id")
            if (value := getattr(wanted, name)) is not None
        }
        where = [f"{name} = :{name}" for name in equal]
        if wanted.worker is not None:
            where.append(OF_WORKER)
            equal["worker"] = wanted.worker
        # Literals, so that the planner sees which partial index holds them.
        where += [_in_state(wanted.state)] if wanted.state else []
        where += [_of_kind(wanted.kind)] if wanted.kind else []
        values: dict[str, Any] = dict(equal)
        for name, comparison in (("since", ">="), ("until", "<=")):
            if (value := getattr(wanted, name)) is not None:
                where.append(f"created_at {comparison} :{name}")
                values[name] = value
        clauses, of_metadata = metadata_filter(wanted.metadata, self._ledger.sqlite)
        return " AND ".join([*where, *clauses]) or "1 = 1", values | of_metadata


def _few_ids(connection: Connection, state: JobState | None) -> list[str] | None:
    """The ids of all jobs in a state that has an index without their order; None for other states, and for many jobs."""
    if state is None or state not in UNFINISHED:
        return None
    ids = list(WITH_STATE[state].execute(connection, limit=FEW + 1).scalars())
    return ids if len(ids) <= FEW else None


class _Walk:
    """A walk back over the jobs that meet a filter, from the newest."""

    def __init__(self, connection: Connection, base: str, where: str, values: Mapping[str, Any]) -> None:
        self._connection, self._values = connection, values
        between = "id < :before AND id >= :low ORDER BY id DESC"
        self._floor = Statement(f"SELECT id FROM jobs WHERE {base} AND {between} LIMIT 1 OFFSET :window")
        self._jobs = Statement(f"SELECT {INFO} FROM jobs WHERE {where} AND {between} LIMIT :limit")

    def jobs(self, low: str, before: str, limit: int) -> list[JobInfo]:
        """The newest of them whose ids are between `low` and `before`."""
        rows = self._jobs.execute(self._connection, **self._values, low=low, before=before, limit=limit)
        return [job_info(row) for row in rows]

    def page(self, low: str, high: str, limit: int, until: float) -> JobPage:
        """Windows of jobs, each larger than the one before, until the page is full, all jobs are seen or the time is up."""
        jobs: list[JobInfo] = []
        window = WINDOW
        while True:
            bounds = {"low": low, "before": high, "window": window}
            floor = self._floor.execute(self._connection, **self._values, **bounds).scalar()
            jobs += self.jobs(low if floor is None else floor, high, limit - len(jobs))
            if len(jobs) == limit or floor is None:
                return _page(jobs, limit)
            high, window = floor, min(window * 4, LARGEST_WINDOW)
            if time.monotonic() > until:
                return JobPage(jobs, high, at(made_at(high)))


def _page(jobs: list[JobInfo], limit: int) -> JobPage:
    return JobPage(jobs, jobs[-1].id if len(jobs) == limit else None)


def _base(wanted: JobFilter) -> str:
    """The one condition that an index in the order of ids serves: windows are cut from the jobs that meet it."""
    if wanted.state is not None and wanted.state in ENDED_BADLY:
        return _in_state(wanted.state)
    if wanted.kind is not None and wanted.kind in RARE_KINDS:
        return _of_kind(wanted.kind)
    if wanted.model is not None:
        return "model = :model"
    return HAS_METADATA if wanted.metadata else "1 = 1"


def _of_kind(kind: JobKind) -> str:
    return f"kind = '{kind.value}'" + (f" AND {IS_RARE_KIND}" if kind in RARE_KINDS else "")


def _in_state(state: JobState) -> str:
    return f"state = '{state.value}'" + (f" AND {IS_ENDED_BADLY}" if state in ENDED_BADLY else "")


def _bounds(wanted: JobFilter, before: str | None) -> tuple[str, str]:
    """The lowest id that can be meant, and one above the highest."""
    prefix = wanted.id_prefix
    low = max(prefix, FIRST_ID if wanted.since is None else id_at(wanted.since - CLOCKS_APART_S))
    highest = LAST_ID if wanted.until is None else id_at(wanted.until + CLOCKS_APART_S)
    return low, min(before or LAST_ID, f"{prefix}g" if prefix else LAST_ID, highest)


def made_at(id: str) -> float:
    """When a job's id was made, in seconds since the epoch by its client's clock."""
    return int(id[:12], 16) / 1000
