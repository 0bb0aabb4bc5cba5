"""Which workers there are: each writes its row when it starts and with every heartbeat, and removes it when it stops."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from forebay.contract.job import at
from forebay.contract.metrics.statistics import Statistics
from forebay.contract.runtimes import NEEDS
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement

MOST_NAMED = 5

HEARTBEAT = Statement("""
INSERT INTO workers (name, host, device, queues, runtimes, started_at, heartbeat_at, stats)
VALUES (:name, :host, :device, :queues, :runtimes, :started, :now, :stats)
ON CONFLICT (name) DO UPDATE SET heartbeat_at = :now, host = :host, device = :device, queues = :queues,
    runtimes = :runtimes, started_at = :started, stats = :stats""")
REMOVE = Statement("DELETE FROM workers WHERE name = :name")
REMOVE_SILENT = Statement("DELETE FROM workers WHERE heartbeat_at < :before")
_INFO = "name, host, device, queues, runtimes, started_at, heartbeat_at"
ALIVE = Statement(f"SELECT {_INFO} FROM workers WHERE heartbeat_at >= :since ORDER BY name")
REPORTS = Statement(f"SELECT {_INFO}, stats FROM workers ORDER BY name LIMIT 1000")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker: its name, the device it owns, the queues it serves, the runtimes that it can run."""

    name: str
    host: str
    device: str
    queues: tuple[str, ...]
    runtimes: tuple[str, ...]
    started_at: datetime
    heartbeat_at: datetime


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker, the age of its last heartbeat in seconds, and what it has counted since it started."""

    info: WorkerInfo
    age_s: float
    statistics: Statistics


class WorkerRegistry:
    """The workers' rows in the ledger. Thread-safe."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def heartbeat(
        self,
        name: str,
        host: str,
        device: str,
        queues: tuple[str, ...],
        started: float,
        stats: str = "{}",
        runtimes: tuple[str, ...] = (),
    ) -> None:
        """Note that this worker lives, since `started` by the ledger's clock; a name that was taken over starts anew.

        `stats` are its statistics since then, as JSON.
        """
        values = {"host": host, "device": device, "started": started, "stats": stats}
        lists = {"queues": json.dumps(queues), "runtimes": json.dumps(runtimes)}
        with self._ledger.write(durable=False) as connection:
            HEARTBEAT.execute(connection, name=name, now=self._ledger.now(), **values, **lists)

    def remove(self, name: str) -> None:
        """Note that this worker has stopped."""
        with self._ledger.write() as connection:
            REMOVE.execute(connection, name=name)

    def remove_silent(self, older_than_s: float) -> int:
        """Remove workers that have been silent for longer; how many."""
        with self._ledger.write() as connection:
            return REMOVE_SILENT.execute(connection, before=self._ledger.now() - older_than_s).rowcount

    def alive(self, within_s: float) -> list[WorkerInfo]:
        """The workers whose last heartbeat is at most `within_s` seconds old."""
        return [_info(row) for row in self._ledger.rows(ALIVE, since=self._ledger.now() - within_s)]

    def reports(self) -> list[WorkerReport]:
        """Every worker that is known, also those that have fallen silent, with its statistics."""
        now = self._ledger.now()
        return [
            WorkerReport(_info(row), max(0.0, now - row.heartbeat_at), Statistics.from_dict(json.loads(row.stats)))
            for row in self._ledger.rows(REPORTS)
        ]


def lacks_runtime(runtime: str, queue: str, workers: Iterable[WorkerInfo]) -> str:
    """Why those that serve a queue cannot run a version: none has its runtime. Empty when one has, or none serves the queue."""
    serving = [worker for worker in workers if queue in worker.queues]
    if not serving or any(runtime in worker.runtimes for worker in serving):
        return ""
    has = "; ".join(f"{worker.name} has {', '.join(worker.runtimes)}" for worker in serving[:MOST_NAMED])
    needs = "".join(f"; `pip install 'forebay[{extra}]'` there brings it" for _, extra in NEEDS.get(runtime, ())[-1:])
    return f"no worker that serves queue {queue!r} has the runtime {runtime!r} ({has}){needs}"


def _info(row: Any) -> WorkerInfo:
    queues, runtimes = tuple(json.loads(row.queues)), tuple(json.loads(row.runtimes))
    return WorkerInfo(row.name, row.host, row.device, queues, runtimes, at(row.started_at), at(row.heartbeat_at))
