"""What the dashboard asks about batches: what a list of them shows, a batch's shards as a grid and as a table, errors by kind.

Reads only, and gives a bounded number of rows however many shards there are. JobViews lists which batches there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forebay.contract.job import JobInfo, JobKind, JobState, worker_of
from forebay.contract.requests.request import decode
from forebay.contract.requests.shards import ShardOutcome
from forebay.contract.row_errors import ErrorCounts, ErrorKind, ErrorSample
from forebay.storage.batches.queries import BatchQueries
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

MOST_CELLS = 300
MOST_KINDS = 20
SHARDS_ASKED = 5_000  # of those with errors: how many are counted by kind
SHARDS_SAMPLED = 20

SUMMARIES = Statement("SELECT id, output, files, planned FROM batches WHERE id = ANY(:ids)")
FAILED_ROWS = Statement("""
SELECT batch_id, sum(rows_failed) AS failed FROM shards WHERE batch_id = ANY(:ids) AND rows_failed > 0 GROUP BY batch_id""")
# Shards in the order of the input, as many to a cell as it takes.
CELLS = Statement("""
SELECT cell, state, count(*) AS shards, sum(failed) AS failed, min(number) AS first, max(number) AS last, min(part) AS part,
    min(id) AS id
FROM (
    SELECT (row_number() OVER (ORDER BY s.part) - 1) * :cells / :shards AS cell,
        row_number() OVER (ORDER BY s.part) AS number, j.state AS state, s.part AS part, s.id AS id,
        CASE WHEN s.rows_failed > 0 THEN 1 ELSE 0 END AS failed
    FROM shards s JOIN jobs j ON j.parent_id = s.batch_id AND j.id = s.id WHERE s.batch_id = :id) AS numbered
GROUP BY cell, state ORDER BY cell""")
COUNT = Statement("SELECT count(*) FROM shards WHERE batch_id = :id")
_ROW = """
SELECT s.id, s.part, j.state, j.worker, j.attempt - j.uncounted AS attempt, s.rows, s.rows_done, s.rows_failed, s.seconds,
    j.error_type, j.error_message
FROM shards s JOIN jobs j ON j.id = s.id"""
SHARDS = Statement(f"{_ROW} WHERE s.batch_id = :id AND s.part >= :first ORDER BY s.part LIMIT :limit")
BEFORE = Statement("SELECT part FROM shards WHERE batch_id = :id AND part < :first ORDER BY part DESC LIMIT :limit")
# The second condition is the index', or SQLite would not use it.
RUNNING = Statement(f"""
{_ROW} WHERE j.parent_id = :id AND j.state = 'running' AND j.state IN ('queued', 'running') ORDER BY s.part LIMIT :limit""")
_FAILING = """
SELECT outcome FROM shards WHERE batch_id = :id AND rows_failed > 0 AND outcome IS NOT NULL ORDER BY id LIMIT :limit"""
FAILING = Statement(_FAILING)
COUNT_FAILING = Statement(f"SELECT count(*) FROM ({_FAILING}) AS failing")
KINDS_SQLITE = Statement(f"""
SELECT json_extract(kind.value, '$.type') AS type, sum(json_extract(kind.value, '$.count')) AS errors
FROM ({_FAILING}) AS failing, json_each(failing.outcome, '$.kinds') AS kind
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :kinds""")
KINDS_POSTGRES = Statement(f"""
SELECT kind ->> 'type' AS type, sum(CAST(kind ->> 'count' AS bigint)) AS errors
FROM ({_FAILING}) AS failing, json_array_elements(CAST(failing.outcome AS json) -> 'kinds') AS kind
GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT :kinds""")
SHARD_ERRORS = Statement("""
SELECT error_type, count(*) AS errors, min(id) AS first FROM jobs WHERE parent_id = :id AND state = 'failed'
GROUP BY error_type ORDER BY 2 DESC, 1 LIMIT :kinds""")
MESSAGES = Statement("SELECT id, error_message FROM jobs WHERE id = ANY(:ids)")


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """What a list shows of a batch that has been started: its output, its input files, and the rows that failed."""

    output: str
    files: int
    failed: int
    planned: bool  # all shards: until then its rows are not all counted


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
    """One shard: its part, state and worker, its rows (a guess in large compressed text until it ended), and what is done.

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


