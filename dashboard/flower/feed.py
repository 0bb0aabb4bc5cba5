"""Flower's stream of worker and task events, made to survive outages of Redis: it keeps retrying and logs each outage once.

Whoever can write to Redis can send events. One whose fields are not of their types never reaches Flower, nor does a field that
Flower's pages do not know.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, Literal

import msgspec
import structlog
from celery.events import EventReceiver
from flower.events import Events
from kombu.exceptions import OperationalError
from msgspec import UNSET, Meta, UnsetType, ValidationError

from forebay.contract.setting_kinds import mask_password
from forebay.contract.wire.dispatch import UNREACHABLE

log = structlog.get_logger()

RETRY_S = 1.0
# Workers send a heartbeat every 2 s. Silence this long means no worker, or a connection that died unnoticed; Redis pushes
# events, so only a new connection can tell which.
SILENCE_S = 30.0
REJECTED_S = 10.0  # at most one line about rejected events in this time

Name = Annotated[str, Meta(max_length=255, pattern=r"^[^\x00-\x20<>&\"'`]+\Z")]
Id = Annotated[str, Meta(pattern=r"^[\w-]{1,155}\Z")]
Text = Annotated[str, Meta(max_length=20_000)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]  # no infinity, and no NaN
Load = Annotated[list[Number], Meta(max_length=3)]


class _Event(msgspec.Struct, kw_only=True):
    """What events of both kinds hold."""

    hostname: Name
    timestamp: Number
    clock: Count | UnsetType = UNSET
    utcoffset: Annotated[float, Meta(ge=-24, le=24)] | UnsetType = UNSET
    pid: Count | UnsetType = UNSET


class WorkerEvent(_Event, kw_only=True):
    """What a worker says of itself."""

    type: Literal["worker-online", "worker-heartbeat", "worker-offline"]
    freq: Annotated[float, Meta(ge=0, le=86400)] | UnsetType = UNSET
    active: Count | UnsetType | None = UNSET
    processed: Count | UnsetType | None = UNSET
    loadavg: Load | UnsetType | None = UNSET
    sw_ident: Name | UnsetType | None = UNSET
    sw_ver: Name | UnsetType | None = UNSET
    sw_sys: Name | UnsetType | None = UNSET


class TaskEvent(_Event, kw_only=True):
    """What became of a message."""

    type: Literal[
        "task-sent", "task-received", "task-started", "task-succeeded", "task-failed", "task-rejected", "task-revoked",
        "task-retried",
    ]  # fmt: skip
    uuid: Id
    name: Name | UnsetType | None = UNSET
    args: Text | UnsetType | None = UNSET
    kwargs: Text | UnsetType | None = UNSET
    result: Text | UnsetType | None = UNSET
    exception: Text | UnsetType | None = UNSET
    traceback: Text | UnsetType | None = UNSET
    runtime: Number | UnsetType | None = UNSET
    retries: Count | UnsetType | None = UNSET
    eta: Name | UnsetType | None = UNSET
    expires: Name | UnsetType | None = UNSET
    root_id: Id | UnsetType | None = UNSET
    parent_id: Id | UnsetType | None = UNSET
    queue: Name | UnsetType | None = UNSET
    exchange: Annotated[str, Meta(max_length=255)] | UnsetType | None = UNSET
    routing_key: Name | UnsetType | None = UNSET


EVENTS: dict[str, type[_Event]] = {"worker": WorkerEvent, "task": TaskEvent}


def check_event(event: Any) -> dict[str, Any]:
    """The known fields of an event; ValidationError when it is none, or a field is not of its type."""
    kind = str(event.get("type")).partition("-")[0] if isinstance(event, dict) else None
    if kind not in EVENTS:
        raise ValidationError("neither an event of a worker nor of a task")
    fields: dict[str, Any] = msgspec.to_builtins(msgspec.convert(event, EVENTS[kind]))
    return fields


class ReconnectableReceiver(EventReceiver):  # type: ignore[misc] # Celery ships no types
    """Celery's receiver, which leaves reconnecting to its caller and tells it when it is connected."""

    connect_max_retries = 0

    def __init__(self, *args: Any, on_ready: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_ready = on_ready
        self._rejected, self._next_line = 0, 0.0

    def _receive(self, body: Any, message: Any) -> None:
        """One event, or a list of them."""
        for event in body if isinstance(body, list) else [body]:
            try:
                checked = check_event(event)
            except ValidationError as error:
                self._reject(error)
            else:
                super()._receive(checked, message)

    def _reject(self, error: ValidationError) -> None:
        self._rejected += 1
        if time.monotonic() >= self._next_line:
            log.warning("event_rejected", events=self._rejected, error=str(error)[:300])
            self._rejected, self._next_line = 0, time.monotonic() + REJECTED_S

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
            except (*UNREACHABLE, OperationalError) as error:
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
