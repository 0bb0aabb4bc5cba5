"""What the dashboard asks about batches: what a list of them shows, a batch's shards as a grid and as a table, errors by kind.

Reads only, and a bounded number of rows of a result however many shards there are. Which batches there are is told by JobViews;
how it is shown is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import text

from forebay.contract.job import JobState
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import ShardOutcome
from forebay.contract.row_errors import ErrorCounts, ErrorKind, ErrorSample
from forebay.storage.batches.queries import BatchQueries

MOST_CELLS = 300
MOST_KINDS = 20
SHARDS_ASKED = 5_000  # of those with errors: how many are counted by kind
SHARDS_SAMPLED = 20

ABOUT = "SELECT id, output, files FROM batches WHERE id {ids}"
FAILED_ROWS = "SELECT batch_id, sum(rows_failed) FROM shards WHERE batch_id {ids} AND rows_failed > 0 GROUP BY batch_id"
# Shards in the order of the input, as many to a cell as it takes.
CELLS = text("""
SELECT cell, state, count(*), sum(failed), min(number), max(number), min(part), min(id) FROM (
    SELECT (row_number() OVER (ORDER BY s.part) - 1) * :cells / :shards AS cell,
        row_number() OVER (ORDER BY s.part) AS number, j.state AS state, s.part AS part, s.id AS id,
        CASE WHEN s.rows_failed > 0 THEN 1 ELSE 0 END AS failed
    FROM shards s JOIN jobs j ON j.parent_id = s.batch_id AND j.id = s.id WHERE s.batch_id = :id) AS numbered
GROUP BY cell, state ORDER BY cell""")
COUNT = text("SELECT count(*) FROM shards WHERE batch_id = :id")
ROW = """
SELECT s.id, s.part, j.state, j.worker, j.attempt - j.uncounted, s.rows, s.rows_done, s.rows_failed, s.seconds,
    j.error_type, j.error_message
