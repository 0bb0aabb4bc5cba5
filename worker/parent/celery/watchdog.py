"""The watchdog for a consumer that has gone deaf: Redis holds messages, the children are idle, and nothing is heard.

Asks Redis only while this worker has nothing to do. Knows the feeder and a Redis connection that is not Celery's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis
import structlog

from forebay.contract.wire.messages import redis_keys

log = structlog.get_logger()

SOON_S = 3.0  # a consumer that listens takes a message within a second
EXIT_STATUS = 75  # temporary failure: whoever started this process starts it again


class ConsumerHealth(Protocol):
    """What the watchdog wants to know of the feeder."""

    @property
    def heard(self) -> int:
        """How many messages have come."""

    @property
    def heard_at(self) -> float:
        """When the last one came, or the connection was made, by the monotonic clock."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits in this process and no child works."""

    def reconnect(self) -> None:
        """Make a new connection."""


class Watchdog:
    """Call `look` every few seconds. The first time deafness is sure it has Celery reconnect, the second time it exits."""

    def __init__(
        self,
        feeder: ConsumerHealth,
        broker: redis.Redis,
        queues: Sequence[str],
        deaf_after_s: float,
        *,
        exit: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feeder, self._broker = feeder, broker
        self._keys = [key for queue in queues for key in redis_keys(queue)]
        self._deaf_after_s = max(SOON_S, deaf_after_s)
        self._exit, self._clock = exit, clock
        self._since: float | None = None  # since when messages wait that nobody hears
        self._reconnected_at: int | None = None  # how many messages had been heard then

    def look(self) -> None:
        """Whether messages have waited for an idle worker too long; redis.RedisError is an outage and no deafness."""
        now, feeder = self._clock(), self._feeder
        if not feeder.idle or now - feeder.heard_at < self._deaf_after_s:
            self._since = None
            return
        try:
            waiting = sum(int(self._broker.llen(key)) for key in self._keys)
        except (redis.RedisError, OSError):
            self._since = None
            return
        if not waiting:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= self._deaf_after_s:
            self._since = None
            self._act(waiting)

    def _act(self, waiting: int) -> None:
        if self._reconnected_at == self._feeder.heard:
            log.error("deaf_worker_exits", messages=waiting, silent_s=round(self._clock() - self._feeder.heard_at))
            self._exit(EXIT_STATUS)
            return
        log.error("deaf_worker_reconnects", messages=waiting, silent_s=round(self._clock() - self._feeder.heard_at))
        self._reconnected_at = self._feeder.heard
        self._feeder.reconnect()
