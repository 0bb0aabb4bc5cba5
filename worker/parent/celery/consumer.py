"""Celery's consumer, as `worker_consumer` names it: says when the queue is lost and found, and gives back what waits.

Knows Celery and the feeder. When Redis is away Celery tries again for ever; here that is said once.
"""

from __future__ import annotations

from typing import Any

import structlog
from celery.worker.consumer.consumer import Consumer as StockConsumer
from celery.worker.state import maybe_shutdown

from forebay.contract.settings import mask_password

log = structlog.get_logger()

PAUSES_S = (0.5, 0.5, 5.0)  # before Redis is tried again: the first, how much longer each, the longest
LAST_MESSAGE_S = 1.5  # a BRPOP that was sent comes back within a second, perhaps with a message


class Consumer(StockConsumer):  # type: ignore[misc] # celery ships no types
    """Celery's own, with an outage told once and a stop that returns at once what no child has."""

    lost = False

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Redis does not answer, and did not before."""
        self._say_lost(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Redis answered until now."""
        self._say_lost(exc)
        super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        """Wait for Redis, however long."""
        conn = conn.ensure_connection(lambda exc, _pause: self._say_lost(exc), None, *PAUSES_S, callback=maybe_shutdown)
        self.first_connection_attempt = False
        return conn

    def on_ready(self) -> None:
        """Connected, and listening to the queues."""
        if self.lost:
            self.lost = False
            log.info("broker_connected", worker=self.hostname)
        super().on_ready()

    def reconnect(self) -> None:
        """Drop the connection and make a new one. Any thread may ask for it."""
        self.hub.call_soon(_lose_connection)

    def stop(self) -> None:
        """Take nothing more, and put back what waits, before the pool is waited for."""
        if self.task_consumer is not None:
            self._take_the_last_message(self.task_consumer.channel)
        super().stop()
        self.app.forebay_feeder.give_back()

    def _take_the_last_message(self, channel: Any) -> None:
        """What Redis has popped for us already would otherwise stay with the connection until the children are done."""
        try:
            if channel._in_poll and channel._in_poll.can_read(timeout=LAST_MESSAGE_S):
                channel._brpop_read()
        except Exception as error:  # noqa: BLE001 - no message, or no connection: then there is nothing to give back
            log.debug("nothing_popped", reason=str(error))

    def _say_lost(self, exc: Exception) -> None:
        self.app.forebay_feeder.detach()
        if not self.lost:
            self.lost = True
            address = mask_password(self.app.conf.broker_url)
            log.warning("broker_unreachable", worker=self.hostname, address=address, error=str(exc))


def _lose_connection() -> None:
    raise ConnectionResetError("the watchdog asked for a new connection")  # one that Celery reconnects after
