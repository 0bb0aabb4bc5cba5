"""What goes into and comes out of the stores of jobs: frozen records, and how they are made from rows and made into them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobError, JobKind, JobState, Transition
from forebay.contract.references import shown
from forebay.contract.wire.messages import RoutedJob

_NO_JSONB = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")  # PostgreSQL's jsonb has no NUL


def json_text(what: str, value: Any, *, sort_keys: bool = False) -> str:
    """`value` as JSON that both databases can look into; InvalidInput for NaN, NUL and whatever is no JSON."""
    try:
        text = json.dumps(value, allow_nan=False, sort_keys=sort_keys)
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:  # a lone surrogate is a ValueError too
        raise InvalidInput(f"{what} must be JSON, with str keys and finite numbers: {shown(str(error))}") from error
    if _NO_JSONB.search(text):
        raise InvalidInput(f"{what} must not hold the character NUL, got {shown(value)}")
    return text


class LeaseLost(Exception):
    """Another worker has been given the job meanwhile, or it has ended: nothing of this attempt counts any more."""


class NewJob(msgspec.Struct, frozen=True, gc=False):
    """A job to add. `input` or `input_ref` holds its payload; `rows` is how many rows that is."""

    id: str
    kind: JobKind
    model: str
    version: int
    queue: str
    priority: int = 5
    max_attempts: int = 3
    rows: int = 1
    deadline_at: float | None = None
    client: str | None = None
    idempotency_key: str | None = None
    request_hash: str | None = None
    metadata: Mapping[str, Any] = {}
    parent_id: str | None = None
    input: bytes | None = None
    input_ref: str | None = None
    submitted_by: str | None = None


class ClaimedJob(msgspec.Struct, frozen=True, gc=False):
    """A job that this worker now runs: what to run, and the attempt that fences every later write."""

    id: str
    kind: JobKind
    model: str
    version: int
    queue: str
    attempt: int
    max_attempts: int
    client: str | None
    rows: int
    input: bytes | None
    input_ref: str | None
    tries: int = 1  # attempts that count; `attempt` is their number since the job was made, and the fence
    crashes: int = 0  # how many of them ended with the death of their process
    deadline_at: float | None = None
    waited_s: float = 0.0  # since it was submitted


class Finished(msgspec.Struct, frozen=True, gc=False):
    """How one attempt ended: with a result (inline or by reference), with an error, or, as `ending` says, with neither:
    canceled on request, or expired before it was begun.
    """  # fmt: skip

    id: str
    attempt: int
    result: bytes | None = None
    result_ref: str | None = None
    error: JobError | None = None
    ending: Transition | None = None


class Postponed(msgspec.Struct, frozen=True):
    """An attempt that met a transient error, for `reason`: the job waits `delay_s` seconds for its next one.

    Not `counted` when the job itself was not tried, because its model could not be loaded.
    """

    id: str
    attempt: int
    delay_s: float
    reason: str
    counted: bool = True


class Ended(msgspec.Struct, frozen=True, gc=False):
    """A job that reached a final state, for its client's announcement."""

    id: str
    client: str | None


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A finished job as a client reads it."""

    id: str
    state: JobState
    result: bytes | None
    result_ref: str | None
    error: JobError | None
    worker: str | None
    attempt: int
    kind: JobKind


# An enum's own `value` costs as much as the rest of a row.
_KIND, _QUEUED = {kind: kind.value for kind in JobKind}, JobState.QUEUED.value


def new_row(job: NewJob, now: float) -> dict[str, Any]:
    """A new job as the values of its row."""
    return {
        "id": job.id, "kind": _KIND[job.kind], "state": _QUEUED, "model": job.model, "version": job.version,
        "queue": job.queue, "priority": job.priority, "attempt": 0, "uncounted": 0, "max_attempts": job.max_attempts,
        "created_at": now, "sent_at": now, "deadline_at": job.deadline_at, "progress_done": 0, "progress_total": job.rows,
        "progress_message": "", "parent_id": job.parent_id, "client": job.client, "input": job.input, "input_ref": job.input_ref,
        "metadata": json_text("metadata", dict(job.metadata), sort_keys=True) if job.metadata else "{}",
        "idempotency_key": job.idempotency_key, "request_hash": job.request_hash, "submitted_by": job.submitted_by,
        "crashes": 0,
    }  # fmt: skip


NEW_ROW = tuple(new_row(NewJob("", JobKind.PREDICT, "", 0, ""), 0.0))  # its columns


def claimed_job(row: dict[str, Any], now: float) -> ClaimedJob:
    """A row that a claim returned, as the one who claimed it sees it."""
    row["waited_s"] = max(0.0, now - row.pop("created_at"))
    row["kind"] = JobKind(row["kind"])
    return ClaimedJob(**row)


def routed_jobs(rows: Iterable[Any]) -> list[RoutedJob]:
    """Rows of ROUTED_JOB, in the order of their ids."""
    jobs = [RoutedJob(r.id, r.model, r.version, r.queue, r.priority, r.crashes, bool(r.exclusive)) for r in rows]
    return sorted(jobs, key=lambda job: job.id)


def ended(rows: Iterable[Any]) -> list[Ended]:
    """Rows of id and client."""
    return [Ended(row.id, row.client) for row in rows]
