"""Whether a worker is healthy (`/healthz`: do not restart it) and ready (`/readyz`: it can take jobs now).

A worker that waits for Redis is healthy, however long it waits: restarting it would bring nothing back. One whose Celery loop
stands still although Redis answers is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import redis

from forebay.contract.errors import LedgerUnavailable
from forebay.storage.ledger.connection import Ledger
from forebay.worker.parent.heartbeat import Heartbeat
from forebay.worker.parent.sweep_loop import SweepLoop

STALLED_S = 60.0  # longer than Celery needs to find Redis again
TURN_S = 10.0  # between two turns of a loop that has work to do
START_S = 180.0  # children import torch before the loop begins


class Probes:
    """Each gives what is wrong, [] when nothing is."""

    def __init__(
        self,
        heartbeat: Heartbeat,
        sweeps: SweepLoop,
        ledger: Ledger,
        broker: redis.Redis,
        alive_s: float,
        clock: Callable[[], float] = time.monotonic,
        ledger_wait_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._heartbeat, self._sweeps = heartbeat, sweeps
        self._ledger, self._redis = ledger, broker
        self._beats_within, self._ledger_wait_s = alive_s + STALLED_S, ledger_wait_s
        self._clock = clock
        self._last_turn = clock() + START_S - STALLED_S
        self.children = 0

    def loop_turned(self, pool: Any) -> None:
        """Called by Celery's loop every so often; `pool` is its prefork pool."""
        self._last_turn = self._clock()
        processes = pool._pool  # Celery's AsynPool, which knows which children have said that they are up
        self.children = len(set(processes._pool) - processes._waiting_to_start)

    def health(self) -> list[str]:
        """Why this worker should be restarted."""
        problems = []
        if not (self._heartbeat.alive and self._sweeps.alive):
            problems.append("the heartbeat or the sweeper has ended")
        if self._clock() - self._heartbeat.last_beat > self._beats_within:
            problems.append("the heartbeat hangs")
        if self._clock() - self._last_turn > STALLED_S and self._broker_answers():
            problems.append("Celery's loop stands still although Redis answers")
        if (waited := self._ledger_wait_s()) > self._beats_within and not self._ledger_problem():
            problems.append(f"a child has waited for the ledger for {waited:.0f} s although it answers")
        return problems

    def readiness(self) -> list[str]:
        """Why it cannot take jobs now."""
        problems = self.health()
        if not self._broker_answers():
            problems.append("Redis does not answer")
        if self._clock() - self._last_turn > TURN_S or not self.children:
            problems.append("no child is ready")
        if problem := self._ledger_problem():
            problems.append(problem)
        elif self._ledger_wait_s() > TURN_S:
            problems.append("a child waits for the ledger")
        return problems

    def _ledger_problem(self) -> str:
        try:
            self._ledger.ping()
        except LedgerUnavailable as error:
            return str(error)
        return ""

    def _broker_answers(self) -> bool:
        try:
            return bool(self._redis.ping())
        except (redis.RedisError, OSError):
            return False
