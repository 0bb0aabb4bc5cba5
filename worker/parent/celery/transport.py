"""The worker's Redis transport: kombu's own, but junk is dropped before kombu trips over it.

Stock kombu dies of a queue entry or broadcast that is valid JSON but not a message (`[]`, `5`), puts it back, and so kills
the next worker too. Only the outer form is checked here; the Strategy checks what is inside.

It dies of a Redis that refuses a command too. A key of the wrong type is renamed; anything else is an outage to the Consumer.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty
from typing import Annotated, Any, Literal

import msgspec
import redis
import structlog
from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as stock
from kombu.utils.json import dumps, loads

from forebay.worker.parent.celery.misplaced_keys import is_wrong_type, set_aside_misplaced

log = structlog.get_logger()

MAX_BYTES = 64 * 1024  # a message of 256 ids makes about 14 KiB
SHOWN_BYTES = 200

# Two levels are all a real message has; a deeper one could exceed Python's stack when kombu parses it.
Scalar = None | bool | int | float | str
Table = dict[str, Scalar | list[Scalar] | dict[str, Scalar]]


class RawMessage(msgspec.Struct, forbid_unknown_fields=True):
    """What kombu writes into a Redis list or channel."""

    body: str
    content_type: Literal["application/json"] = msgspec.field(name="content-type")
    content_encoding: Literal["utf-8"] = msgspec.field(name="content-encoding")
    headers: Table
    properties: Table


class ReplyAddress(msgspec.Struct, forbid_unknown_fields=True):
    """Where the reply to a control command goes."""

    exchange: str
    routing_key: str


class ControlCommand(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a broadcast: Celery's remote control, without matching of worker names by regular expressions."""

    method: str
    arguments: dict[str, Any] | None = None
    destination: list[str] | None = None
    pattern: None = None
    matcher: None = None
    ticket: str | None = None
    reply_to: ReplyAddress | None = None


class BroadcastHeaders(msgspec.Struct):
    clock: Annotated[int, msgspec.Meta(ge=0, lt=2**53)] = 0
    expires: float | None = None


def find_fault(raw: bytes, queue: str | None) -> str | None:
    """Why these bytes are not a message for `queue` (None: a broadcast); None when they are one."""
    if len(raw) > MAX_BYTES:
        return f"{len(raw)} bytes, the limit is {MAX_BYTES}"
    try:
        message = msgspec.convert(loads(raw.decode()), RawMessage)  # kombu's own parser: what passes here passes there
        body = b64decode(message.body)
        if queue is None:
            msgspec.convert(loads(body.decode()), ControlCommand)
            msgspec.convert(message.headers, BroadcastHeaders)
    except Exception as error:  # noqa: BLE001 - whatever a stranger's bytes make a parser raise
        return f"{type(error).__name__}: {error}"
    tag, where = message.properties.get("delivery_tag"), message.properties.get("delivery_info")
    if message.properties.get("body_encoding") != "base64" or not isinstance(tag, str) or not isinstance(where, dict):
        return "its properties are not those of a message"
    if message.headers.get("compression"):
        return "it is compressed, and Forebay compresses nothing"
    if queue is None:
        return None
    if where.get("exchange") != "" or where.get("routing_key") != queue:
        return f"it was not sent to queue {queue!r}"
    if not isinstance(message.headers.get("task"), str) or not isinstance(message.headers.get("id"), str):
        return "it does not name a task and an id"
    return None


def is_message(raw: bytes, queue: str | None, place: str) -> bool:
    """Whether kombu may see these bytes; logged when not."""
    reason = find_fault(raw, queue)
    if reason is not None:
        log.warning("junk_dropped", place=place, reason=reason[:SHOWN_BYTES], bytes=len(raw), head=raw[:SHOWN_BYTES])
    return reason is None


class CheckedRedis(redis.Redis):
    """A Redis client whose BRPOP returns nothing when what it popped is junk."""

    separator = stock.Channel.sep

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name == "BRPOP" and reply:
            key, raw = reply
            place = bytes(key).decode("utf-8", "replace")
            if not is_message(bytes(raw), place.rsplit(self.separator, 1)[0], place):
                return None
        return reply


