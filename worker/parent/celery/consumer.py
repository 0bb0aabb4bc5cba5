"""Celery's consumer, which says once that Redis is away and once that it is back, and gives back what waits at a stop.

A Redis that refuses (a read-only replica, no disk, no right to a command) is away too, although it can be connected to.
"""

from __future__ import annotations

import time
from typing import Any

import redis
import structlog
from celery.app.events import Events as StockEvents
from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer.consumer import Consumer as StockConsumer
from celery.worker.state import maybe_shutdown

from forebay.contract.setting_kinds import mask_password

log = structlog.get_logger()

RETRY_S = (0.5, 0.5, 5.0)  # before Redis is tried again: the first pause, how much longer each is, the longest
STEP_S = 0.1  # in which a pause looks for a stop
TAKEN_S = 0.5  # Redis refuses a BRPOP at once
GATHER_EVENTS_S = 0.1
UNHEARD_S = 1.0
LAST_MESSAGE_S = 1.5  # a BRPOP that was sent comes back within a second, perhaps with a message


class TaskEvents(EventDispatcher):  # type: ignore[misc] # celery ships no types
    """Tells Flower of tasks, if Flower is there: an event costs a worker as much as a small job.

    Redis says how many clients got an event. When it was none, nothing more is said of tasks for a moment.
    """

    _unheard_until = 0.0

    def send(self, type: str, **fields: Any) -> None:
        if time.monotonic() >= self._unheard_until or not type.startswith("task-"):
            super().send(type, **fields)

    def _publish(self, event: Any, producer: Any, routing_key: str, **options: Any) -> None:
        super()._publish(event, producer, routing_key, **options)
        if routing_key.startswith("task.") and producer is not None and producer.channel.heard_by == 0:
            self._unheard_until = time.monotonic() + UNHEARD_S


class Events(StockEvents):  # type: ignore[misc]
    """Celery's `app.events` with that dispatcher."""

    dispatcher_cls = TaskEvents


class Consumer(StockConsumer):  # type: ignore[misc]
    """Named in the setting `worker_consumer`."""

    events_due = 0.0
    outage = False
    refusals = 0  # in this outage
    ends_outage: Any = None  # the timer

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        self._note_outage(exc)
        self._pause_after_refusal(exc)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        self._note_outage(exc)
        super().on_connection_error_after_connected(exc)
        self._pause_after_refusal(exc)

    def ensure_connected(self, conn: Any) -> Any:
        conn = conn.ensure_connection(
            lambda exc, _pause: self._note_outage(exc),
            None,
            *RETRY_S,
            callback=maybe_shutdown,
            reraise_as_library_errors=False,  # a refusal must be known as one
        )
        self.first_connection_attempt = False
        return conn

    def on_ready(self) -> None:
        if self.outage:  # it is over when Redis has taken the first BRPOP, and not only the connection
            self.ends_outage = self.timer.call_after(TAKEN_S, self._end_outage)
        super().on_ready()

    def on_send_event_buffered(self) -> None:
        """Publish events together: each publishing costs as much as the events of many jobs."""
        now = time.monotonic()
        if now >= self.events_due:
            self.events_due = now + GATHER_EVENTS_S
            self.timer.call_after(GATHER_EVENTS_S, self._flush_events)

    def reconnect(self) -> None:
        """Drop the connection and make a new one. Any thread may ask for it."""
        self.hub.call_soon(_drop_connection)

    def stop(self) -> None:
        """Take nothing more, and put back what waits, before the pool is waited for."""
        if self.task_consumer is not None:
            self._read_last_message(self.task_consumer.channel)
        super().stop()
        self.app.forebay_feeder.give_back()

    def _read_last_message(self, channel: Any) -> None:
        """What Redis has popped for us already would otherwise stay with the connection until the children are done."""
        try:
            if channel._in_poll and channel._in_poll.can_read(timeout=LAST_MESSAGE_S):
                channel._brpop_read()
        except Exception as error:  # noqa: BLE001 - no message, or no connection: then there is nothing to give back
            log.debug("no_last_message", reason=str(error))

    def _end_outage(self) -> None:
        self.outage, self.refusals = False, 0
        log.info("broker_connected", worker=self.hostname)

    def _pause_after_refusal(self, exc: Exception) -> None:
        """The pause that a failed connection has, for one that is made at once and fails at the first command."""
        if isinstance(exc, redis.ResponseError):
            first, more, longest = RETRY_S
            until = time.monotonic() + min(longest, first + more * self.refusals)
            self.refusals += 1
            while time.monotonic() < until:
                maybe_shutdown()
                time.sleep(STEP_S)

    def _note_outage(self, exc: Exception) -> None:
        self.app.forebay_feeder.detach()
        if self.ends_outage is not None:
            self.ends_outage.cancel()
        if not self.outage:
            self.outage = True
            address = mask_password(self.app.conf.broker_url)
            log.warning("broker_unreachable", worker=self.hostname, address=address, error=str(exc))


def _drop_connection() -> None:
    raise ConnectionResetError("the watchdog asked for a new connection")  # one that Celery reconnects after
