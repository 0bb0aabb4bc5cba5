"""What goes into and comes out of JobStore: plain, frozen records. They know no SQL."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobError, JobKind, JobState, Transition
from forebay.contract.references import shown

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


@dataclass(frozen=True, slots=True)
class NewJob:
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
    metadata: Mapping[str, Any] = field(default_factory=dict)
    parent_id: str | None = None
    input: bytes | None = None
    input_ref: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
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


@dataclass(frozen=True, slots=True)
class Finished:
    """How one attempt ended: with a result (inline or by reference), with an error, or, as `ending` says, with neither:
    canceled on request, or expired before it was begun.
    """  # fmt: skip

    id: str
    attempt: int
    result: bytes | None = None
    result_ref: str | None = None
    error: JobError | None = None
    ending: Transition | None = None


@dataclass(frozen=True, slots=True)
class Postponed:
    """An attempt that met a transient error, for `reason`: the job waits `delay_s` seconds for its next one.

    Not `counted` when the job itself was not tried, because its model could not be loaded.
    """

    id: str
    attempt: int
    delay_s: float
    reason: str
    counted: bool = True


@dataclass(frozen=True, slots=True)
class Ended:
    """A job that reached a final state, for its client's announcement."""

    id: str
    client: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A finished job as a client reads it."""

    id: str
    state: JobState
    result: bytes | None
    result_ref: str | None
    error: JobError | None
    worker: str | None
    attempt: int
    kind: JobKind