FROM shards s JOIN jobs j ON j.id = s.id"""
SHARDS = text(f"{ROW} WHERE s.batch_id = :id AND s.part >= :first ORDER BY s.part LIMIT :limit")
BEFORE = text("SELECT part FROM shards WHERE batch_id = :id AND part < :first ORDER BY part DESC LIMIT :limit")
# The second condition is the index', or SQLite would not use it.
RUNNING = text(f"""
{ROW} WHERE j.parent_id = :id AND j.state = 'running' AND j.state IN ('queued', 'running') ORDER BY s.part LIMIT :limit""")
FAILING = """
SELECT outcome FROM shards WHERE batch_id = :id AND rows_failed > 0 AND outcome IS NOT NULL ORDER BY id LIMIT :limit"""
HOW_MANY = f"SELECT count(*) FROM ({FAILING}) AS failing"
KINDS_SQLITE = f"""
SELECT json_extract(kind.value, '$.type') AS type, sum(json_extract(kind.value, '$.count')) AS many
FROM ({FAILING}) AS failing, json_each(failing.outcome, '$.kinds') AS kind
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :kinds"""
KINDS_POSTGRES = f"""
SELECT kind ->> 'type' AS type, sum(CAST(kind ->> 'count' AS bigint)) AS many
FROM ({FAILING}) AS failing, json_array_elements(CAST(failing.outcome AS json) -> 'kinds') AS kind
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :kinds"""
SHARD_ERRORS = text("""
SELECT error_type, count(*), min(id) FROM jobs WHERE parent_id = :id AND state = 'failed'
GROUP BY error_type ORDER BY 2 DESC, 1 LIMIT :kinds""")
MESSAGES = "SELECT id, error_message FROM jobs WHERE id {ids}"


@dataclass(frozen=True, slots=True)
class BatchAbout:
    """What a list shows of a batch that has been started: its output, its input files, and the rows that failed."""

    output: str
    files: int
    failed: int


@dataclass(frozen=True, slots=True)
class Cell:
    """Some shards that lie side by side, numbered from 1: how many in each state, and how many of them hold bad rows.

    `part` is the name of the first one's part, `id` its job when the cell is a single shard.
    """

    first: int
    last: int
    states: Mapping[JobState, int]
    with_errors: int
    part: str
    id: str | None

    @property
    def count(self) -> int:
        """How many shards it stands for."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One shard: its part, state and worker, its rows (a guess in text until it has ended), and what is done of them.

    `seconds` of work were spent on the attempt that runs or has ended.
    """

    id: str
    part: str
    state: JobState
    worker: str | None
    attempt: int
    rows: int
    done: int
    failed: int
    seconds: float
    error: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class ShardPage:
    """Shards in the order of the input; where the pages before and after it begin, None at either end."""

    shards: list[ShardRow] = field(default_factory=list)
    previous: str | None = None
    next: str | None = None


@dataclass(frozen=True, slots=True)
class BatchErrors:
    """Why rows failed, the most frequent kind first. Not `complete` when only the first SHARDS_ASKED shards were counted.

    `shards` are kinds of errors with which whole shards failed; a sample's place is then the shard's job.
    """

    rows: tuple[ErrorKind, ...] = ()
    shards: tuple[ErrorKind, ...] = ()
    complete: bool = True


class BatchViews(BatchQueries):
    """Batches for people. Thread-safe."""

    def about(self, ids: Sequence[str]) -> dict[str, BatchAbout]:
        """Those of these batches that have been started, with the rows that failed in the last attempt at each shard."""
        bound = {"ids": self.ledger.bind(ids)}
        with self.ledger.read() as connection:
            rows = connection.execute(self._sql(ABOUT), bound).fetchall()
            failed = {row[0]: int(row[1]) for row in connection.execute(self._sql(FAILED_ROWS), bound)}
        return {id: BatchAbout(output, files, failed.get(id, 0)) for id, output, files in rows}

    def cells(self, id: str, most: int = MOST_CELLS) -> list[Cell]:
        """All shards of a batch planned so far, in the order of the input, in at most so many cells."""
        with self.ledger.read() as connection:
            shards = int(connection.execute(COUNT, {"id": id}).scalar_one())
            values = {"id": id, "shards": shards, "cells": min(shards, most)}
            rows = connection.execute(CELLS, values).fetchall() if shards else []
        found: dict[int, list[Any]] = {}
        for row in rows:
            found.setdefault(row[0], []).append(row)
        return [_cell(rows) for rows in found.values()]

    def shards(self, id: str, first: str = "", limit: int = 25) -> ShardPage:
        """The shards from the part `first` on, in the order of the input."""
        values = {"id": id, "first": first, "limit": limit}
        with self.ledger.read() as connection:
            rows = connection.execute(SHARDS, values | {"limit": limit + 1}).fetchall()
            before = connection.execute(BEFORE, values).scalars().all() if first else []
        after = rows[limit].part if len(rows) > limit else None
        return ShardPage([_shard(row) for row in rows[:limit]], before[-1] if before else None, after)

    def running(self, id: str, limit: int = 50) -> list[ShardRow]:
        """The shards that run now."""
        with self.ledger.read() as connection:
            return [_shard(row) for row in connection.execute(RUNNING, {"id": id, "limit": limit})]

    def errors(self, id: str) -> BatchErrors:
        """Why rows of finished shards failed, and why whole shards did."""
        asked = {"id": id, "limit": SHARDS_ASKED, "kinds": MOST_KINDS}
        with self.ledger.read() as connection:
            failing = connection.execute(text(FAILING), asked | {"limit": SHARDS_SAMPLED}).scalars().all()
            statement = text(KINDS_SQLITE if self.ledger.sqlite else KINDS_POSTGRES)
            counts = connection.execute(statement, asked).fetchall() if failing else []
            more = asked | {"limit": SHARDS_ASKED + 1}
            many = int(connection.execute(text(HOW_MANY), more).scalar_one()) if failing else 0
            shards = connection.execute(SHARD_ERRORS, asked).fetchall()
            ids = {"ids": self.ledger.bind([row[2] for row in shards])}
            messages = {row[0]: row[1] for row in connection.execute(self._sql(MESSAGES), ids)} if shards else {}
        samples = _samples(failing)
        return BatchErrors(
            tuple(ErrorKind(type, int(count), samples.get(type, ())) for type, count in counts),
            tuple(_shard_error(type, count, first, messages.get(first)) for type, count, first in shards),
            many <= SHARDS_ASKED,
        )


def _cell(rows: Sequence[Any]) -> Cell:
    """From its rows, one for each state."""
    states = {JobState(row[1]): int(row[2]) for row in rows}
    first, last = min(row[4] for row in rows), max(row[5] for row in rows)
    id = rows[0][7] if first == last else None
    return Cell(int(first), int(last), states, int(sum(row[3] for row in rows)), min(row[6] for row in rows), id)


def _shard(row: Any) -> ShardRow:
    id, part, state, worker, attempt, rows, done, failed, seconds, error, message = row
    return ShardRow(
        id, part, JobState(state), worker, attempt, int(rows), int(done), int(failed), seconds, error, message
    )


def _samples(outcomes: Sequence[str]) -> dict[str, tuple[ErrorSample, ...]]:
    """Samples by kind from a few shards, the first ones found."""
    counts = ErrorCounts()
    for outcome in outcomes:
        counts.include(decode(outcome, ShardOutcome).kinds)
    return {kind.type: kind.samples for kind in counts.kinds()}


def _shard_error(type: str | None, count: int, id: str, message: str | None) -> ErrorKind:
    return ErrorKind(type or "unknown", int(count), (ErrorSample(id, message or ""),))
