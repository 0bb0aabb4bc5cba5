"""What a submit asks for beside its inputs, and what makes two requests the same. Knows no ledger and no queue."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from forebay.contract.model import ModelVersion

Deadline = float | timedelta | datetime


@dataclass(frozen=True, slots=True)
class Terms:
    """What a submit asks for beside its inputs, checked."""

    model: ModelVersion
    queue: str
    priority: int
    deadline_at: float | None
    max_attempts: int
    idempotency_key: str | None
    metadata: Mapping[str, Any]
    batched: bool


def request_hash(terms: Terms, data: bytes) -> str:
    """What makes two requests the same: the model version, the input, and how it is to be run."""
    about = f"{terms.model.ref} {terms.queue} {terms.priority} {terms.max_attempts} {sorted(terms.metadata.items())}"
    return hashlib.sha256(about.encode() + b"\0" + data).hexdigest()
