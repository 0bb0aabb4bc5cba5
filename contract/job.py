"""A job as everyone sees it: its kinds, its six states, and who may move it from which state to which.

Knows nothing of SQL or Redis. storage.jobs turns each Transition into one fenced statement.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from forebay.contract.errors import IllegalTransition
from forebay.contract.references import versioned


class JobKind(StrEnum):
    """What a job asks for."""

    PREDICT = "predict"
    BATCH = "batch"
    SHARD = "shard"
    TRAIN = "train"
    NODE = "node"  # one more machine of a training job on several: a job with that parent
    EVALUATE = "evaluate"


class JobState(StrEnum):
    """Where a job stands. The last four are final: a job reaches exactly one of them, exactly once."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether the job will not move on by itself."""
        return self in FINAL


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})


class Transition(StrEnum):
    """Every change of state there is. Who may make it stands beside each."""

    CLAIM = "claim"  # a worker takes a queued job; attempt + 1, lease starts
    SUCCEED = "succeed"  # the worker that holds the lease, fenced by attempt
    FAIL = "fail"  # the same worker, or the sweeper when no attempt is left
    RELEASE = "release"  # the same worker gives it back, unrun or for later; whoever frees what a dead one held
    CANCEL = "cancel"  # a user, while queued; once a user has asked, whoever ends the work of a running one
    EXPIRE = "expire"  # the sweeper, or the worker that has claimed it, once the deadline passed with no row begun
    RETRY = "retry"  # a user, on a job that failed, expired or was canceled; attempts start afresh


TRANSITIONS: Mapping[Transition, tuple[frozenset[JobState], JobState]] = {
    Transition.CLAIM: (frozenset({JobState.QUEUED}), JobState.RUNNING),
    Transition.SUCCEED: (frozenset({JobState.RUNNING}), JobState.SUCCEEDED),
    Transition.FAIL: (frozenset({JobState.RUNNING}), JobState.FAILED),
    Transition.RELEASE: (frozenset({JobState.RUNNING}), JobState.QUEUED),
    Transition.CANCEL: (frozenset({JobState.QUEUED, JobState.RUNNING}), JobState.CANCELED),
    Transition.EXPIRE: (frozenset({JobState.QUEUED, JobState.RUNNING}), JobState.EXPIRED),
    Transition.RETRY: (frozenset({JobState.FAILED, JobState.EXPIRED, JobState.CANCELED}), JobState.QUEUED),
}


def after(state: JobState, transition: Transition) -> JobState:
    """The state a job is in after `transition`; IllegalTransition when its present state forbids it."""
    sources, target = TRANSITIONS[transition]
    if state not in sources:
        allowed = ", ".join(sorted(sources))
        raise IllegalTransition(f"cannot {transition} a job that is {state}; it must be {allowed}")
    return target


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` units (rows for predict and batch), and a word about it."""

    done: int = 0
    total: int = 1
    message: str = ""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: the error's class name and its text."""

    type: str
    message: str


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job's row in the ledger, without its input and result. All times are aware UTC.

    `cancel_requested_at` is set once a user has asked for the cancel of a running job; `not_before` while a job that met a
    transient error waits for its next attempt.
    """

    id: str
    kind: JobKind
    state: JobState
    model: str
    version: int
    queue: str
    priority: int
    attempt: int
    max_attempts: int
    worker: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime | None
    progress: Progress
    error: JobError | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent_id: str | None = None
    cancel_requested_at: datetime | None = None
    not_before: datetime | None = None

    @property
    def ref(self) -> str:
        """What the job is for: `name/3`, or `name` for a training job, whose `version` is 0: it makes one."""
        return versioned(self.model, self.version)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that did not end its job for good: on which worker, from when to when, how it ended and why.

    `ended` is `lost` (its process died or its lease lapsed), `released` (given back unrun),
    `postponed` (it met a transient error), `refused` (it came back after
    its lease had lapsed, and its result was dropped), or the final state that a retry took back.
    """

    attempt: int
    worker: str | None
    started_at: datetime | None
    ended_at: datetime
    ended: str
    reason: str


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """One queue now: jobs waiting and running in the ledger, how many may wait (None: any), and who serves it."""

    name: str
    depth: int
    oldest_age_s: float | None
    running: int
    workers: tuple[str, ...]
    capacity: Mapping[str, float]
    max_queue_size: int | None = None


def at(seconds: float) -> datetime:
    """Seconds since the epoch, as the ledger stores time, as an aware datetime."""
    return datetime.fromtimestamp(seconds, UTC)


def utc(seconds: float | None) -> datetime | None:
    """The same for a time that may not have come."""
    return None if seconds is None else at(seconds)


class IdGenerator:
    """Job ids: 32 hex digits that sort by time of creation (RFC 9562's UUID version 7, without dashes).

    The first 12 digits are milliseconds, the next 4 count within the millisecond, the rest is random; ids of one
    maker strictly increase, which keeps the ledger's primary key append-only and its pages in order of submission.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0

    def many(self, count: int) -> list[str]:
        """`count` new ids in increasing order."""
        noise = os.urandom(8 * count).hex()
        with self._lock:
            first = max(int(self._clock() * 1000) << 12, self._last + 1)
            self._last = first + count - 1
        return [_uuid7(first + i, noise[16 * i : 16 * i + 16]) for i in range(count)]


def _uuid7(stamp: int, noise: str) -> str:
    variant = "89ab"[int(noise[0], 16) & 3]
    return f"{stamp >> 12:012x}7{stamp & 0xFFF:03x}{variant}{noise[1:]}"


new_ids = IdGenerator().many
