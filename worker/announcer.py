"""Telling clients which of their jobs have ended. A courtesy: who misses it polls the ledger."""

from __future__ import annotations

from collections.abc import Iterable

import redis
import structlog

from forebay.contract.wire.held_connection import HeldConnection
from forebay.contract.wire.messages import announce_channel
from forebay.storage.jobs.records import Ended

log = structlog.get_logger()


class Announcer:
    """Publishes ids on the channels of the clients that wait for them, without waiting for Redis itself. Thread-safe."""

    def __init__(self, broker: redis.Redis) -> None:
        self._redis = HeldConnection(broker)

    def announce(self, ended: Iterable[Ended]) -> None:
        """Publish each client's ids in one message; a Redis that does not take it is only logged."""
        by_client: dict[str, list[str]] = {}
        for job in ended:
            if job.client:
                by_client.setdefault(job.client, []).append(job.id)
        try:
            for client, ids in by_client.items():
                self._redis.send("PUBLISH", announce_channel(client), ",".join(ids))
        except (redis.RedisError, OSError) as error:
            log.warning("announce_failed", clients=len(by_client), error=str(error))