class QoS(virtual.QoS):  # type: ignore[misc] # kombu ships no types
    """Which messages this process holds, in its own memory only.

    Stock kombu notes each message in Redis, twice, so that others deliver it again long after this process has died. Here the
    ledger has the jobs, and a sweep sends them sooner than that. What is given back goes to the front, where it came from.

    Messages that wait in the worker outlive the connection they came by; then nothing is done: a sweep sends their jobs.
    """

    restore_at_shutdown = True

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if requeue and not self._closed and delivery_tag in self._delivered:
            self.channel.put_back(self._delivered[delivery_tag])
        self.ack(delivery_tag)

    def restore_unacked(self) -> list[Any]:
        """Put back what was not acknowledged, if Redis can be had."""
        self._flush()
        try:
            for message in reversed(list(self._delivered.values())):
                self.channel.put_back(message)
        except (AttributeError, OSError, redis.RedisError) as error:
            log.debug("messages_not_restored", messages=len(self._delivered), error=repr(error))
        self._delivered.clear()
        return []

    @property
    def _closed(self) -> bool:
        connection = self.channel.connection
        return connection is None or connection.client is None


class Channel(stock.Channel):  # type: ignore[misc]
    """kombu's channel, reading through CheckedRedis and checking broadcasts."""

    QoS = QoS
    heard_by = 1  # how many clients got the last event
    _client: redis.Redis | None = None

    @contextmanager
    def conn_or_acquire(self, client: redis.Redis | None = None) -> Iterator[redis.Redis]:
        """A client; stock kombu makes one for every command, which costs more than the command."""
        if client is None:
            client = self._client
            if client is None or client.connection_pool is not self.pool:
                self._client = client = self._create_client()
        yield client

    def put_back(self, message: Any) -> None:
        """Put a message back to where it came from, in front of those that wait."""
        where = message.delivery_info
        with self.conn_or_acquire() as client:
            self._do_restore_message(message._raw, where["exchange"], where["routing_key"], client)

    def _put_fanout(self, exchange: str, message: Any, routing_key: str, **_: Any) -> None:
        payload = dumps(message)
        with self.conn_or_acquire() as client:
            topics = self._get_publish_topics(exchange, routing_key)
            self.heard_by = sum(client.publish(topic, payload) for topic in topics)

    def set_aside_misplaced(self, error: redis.ResponseError, *queues: str) -> bool:
        """Whether keys of a wrong type were the cause of this error, and have been renamed."""
        if not is_wrong_type(error):
            return False
        try:
            with self.conn_or_acquire() as client:
                return set_aside_misplaced(client, {*self.active_queues, *queues}) > 0
        except redis.ResponseError as refusal:
            log.warning("misplaced_key_not_renamed", error=str(refusal)[:SHOWN_BYTES])
            return False

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)
        except redis.ResponseError as error:
            if self.set_aside_misplaced(error):
                raise Empty from error
            raise

    def _size(self, queue: str) -> Any:
        try:
            return super()._size(queue)
        except redis.ResponseError as error:
            if not self.set_aside_misplaced(error, queue):
                raise
            return super()._size(queue)

    def _queue_bind(self, *args: Any) -> None:
        try:
            super()._queue_bind(*args)
        except redis.ResponseError as error:
            if not self.set_aside_misplaced(error):
                raise
            super()._queue_bind(*args)

    def _get_client(self) -> type[redis.Redis]:
        super()._get_client()  # checks redis-py's version
        return type("Client", (CheckedRedis,), {"separator": self.sep})

    def _handle_message(self, client: Any, reply: Any) -> dict[str, Any]:
        payload: dict[str, Any] = super()._handle_message(client, reply)
        data = payload["data"]
        place = bytes(payload["channel"] or b"").decode("utf-8", "replace")
        if bytes(payload["type"]).endswith(b"message") and not is_message(bytes(data), None, place):
            payload["data"] = b""  # which kombu passes over
        return payload


class Transport(stock.Transport):  # type: ignore[misc]
    """kombu's transport with that channel."""

    Channel = Channel


def install() -> None:
    """Make `redis://` and `rediss://` use this transport in this process; call it before the first connection.

    Naming the class in `broker_transport` would do as well, but kombu then no longer turns TLS on for `rediss://`.
    """
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
