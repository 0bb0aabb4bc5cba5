"""What the dashboard asks about all jobs at once: what ended in a span of time, how long it took, and what waits and runs.

Reads only. A span of time is read from an index and a bounded sample of its jobs; the dashboard puts spans together.
"""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from forebay.contract.job import JobKind, JobState, worker_of
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

ENDED = Statement("""
SELECT state, model, version, queue, count(*) AS jobs FROM jobs WHERE finished_at >= :start AND finished_at < :end
GROUP BY state, model, version, queue""")
TIMES = Statement("""
SELECT kind, created_at, started_at, finished_at FROM jobs
WHERE finished_at >= :start AND finished_at < :end AND state IN ('succeeded', 'failed') AND started_at IS NOT NULL
ORDER BY finished_at LIMIT :limit""")
WAITING = Statement("SELECT queue, count(*) AS jobs, min(id) AS oldest FROM jobs WHERE state = 'queued' GROUP BY queue")
CREATED = Statement("SELECT id, created_at FROM jobs WHERE id = ANY(:ids)")
# A running batch has no worker: its shards are what runs.
RUNNING = Statement("""
SELECT queue, worker, count(*) AS jobs FROM jobs WHERE state = 'running' AND worker IS NOT NULL GROUP BY queue, worker""")
RUNNING_BY_MODEL = Statement("""
SELECT model, version, count(*) AS jobs FROM jobs WHERE state = 'running' AND worker IS NOT NULL GROUP BY model, version""")
CEILINGS = Statement('SELECT name, version, device, "rows" FROM batch_ceilings ORDER BY name, version, device')


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

    `times` is a sample of the jobs that ran, by kind: of each, oldest first, the seconds that it waited until its last attempt
    began, and those that the attempt took. The dashboard keeps a day of them, so they are small.
    """  # fmt: skip

    start: float
    end: float
    ended: tuple[EndedJobs, ...]
    times: Mapping[JobKind, array[float]]


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

    def bucket(self, start: float, end: float, sample: int = 500) -> TimeBucket:
        """What ended from `start` until before `end`, with the times of at most `sample` of the jobs that ran."""
        ended = self.ledger.rows(ENDED, start=start, end=end)
        times: defaultdict[JobKind, array[float]] = defaultdict(lambda: array("d"))
        for row in self.ledger.rows(TIMES, start=start, end=end, limit=sample) if ended else []:
            wait, run = row.started_at - row.created_at, row.finished_at - row.started_at
            times[JobKind(row.kind)].extend((max(0.0, wait), max(0.0, run)))
        return TimeBucket(
            start,
            end,
            tuple(EndedJobs(JobState(row.state), row.model, row.version, row.queue, row.jobs) for row in ended),
            dict(times),
        )

    def load(self) -> CurrentLoad:
        """What waits and runs now."""
        now = self.ledger.now()
        with self.ledger.read() as connection:
            waiting = WAITING.execute(connection).fetchall()
            # The smallest id is the oldest job's but for its client's clock; the ledger's own clock says how old that is.
            oldest = CREATED.execute(connection, ids=[row.oldest for row in waiting])
            created = {row.id: row.created_at for row in oldest}
            running = RUNNING.execute(connection).fetchall()
        depth = {row.queue: row.jobs for row in waiting}
        age = {row.queue: max(0.0, now - created.get(row.oldest, now)) for row in waiting}
        by_queue: Counter[str] = Counter()
        by_worker: Counter[str] = Counter()
        for row in running:
            by_queue[row.queue] += row.jobs
            by_worker[worker_of(row.worker) or ""] += row.jobs
        names = sorted({*depth, *by_queue})
        queues = tuple(Backlog(name, depth.get(name, 0), age.get(name), by_queue[name]) for name in names)
        return CurrentLoad(now, queues, by_worker)

    def running_by_model(self) -> dict[tuple[str, int], int]:
        """How many jobs of each model version run now."""
        return {(row.model, row.version): row.jobs for row in self.ledger.rows(RUNNING_BY_MODEL)}

    def ceilings(self) -> dict[tuple[str, int], dict[str, int]]:
        """By model version: the most rows that fitted into memory, by kind of device, where memory has run out."""
        found: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)
        for row in self.ledger.rows(CEILINGS):
            found[row.name, row.version][row.device] = row.rows
        return dict(found)