class BatchViews:
    """Batches for people. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.queries = BatchQueries(ledger)

    def summaries(self, ids: Sequence[str]) -> dict[str, BatchSummary]:
        """Those of these batches that have been started, with the rows that failed in the last attempt at each shard."""
        failed = {row.batch_id: int(row.failed) for row in self._ledger.rows(FAILED_ROWS, ids=ids)}
        return {
            row.id: BatchSummary(row.output, row.files, failed.get(row.id, 0), bool(row.planned))
            for row in self._ledger.rows(SUMMARIES, ids=ids)
        }

    def planning(self, jobs: Sequence[JobInfo]) -> frozenset[str]:
        """The ids of those among them that are batches whose rows are not all planned yet, so that their totals grow."""
        running = [job.id for job in jobs if job.kind is JobKind.BATCH and job.state is JobState.RUNNING]
        about = self.summaries(running) if running else {}
        return frozenset(id for id in running if id not in about or not about[id].planned)

    def cells(self, id: str, most: int = MOST_CELLS) -> list[Cell]:
        """All shards of a batch planned so far, in the order of the input, in at most so many cells."""
        shards = int(self._ledger.scalar(COUNT, id=id))
        rows = self._ledger.rows(CELLS, id=id, shards=shards, cells=min(shards, most)) if shards else []
        found: dict[int, list[Any]] = {}
        for row in rows:
            found.setdefault(row.cell, []).append(row)
        return [_cell(rows) for rows in found.values()]

    def shards(self, id: str, first: str = "", limit: int = 25) -> ShardPage:
        """The shards from the part `first` on, in the order of the input."""
        rows = self._ledger.rows(SHARDS, id=id, first=first, limit=limit + 1)
        before = self._ledger.rows(BEFORE, id=id, first=first, limit=limit) if first else []
        after = rows[limit].part if len(rows) > limit else None
        return ShardPage([_shard(row) for row in rows[:limit]], before[-1].part if before else None, after)

    def running(self, id: str, limit: int = 50) -> list[ShardRow]:
        """The shards that run now."""
        return [_shard(row) for row in self._ledger.rows(RUNNING, id=id, limit=limit)]

    def errors(self, id: str) -> BatchErrors:
        """Why rows of finished shards failed, and why whole shards did."""
        with self._ledger.read() as connection:
            failing = [row.outcome for row in FAILING.execute(connection, id=id, limit=SHARDS_SAMPLED)]
            kinds: Sequence[Any] = ()
            counted = 0
            if failing:
                statement = KINDS_SQLITE if self._ledger.sqlite else KINDS_POSTGRES
                kinds = statement.execute(connection, id=id, limit=SHARDS_ASKED, kinds=MOST_KINDS).fetchall()
                counted = COUNT_FAILING.execute(connection, id=id, limit=SHARDS_ASKED + 1).scalar_one()
            shards = SHARD_ERRORS.execute(connection, id=id, kinds=MOST_KINDS).fetchall()
            ids = [row.first for row in shards]
            messages = {row.id: row.error_message for row in MESSAGES.execute(connection, ids=ids)} if ids else {}
        samples = _samples(failing)
        return BatchErrors(
            tuple(ErrorKind(row.type, int(row.errors), samples.get(row.type, ())) for row in kinds),
            tuple(
                ErrorKind(row.error_type or "unknown", row.errors, (ErrorSample(row.first, messages.get(row.first) or ""),))
                for row in shards
            ),
            counted <= SHARDS_ASKED,
        )  # fmt: skip


def _cell(rows: Sequence[Any]) -> Cell:
    """From its rows, one for each state."""
    first, last = int(min(row.first for row in rows)), int(max(row.last for row in rows))
    return Cell(
        first, last, {JobState(row.state): int(row.shards) for row in rows}, int(sum(row.failed for row in rows)),
        min(row.part for row in rows), rows[0].id if first == last else None,
    )  # fmt: skip


def _shard(row: Any) -> ShardRow:
    return ShardRow(
        id=row.id, part=row.part, state=JobState(row.state), worker=worker_of(row.worker), attempt=row.attempt,
        rows=int(row.rows), done=int(row.rows_done), failed=int(row.rows_failed), seconds=row.seconds, error=row.error_type,
        message=row.error_message,
    )  # fmt: skip


def _samples(outcomes: Sequence[str]) -> dict[str, tuple[ErrorSample, ...]]:
    """Samples by kind from a few shards, the first ones found."""
    counts = ErrorCounts()
    for outcome in outcomes:
        counts.include(decode(outcome, ShardOutcome).kinds)
    return {kind.type: kind.samples for kind in counts.kinds()}
