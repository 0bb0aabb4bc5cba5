"""One connection to Redis that is kept in hand, for commands that follow each other: redis-py's own way of taking a connection,
trying again and reading the answer costs several times as much as a small command.
"""

from __future__ import annotations

import threading
from typing import Any

import redis


class HeldConnection:
    """Thread-safe. A connection that is gone is replaced, once for a command: Redis may have been restarted."""

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool
        self._connection: Any = None
        self._unanswered = 0
        self._lock = threading.Lock()

    def call(self, *command: str | bytes) -> Any:
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
        self._connection.send_command(*command)
        self._unanswered += 1

    def _answer(self) -> Any:
        self._unanswered -= 1
        return self._connection.read_response()

    def _disconnect(self) -> None:
        connection, self._connection, self._unanswered = self._connection, None, 0
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)
