"""Telling clients which of their jobs have ended, and the text of those that run. A courtesy: who misses it polls the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec
import redis
import structlog

from forebay.contract.wire.held_connection import HeldConnection
from forebay.contract.wire.messages import TextPiece, announce_channel, text_channel
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
        self._publish({announce_channel(client): ",".join(ids) for client, ids in by_client.items()})

    def announce_text(self, client: str, pieces: Sequence[TextPiece]) -> None:
        """Publish what jobs of this client that asked for it (`PackedRows.stream`) have generated since the last time."""
        self._publish({text_channel(client): msgspec.json.encode(pieces)})

    def _publish(self, messages: Mapping[str, str | bytes]) -> None:
        try:
            for channel, message in messages.items():
                self._redis.send("PUBLISH", channel, message)
        except (redis.RedisError, OSError) as error:
            log.warning("announce_failed", channels=len(messages), error=str(error))
