"""Which workers there are: each writes its row when it starts and with every heartbeat, and removes it when it stops."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import text

from forebay.contract.job import at
from forebay.contract.metrics.statistics import Statistics
from forebay.storage.ledger.connection import Ledger

BEAT = text("""
INSERT INTO workers (name, host, device, queues, started_at, heartbeat_at, stats)
VALUES (:name, :host, :device, :queues, :started, :now, :stats)
ON CONFLICT (name) DO UPDATE SET heartbeat_at = :now, host = :host, device = :device, queues = :queues, started_at = :started,
    stats = :stats""")
LEAVE = text("DELETE FROM workers WHERE name = :name")
ALIVE = text(
    "SELECT name, host, device, queues, started_at, heartbeat_at FROM workers WHERE heartbeat_at >= :since ORDER BY name"
)
REPORTS = text(
    "SELECT name, host, device, queues, started_at, heartbeat_at, stats FROM workers ORDER BY name LIMIT 1000"
)
FORGET = text("DELETE FROM workers WHERE heartbeat_at < :before")


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """One worker: its name, the device it owns, the queues it serves."""

    name: str
    host: str
    device: str
    queues: tuple[str, ...]
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

    def beat(
        self, name: str, host: str, device: str, queues: tuple[str, ...], started: float, stats: str = "{}"
    ) -> None:
        """Say that this worker lives, since `started` by the ledger's clock; a name that was taken over starts anew.

        `stats` are its statistics since then, as JSON.
        """
        values = {"name": name, "host": host, "device": device, "queues": json.dumps(queues), "started": started}
        values |= {"now": self._ledger.now(), "stats": stats}
        with self._ledger.write(durable=False) as connection:
            connection.execute(BEAT, values)

    def leave(self, name: str) -> None:
        """Say that this worker has stopped."""
        with self._ledger.write() as connection:
            connection.execute(LEAVE, {"name": name})

    def alive(self, within_s: float) -> list[WorkerInfo]:
        """The workers whose last heartbeat is at most `within_s` seconds old."""
        with self._ledger.read() as connection:
            rows = connection.execute(ALIVE, {"since": self._ledger.now() - within_s}).fetchall()
        return [
            WorkerInfo(name, host, device, tuple(json.loads(queues)), at(started), at(beat))
            for name, host, device, queues, started, beat in rows
        ]

    def reports(self) -> list[WorkerReport]:
        """Every worker that is known, also those that have fallen silent, with its statistics."""
        now = self._ledger.now()
        with self._ledger.read() as connection:
            rows = connection.execute(REPORTS).fetchall()
        return [
            WorkerReport(
                WorkerInfo(name, host, device, tuple(json.loads(queues)), at(started), at(beat)),
                max(0.0, now - beat),
                Statistics.from_dict(json.loads(stats)),
            )
            for name, host, device, queues, started, beat, stats in rows
        ]

    def forget(self, older_than_s: float) -> int:
        """Remove workers that have been silent for longer; how many."""
        with self._ledger.write() as connection:
            return connection.execute(FORGET, {"before": self._ledger.now() - older_than_s}).rowcount
