"""Flower's stream of worker and task events, made to survive outages of Redis: it keeps retrying and logs each outage once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from celery.events import EventReceiver
from flower.events import Events

from forebay.contract.setting_kinds import mask_password
from forebay.contract.wire.dispatch import UNREACHABLE

log = structlog.get_logger()

RETRY_S = 1.0
# Workers send a heartbeat every 2 s. Silence this long means no worker, or a connection that died unnoticed; Redis pushes
# events, so only a new connection can tell which.
SILENCE_S = 30.0


class ReconnectableReceiver(EventReceiver):  # type: ignore[misc] # Celery ships no types
    """Celery's receiver, which leaves reconnecting to its caller and tells it when it is connected."""

    connect_max_retries = 0

    def __init__(self, *args: Any, on_ready: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_ready = on_ready

    def on_consume_ready(self, *args: Any, **kwargs: Any) -> None:
        super().on_consume_ready(*args, **kwargs)
        self._on_ready()


class EventFeed(Events):  # type: ignore[misc] # Flower ships no types
    """Flower's event thread. `connected` tells whether Redis answers; `on_connected` is called on the loop when it does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connected = False
        self.on_connected: Callable[[], Any] = lambda: None
        self._address = mask_password(str(self.capp.conf.broker_url))
        self._stopped = threading.Event()
        self._outage_logged = False

    def run(self) -> None:
        """Capture events until `stop`; after any error, try again a second later."""
        while not self._stopped.is_set():
            try:
                self._capture()
            except UNREACHABLE as error:
                self._disconnected(error)
            except Exception as error:  # noqa: BLE001 - a malformed message on the event channel must not end the feed
                log.warning("event_rejected", broker=self._address, error=f"{type(error).__name__}: {error}")
            self._stopped.wait(RETRY_S)

    def stop(self) -> None:
        """End the thread before its next attempt; it is a daemon, so nobody waits for it."""
        self._stopped.set()
        super().stop()

    def _capture(self) -> None:
        """Pass events on until Redis goes away or falls silent."""
        with self.capp.connection_for_read() as connection:
            connection.ensure_connection(max_retries=0)
            receiver = ReconnectableReceiver(
                connection, handlers={"*": self.on_event}, app=self.capp, on_ready=self._connected
            )
            with suppress(TimeoutError):
                receiver.capture(limit=None, timeout=SILENCE_S, wakeup=True)

    def _connected(self) -> None:
        if not self.connected:
            log.info("broker_connected", broker=self._address)
            self.connected, self._outage_logged = True, False
            self.io_loop.add_callback(self.on_connected)

    def _disconnected(self, error: BaseException) -> None:
        write = log.debug if self._outage_logged else log.warning
        write("broker_unreachable", broker=self._address, error=str(error), retry_s=RETRY_S)
        self.connected, self._outage_logged = False, True
