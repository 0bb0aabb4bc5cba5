"""Whether a worker is well (`/healthz`: do not restart it) and ready (`/readyz`: it can take jobs now).

Celery's loop reports each of its turns here. A worker that waits for Redis is well, however long it waits: restarting it
would bring nothing back. One whose loop stands still although Redis answers is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

from forebay.contract.errors import LedgerUnavailable
from forebay.storage.ledger.connection import Ledger
from forebay.worker.parent.housekeeper import Housekeeper

STALLED_S = 60.0  # longer than Celery needs to find Redis again
TURNS_S = 10.0  # between two turns of a loop that has work to do
STARTS_S = 180.0  # children import torch before the loop begins


class Probes:
    """Answers of one worker: each gives what is wrong, [] when nothing is."""

    def __init__(
        self,
        housekeeper: Housekeeper,
        ledger: Ledger,
        broker: redis.Redis,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._housekeeper = housekeeper
        self._ledger = ledger
        self._redis = broker
        self._beats_within = 3 * heartbeat_s + STALLED_S
        self._clock = clock
        self._turned_at = clock() + STARTS_S - STALLED_S
        self.children = 0

    def turned(self, pool: Any) -> None:
        """Celery's loop came round; `pool` is its prefork pool."""
        self._turned_at = self._clock()
        processes = pool._pool  # Celery's AsynPool, which knows what has said that it is up
        self.children = len(set(processes._pool) - processes._waiting_to_start)

    def health(self) -> list[str]:
        """Why this worker should be restarted."""
        wrong = [] if self._housekeeper.alive else ["the heartbeat or the sweeper has ended"]
        if self._clock() - self._housekeeper.turned_at > self._beats_within:
            wrong.append("the heartbeat hangs")
        if self._clock() - self._turned_at > STALLED_S and self._broker_answers():
            wrong.append("Celery's loop stands still although Redis answers")
        return wrong

    def readiness(self) -> list[str]:
        """Why it cannot take jobs now."""
        wrong = self.health()
        if not self._broker_answers():
            wrong.append("Redis does not answer")
        if self._clock() - self._turned_at > TURNS_S or not self.children:
            wrong.append("no child is ready")
        try:
            self._ledger.ping()
        except LedgerUnavailable as error:
            wrong.append(str(error))
        return wrong

    def _broker_answers(self) -> bool:
        try:
            return bool(self._redis.ping())
        except (redis.RedisError, OSError):
            return False
