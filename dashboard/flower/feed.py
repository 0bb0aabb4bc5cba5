"""Flower's stream of worker and task events, made to outlive Redis: it keeps trying, and says so once per outage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from celery.events import EventReceiver
from flower.events import Events

from forebay.contract.settings import mask_password
from forebay.contract.wire.dispatch import UNREACHABLE

log = structlog.get_logger()

RETRY_S = 1.0
# Workers send a heartbeat every 2 s. Silence this long is either no worker or a connection that died unnoticed; Redis
# pushes events, so only a new connection tells which.
QUIET_S = 30.0


class Receiver(EventReceiver):  # type: ignore[misc] # Celery ships no types
    """Celery's receiver, which leaves reconnecting to its caller and tells when it is connected."""

    connect_max_retries = 0

    def __init__(self, *args: Any, on_ready: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_ready = on_ready

    def on_consume_ready(self, *args: Any, **kwargs: Any) -> None:
        """Called by kombu once the connection stands."""
        super().on_consume_ready(*args, **kwargs)
        self._on_ready()


class EventFeed(Events):  # type: ignore[misc] # Flower ships no types
    """Flower's event thread. `connected` tells whether Redis answers; `on_connected` is called on the loop when it does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.connected = False
        self.on_connected: Callable[[], Any] = lambda: None
        self._address = mask_password(str(self.capp.conf.broker_url))
        self._ended = threading.Event()
        self._said = False

    def run(self) -> None:
        """Capture events until `stop`; whatever goes wrong, try again a second later."""
        while not self._ended.is_set():
            try:
                self._capture()
            except UNREACHABLE as error:
                self._lost(error)
            except Exception as error:  # noqa: BLE001 - a stranger's message on the event channel must not end the feed
                log.warning("events_refused", broker=self._address, error=f"{type(error).__name__}: {error}")
            self._ended.wait(RETRY_S)

    def stop(self) -> None:
        """End the thread before its next attempt; it is a daemon, so nobody waits for it."""
        self._ended.set()
        super().stop()

    def _capture(self) -> None:
        """Hand events on until Redis goes away or falls silent."""
        with self.capp.connection_for_read() as connection:
            connection.ensure_connection(max_retries=0)
            receiver = Receiver(connection, handlers={"*": self.on_event}, app=self.capp, on_ready=self._ready)
            with suppress(TimeoutError):
                receiver.capture(limit=None, timeout=QUIET_S, wakeup=True)

    def _ready(self) -> None:
        if not self.connected:
            log.info("broker_connected", broker=self._address)
            self.connected, self._said = True, False
            self.io_loop.add_callback(self.on_connected)

    def _lost(self, error: BaseException) -> None:
        tell = log.debug if self._said else log.warning
        tell("broker_unreachable", broker=self._address, error=str(error), retry_s=RETRY_S)
        self.connected, self._said = False, True
