"""Connections to Redis that are kept in hand: redis-py's own way of taking one, trying again, and reading and writing costs
several times as much as a small command. It connects, with all that its options say.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import redis

SILENCE_S = 10.0  # of a subscription, before it is asked whether it still lives, and then before it is given up
READ_BYTES, MOST_BYTES = 1 << 16, 1 << 24


class HeldConnection:
    """For commands that Redis answers with a number or a word. Thread-safe. A connection that is gone is replaced, once for a
    command: Redis may have been restarted.
    """  # fmt: skip

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None
        self._unanswered = 0
        self._read = b""
        self._lock = threading.Lock()

    def call(self, *command: str | bytes) -> int | bytes:
        """Redis' answer. RedisError or OSError when there is none, or it refuses."""
        with self._lock:
            try:
                self._send(command)
                return self._answer()
            except redis.ConnectionError:
                self._disconnect()
                try:
                    self._send(command)
                    return self._answer()
                except redis.ConnectionError:
                    self._disconnect()
                    raise
            except BaseException as error:
                if not isinstance(error, redis.ResponseError):
                    self._disconnect()  # the answer may come yet, and would be taken for another one's
                raise

    def send(self, *command: str | bytes) -> None:
        """Do not wait for the answer: it is read before the next command. What it refused is raised then."""
        with self._lock:
            try:
                self._send(command)
            except redis.ConnectionError:
                self._disconnect()
                self._send(command)
            except BaseException:
                self._disconnect()
                raise

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _send(self, command: tuple[str | bytes, ...]) -> None:
        if self._connection is None:
            self._connection = self._pool.get_connection()
        while self._unanswered:
            self._answer()
        self._connection.send_packed_command([_packed(command)])
        self._unanswered += 1

    def _answer(self) -> int | bytes:
        self._unanswered -= 1
        while b"\r\n" not in self._read:
            try:
                data = self._connection._sock.recv(READ_BYTES)
            except TimeoutError as error:
                raise redis.TimeoutError(f"Redis has not answered in time: {error}") from error
            except (OSError, AttributeError) as error:  # no socket: it was cut
                raise redis.ConnectionError(f"the answer of Redis cannot be read: {error}") from error
            if not data:
                raise redis.ConnectionError("Redis has closed the connection")
            self._read += data
        answer, _, self._read = self._read.partition(b"\r\n")
        if answer[:1] == b"-":
            raise redis.ResponseError(answer[1:].decode("utf-8", "replace"))
        if answer[:1] not in (b":", b"+"):
            raise redis.InvalidResponse(f"not an answer that was expected of Redis: {answer[:80]!r}")
        return int(answer[1:]) if answer[:1] == b":" else answer[1:]

    def _disconnect(self) -> None:
        connection, self._connection, self._unanswered, self._read = self._connection, None, 0, b""
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)


class Subscription:
    """To channels whose messages are single lines of text: they are told from what the protocol has around them by what they
    say. RedisError or OSError when Redis cannot be had, or refuses.
    """  # fmt: skip

    def __init__(self, client: redis.Redis, *channels: str) -> None:
        self._pool = client.connection_pool
        self._connection: Any = self._pool.get_connection()
        self._partial = b""
        self._heard_at, self._asked = time.monotonic(), False
        try:
            self.subscribe(*channels)
        except BaseException:
            self.close()
            raise

    def subscribe(self, *channels: str) -> None:
        self._send("SUBSCRIBE", *channels)

    def unsubscribe(self, *channels: str) -> None:
        self._send("UNSUBSCRIBE", *channels)

    def lines(self, timeout: float) -> list[bytes]:
        """What has come, after waiting up to `timeout` seconds for it."""
        line: Any = self._connection._sock
        if line is None:
            raise redis.ConnectionError("the connection was cut")
        line.settimeout(timeout)
        try:
            data: bytes = line.recv(READ_BYTES)
        except TimeoutError:
            self._check_silence()
            return []
        self._heard_at, self._asked = time.monotonic(), False
        *lines, self._partial = (self._partial + data).split(b"\r\n")
        if not data or len(self._partial) > MOST_BYTES:
            raise redis.ConnectionError("Redis has closed the connection, or sends no lines")
        refusal = next((line for line in lines if line.startswith(b"-")), None)
        if refusal is not None:
            raise redis.ResponseError(refusal.decode("utf-8", "replace"))
        return lines

    def close(self) -> None:
        self._connection.disconnect()
        self._pool.release(self._connection)

    def _check_silence(self) -> None:
        if time.monotonic() - self._heard_at > SILENCE_S:
            if self._asked:
                raise redis.TimeoutError(f"Redis has not answered for {SILENCE_S:g} s")
            self._heard_at, self._asked = time.monotonic(), True
            self._send("PING")

    def _send(self, *command: str) -> None:
        connection: Any = self._connection
        connection.send_packed_command([_packed(command)], check_health=False)


def _packed(command: tuple[str | bytes, ...]) -> bytes:
    parts = [part.encode() if isinstance(part, str) else part for part in command]
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])
