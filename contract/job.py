"""A job as all parts see it: its kind, its six states, and who may move it from which state to which.

storage.jobs turns each Transition into one SQL statement, whose guard is generated from the table here.
"""

from __future__ import annotations

import os
import re
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
    NODE = "node"  # an additional machine of a training job, which is its parent
    EVALUATE = "evaluate"
    CONVERT = "convert"
    BENCHMARK = "benchmark"
    REFERENCE = "reference"  # what a version is held against for drift is made of a data set
    TUNE = "tune"
    COMPRESS = "compress"
    EXPLAIN = "explain"

    @property
    def of_rows(self) -> bool:
        """Whether its payload holds rows, which share messages and batches with those of others; else it holds a request."""
        return self in (JobKind.PREDICT, JobKind.EXPLAIN)


PARENTS = frozenset({JobKind.BATCH, JobKind.TUNE})  # whose work other jobs do, which have them as their parent


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
        """Whether the job has ended; only a retry moves it on."""
        return self in FINAL


FINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED, JobState.EXPIRED})


class Transition(StrEnum):
    """Every change of state there is, and who may make it."""

    CLAIM = "claim"  # a worker takes a queued job; attempt + 1, lease starts
    SUCCEED = "succeed"  # the worker that holds the lease, fenced by attempt
    FAIL = "fail"  # the same worker, or the sweeper when no attempt is left
    RELEASE = "release"  # the same worker returns it, not run or for later; or the sweeper, when the worker died
    CANCEL = "cancel"  # a user, while it is queued; once a user has asked, the worker that runs it
    EXPIRE = "expire"  # the sweeper, or the worker that claimed it, when the deadline passed before any row was run
    RETRY = "retry"  # a user, on a job that failed, expired or was canceled; its attempts are counted from 0 again


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
    """The state after `transition`; IllegalTransition when it cannot be made from `state`."""
    sources, target = TRANSITIONS[transition]
    if state not in sources:
        allowed = ", ".join(sorted(sources))
        raise IllegalTransition(f"cannot {transition} a job that is {state}; it must be {allowed}")
    return target


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is: `done` of `total` units (rows, for predict and batch), and a message."""

    done: int = 0
    total: int = 1
    message: str = ""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed: the error's class name and its text."""

    type: str
    message: str

    @property
    def line(self) -> str:
        """The type and the first line of the text, for a list; a text may have many lines."""
        return f"{self.type}: {first_line(self.message)}".removesuffix(": ")


def first_line(text: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


@dataclass(frozen=True, slots=True)
class JobInfo:
    """One job's row in the ledger, without its input and result. All times are aware, in UTC.

    `cancel_requested_at` is when a user asked to cancel the running job. `not_before` is the earliest time of the next attempt
    of a job that met a transient error. `submitted_by` tells of a job that came over HTTP the dialect, such as `native`, and,
    behind a colon, the name of the API key.
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
    submitted_by: str | None = None

    @property
    def ref(self) -> str:
        """The model version: `name/3`, or only `name` for a training job, whose version (0) is yet to be made."""
        return versioned(self.model, self.version)


class AttemptEnd(StrEnum):
    """How an attempt ended that did not end its job for good."""

    LOST = "lost"  # its process died or its lease lapsed
    RELEASED = "released"  # the worker returned the job, not run
    POSTPONED = "postponed"  # it met a transient error
    REFUSED = "refused"  # its result came after its lease had lapsed, and was dropped
    FAILED = "failed"  # this and the next two: the job ended so, and a user retried it
    CANCELED = "canceled"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt that a later one followed, or whose result was refused."""

    attempt: int
    worker: str | None
    started_at: datetime | None
    ended_at: datetime
    ended: AttemptEnd
    reason: str


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue's jobs waiting (`depth`) and running, how many may wait (None: any number), and the workers that serve it."""

    name: str
    depth: int
    oldest_age_s: float | None
    running: int
    workers: tuple[str, ...]
    capacity: Mapping[str, float]
    max_queue_size: int | None = None


def at(seconds: float) -> datetime:
    """An aware datetime from seconds since the epoch, the form in which the ledger stores time."""
    return datetime.fromtimestamp(seconds, UTC)


def utc(seconds: float | None) -> datetime | None:
    """The same for a time that may be missing."""
    return None if seconds is None else at(seconds)


# What follows a worker's name where the ledger says who has claimed a job: the start of its process. Two processes of one name
# must not give back, or take for lost, what the other runs.
RUN = re.compile(r"#[0-9a-f]{8}$")
RUN_BYTES = 4


def claimant(worker: str, run: str) -> str:
    return f"{worker}#{run}"


def worker_of(claimant: str | None) -> str | None:
    """The worker's name alone."""
    return None if claimant is None else RUN.sub("", claimant)


class IdGenerator:
    """Job ids: 32 hex digits that sort by time of creation (RFC 9562's UUID version 7, without dashes).

    The first 12 digits are milliseconds, 3 more count within the millisecond, the rest is random. The ids of one generator
    strictly increase, which keeps the ledger's primary key append-only and its pages in order of submission.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last = 0

    def many(self, count: int) -> list[str]:
        noise = os.urandom(8 * count).hex()
        with self._lock:
            first = max(int(self._clock() * 1000) << 12, self._last + 1)
            self._last = first + count - 1
        return [_uuid7(first + i, noise[16 * i : 16 * i + 16]) for i in range(count)]


def _uuid7(stamp: int, noise: str) -> str:
    variant = "89ab"[int(noise[0], 16) & 3]
    return f"{stamp >> 12:012x}7{stamp & 0xFFF:03x}{variant}{noise[1:]}"


new_ids = IdGenerator().many
