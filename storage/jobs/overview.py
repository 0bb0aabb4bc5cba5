"""What the dashboard asks about all jobs at once: what ended in a stretch of time, how long it took, and what waits and runs.

Reads only. A stretch of time is read from an index and a bounded sample of its jobs; putting stretches together, and what
the figures mean, is the dashboard's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import text

from forebay.contract.job import JobState
from forebay.storage.ledger.connection import Ledger

ENDED = text("""
SELECT state, model, version, queue, count(*) FROM jobs WHERE finished_at >= :start AND finished_at < :end
GROUP BY state, model, version, queue""")
TIMES = text("""
SELECT created_at, started_at, finished_at FROM jobs
WHERE finished_at >= :start AND finished_at < :end AND state IN ('succeeded', 'failed') AND started_at IS NOT NULL
ORDER BY finished_at LIMIT :limit""")
WAITING = text("SELECT queue, count(*), min(id) FROM jobs WHERE state = 'queued' GROUP BY queue")
MADE = "SELECT id, created_at FROM jobs WHERE id {ids}"
# A running batch has no worker: its shards are what runs.
RUNNING = text("""
SELECT queue, worker, count(*) FROM jobs WHERE state = 'running' AND worker IS NOT NULL GROUP BY queue, worker""")
RUNNING_BY_MODEL = text("""
SELECT model, version, count(*) FROM jobs WHERE state = 'running' AND worker IS NOT NULL GROUP BY model, version""")
CEILINGS = text('SELECT name, version, device, "rows" FROM batch_ceilings ORDER BY name, version, device')


@dataclass(frozen=True, slots=True)
class EndedJobs:
    """How many jobs of one model version and queue ended in one way."""

    state: JobState
    model: str
    version: int
    queue: str
    count: int


@dataclass(frozen=True, slots=True)
class TimeBucket:
    """What ended from `start` until before `end` (seconds since the epoch).

    `times` is a sample of the jobs that ran, oldest first: seconds waited until the last attempt began, seconds it took.
    """

    start: float
    end: float
    ended: tuple[EndedJobs, ...]
    times: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Backlog:
    """What one queue holds now: jobs waiting, how long the oldest of them has waited (seconds), jobs running."""

    queue: str
    waiting: int
    oldest_age_s: float | None
    running: int


@dataclass(frozen=True, slots=True)
class CurrentLoad:
    """The moment it was read (seconds since the epoch), the queues that hold jobs, and the jobs that each worker runs."""

    at: float
    queues: tuple[Backlog, ...]
    running_by_worker: Mapping[str, int]

    @property
    def waiting(self) -> int:
        """Jobs that wait, in all queues."""
        return sum(queue.waiting for queue in self.queues)

    @property
    def running(self) -> int:
        """Jobs that run, in all queues."""
        return sum(queue.running for queue in self.queues)


class Overview:
    """Reads sums over jobs from the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def stretch(self, start: float, end: float, sample: int = 500) -> TimeBucket:
        """What ended from `start` until before `end`, with the times of at most `sample` of the jobs that ran."""
        values = {"start": start, "end": end}
        with self.ledger.read() as connection:
            ended = connection.execute(ENDED, values).fetchall()
            times = connection.execute(TIMES, values | {"limit": sample}).fetchall() if ended else []
        return TimeBucket(
            start,
            end,
            tuple(EndedJobs(JobState(state), *rest) for state, *rest in ended),
            tuple((max(0.0, started - made), max(0.0, done - started)) for made, started, done in times),
        )

    def now(self) -> CurrentLoad:
        """What waits and runs now."""
        ledger, at = self.ledger, self.ledger.now()
        with ledger.read() as connection:
            waiting = connection.execute(WAITING).fetchall()
            oldest = {"ids": ledger.bind([id for _, _, id in waiting])}
            # The smallest id is the oldest job's but for its client's clock; the ledger's own clock says how old that is.
            rows = connection.execute(text(MADE.format(ids=ledger.ids())), oldest).fetchall() if waiting else []
            running = connection.execute(RUNNING).fetchall()
        made: dict[str, float] = dict(zip([row[0] for row in rows], [row[1] for row in rows], strict=True))
        depth = {queue: count for queue, count, _ in waiting}
        age = {queue: max(0.0, at - made.get(id, at)) for queue, _, id in waiting}
        runs: dict[str, int] = {}
        workers: dict[str, int] = {}
        for queue, worker, count in running:
            runs[queue] = runs.get(queue, 0) + count
            workers[worker] = workers.get(worker, 0) + count
        names = sorted({*depth, *runs})
        queues = tuple(Backlog(name, depth.get(name, 0), age.get(name), runs.get(name, 0)) for name in names)
        return CurrentLoad(at, queues, workers)

    def running_by_model(self) -> dict[tuple[str, int], int]:
        """How many jobs of each model version run now."""
        with self.ledger.read() as connection:
            rows = connection.execute(RUNNING_BY_MODEL).fetchall()
        return {(model, version): count for model, version, count in rows}

    def ceilings(self) -> dict[tuple[str, int], dict[str, int]]:
        """By model version: the most rows that fitted into memory, by kind of device, where memory has run out."""
        with self.ledger.read() as connection:
            rows = connection.execute(CEILINGS).fetchall()
        found: dict[tuple[str, int], dict[str, int]] = {}
        for name, version, device, most in rows:
            found.setdefault((name, version), {})[device] = most
        return found
