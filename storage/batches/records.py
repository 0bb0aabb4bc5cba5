"""What goes into and comes out of BatchStore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from forebay.contract.job import JobState
from forebay.contract.requests.batch import Position

Schema: TypeAlias = bytes  # as Arrow writes it


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as those who plan for it see it: what its shards inherit, and up to where they have been planned."""

    id: str
    model: str
    version: int
    queue: str
    priority: int
    max_attempts: int
    state: JobState
    bytes: int
    position: Position
    steps: int
    planned: bool
    started_at: float | None
    part_schema: Schema
    attempt: int  # of its own: fences its end, for it may be retried while somebody still looks at how it was


@dataclass(frozen=True, slots=True)
class Totals:
    """A batch's shards summed up: how many in each state, their rows, and what the finished and running ones have done."""

    shards: Mapping[JobState, int] = field(default_factory=dict)
    rows: int = 0
    done: int = 0
    failed: int = 0
    bytes_done: float = 0.0
    seconds: float = 0.0

    @property
    def open(self) -> int:
        """How many have not ended."""
        return sum(count for state, count in self.shards.items() if not state.final)


@dataclass(frozen=True, slots=True)
class EndedBatch:
    """A batch that has ended in this attempt, and where its output is."""

    id: str
    attempt: int
    output: str
