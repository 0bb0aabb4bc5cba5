"""The watchdog for a stalled consumer: Redis holds messages, the children are idle, and nothing comes in.

Asks Redis, by a connection that is not Celery's, only while this worker has nothing to do.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import redis
import structlog

from forebay.contract.wire.messages import redis_keys
from forebay.worker.parent.celery.feeder import Feeder

log = structlog.get_logger()

MIN_STALL_S = 3.0  # a consumer that listens takes a message within a second
EXIT_STATUS = 75  # temporary failure: whoever started this process starts it again


class Watchdog:
    """Call `check` every few seconds. The first time a stall is certain it has Celery reconnect, the second time it exits."""

    def __init__(
        self,
        feeder: Feeder,
        broker: redis.Redis,
        queues: Sequence[str],
        stalled_after_s: float,
        *,
        exit: Callable[[int], Any] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feeder, self._broker = feeder, broker
        self._keys = [key for queue in queues for key in redis_keys(queue)]
        self._stalled_after_s = max(MIN_STALL_S, stalled_after_s)
        self._exit, self._clock = exit, clock
        self._waiting_since: float | None = None
        self._received_at_reconnect: int | None = None

    def check(self) -> None:
        """Act if messages have waited for an idle worker too long. Redis not answering is an outage, not a stall."""
        now, feeder, since = self._clock(), self._feeder, self._waiting_since
        self._waiting_since = None
        if not feeder.idle or now - feeder.last_received < self._stalled_after_s:
            return
        try:
            waiting = sum(int(self._broker.llen(key)) for key in self._keys)
        except (redis.RedisError, OSError):
            return
        if waiting and since is not None and now - since >= self._stalled_after_s:
            self._act(waiting)
        elif waiting:
            self._waiting_since = now if since is None else since

    def _act(self, waiting: int) -> None:
        silent_s = round(self._clock() - self._feeder.last_received)
        if self._received_at_reconnect == self._feeder.received:
            log.error("stalled_consumer_exits", messages=waiting, silent_s=silent_s)
            self._exit(EXIT_STATUS)
            return
        log.error("stalled_consumer_reconnects", messages=waiting, silent_s=silent_s)
        self._received_at_reconnect = self._feeder.received
        self._feeder.reconnect()
