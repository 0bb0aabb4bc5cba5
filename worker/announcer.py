"""Telling clients which of their jobs have ended. A courtesy: who misses it polls the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis
import structlog

from forebay.contract.wire.messages import announce_channel
from forebay.storage.jobs.records import Ended

log = structlog.get_logger()


class Announcer:
    """Publishes ids on the channels of the clients that wait for them. Thread-safe.

    It does not wait for Redis' answer, which it reads before the next announcement.
    """

    def __init__(self, broker: redis.Redis) -> None:
        self._pool = broker.connection_pool
        self._connection: Any = None
        self._unanswered = 0
        self._lock = threading.Lock()

    def announce(self, ended: Iterable[Ended]) -> None:
        """Publish each client's ids in one message; a Redis that does not take it is only logged."""
        by_client: dict[str, list[str]] = {}
        for job in ended:
            if job.client:
                by_client.setdefault(job.client, []).append(job.id)
        if not by_client:
            return
        with self._lock:
            try:
                try:
                    self._publish(by_client)
                except redis.ConnectionError:  # Redis was restarted since, perhaps
                    self._disconnect()
                    self._publish(by_client)
            except (redis.RedisError, OSError) as error:
                self._disconnect()
                log.warning("announce_failed", clients=len(by_client), error=str(error))

    def _publish(self, by_client: Mapping[str, Sequence[str]]) -> None:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        while self._unanswered:
            self._unanswered -= 1
            self._connection.read_response()
        for client, ids in by_client.items():
            self._connection.send_command("PUBLISH", announce_channel(client), ",".join(ids))
            self._unanswered += 1

    def _disconnect(self) -> None:
        connection, self._connection, self._unanswered = self._connection, None, 0
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)
