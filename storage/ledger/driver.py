"""A connection to the ledger whose statements go straight to the driver: what SQLAlchemy adds to each costs several times as
much as a small statement itself. Its pool, its dialects and its errors are used, and all of it where no Statement is executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError


class Pool:
    """The connections that nobody uses just now. Thread-safe.

    They are taken from the engine's pool, which does more for each use of one than the driver does for a small statement.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sqlite = engine.dialect.name == "sqlite"
        self._idle: list[Connection] = []
        self._pid = os.getpid()

    def take(self, *, ping: bool = False) -> Connection:
        """A connection; with `ping`, one that PostgreSQL has dropped meanwhile is replaced."""
        if self._pid != os.getpid():  # forked: the connections are the parent's
            self._pid, self._idle, _kept = os.getpid(), [], self._idle
            _inherited.append(_kept)
        try:
            connection = self._idle.pop()
        except IndexError:
            return Connection(self)
        return connection if not ping or self.sqlite or connection.answers() else Connection(self)

    def give_back(self, connection: Connection) -> None:
        self._idle.append(connection)

    def close_idle(self) -> None:
        while self._idle:
            self._idle.pop().discard()
        self.engine.dispose()


_inherited: list[object] = []  # what a forked process must not even close


class Connection:
    """One connection of the driver, which is its `driver`; `close` gives it back."""

    def __init__(self, pool: Pool) -> None:
        self.engine, self.sqlite = pool.engine, pool.sqlite
        self._pool = pool
        self._pooled = pool.engine.raw_connection()
        self.driver: Any = self._pooled.driver_connection
        self._errors: type[Exception] = pool.engine.dialect.loaded_dbapi.Error
        self._alchemy: sqlalchemy.Connection | None = None
        self._invalidated = False
        self._synchronous = ""
        self.dirty = False  # whether something was begun and not committed

    def run(self, sql: str, values: Mapping[str, Any]) -> Result:
        """Execute one statement, as the driver has it, and fetch what it gives."""
        cursor = self.driver.cursor()
        self._tell_listeners(cursor, sql, values, False)
        try:
            cursor.execute(sql, values)
            if cursor.description is None:
                return Result([], (), cursor)
            return Result(cursor.fetchall(), tuple([column[0] for column in cursor.description]), cursor)
        except self._errors as error:
            raise self.failure(sql, error) from error

    def run_many(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute one statement for each of the rows."""
        cursor = self.driver.cursor()
        self._tell_listeners(cursor, sql, rows, True)
        try:
            cursor.executemany(sql, rows)
        except self._errors as error:
            raise self.failure(sql, error) from error

    def failure(self, sql: str, error: Exception) -> DBAPIError:
        """The driver's error as SQLAlchemy has it; when the connection is gone, those that idle are given up too."""
        dialect = self.engine.dialect
        if dialect.is_disconnect(error, self.driver, None):  # type: ignore[arg-type]
            self.invalidate()
        made = DBAPIError.instance(
            sql, None, error, self._errors, connection_invalidated=self.invalidated, dialect=dialect
        )
        return cast(DBAPIError, made)

    @property
    def invalidated(self) -> bool:
        return self._invalidated or (self._alchemy is not None and self._alchemy.invalidated)

    def invalidate(self) -> None:
        """Close it for good. Whatever cut it has cut the others too."""
        if not self.invalidated:
            self._pooled.invalidate()
        self._invalidated = True
        self._pool.close_idle()

    def answers(self) -> bool:
        """Whether the server still knows this connection."""
        try:
            self.engine.dialect.do_ping(self._pooled)
        except self._errors:
            self.invalidate()
        return not self._invalidated

    def commit(self) -> None:
        """Commit what was begun."""
        try:
            self.engine.dialect.do_commit(self._pooled)
        except self._errors as error:
            raise self.failure("COMMIT", error) from error
        self.dirty = False

    def close(self) -> None:
        """Give the connection back; what was not committed is rolled back."""
        if self.dirty or self._alchemy is not None or self._invalidated:
            self.discard()
        else:
            self._pool.give_back(self)

    def discard(self) -> None:
        """Give it back to the engine, which rolls back what was not committed."""
        if self._alchemy is not None:
            self._alchemy.close()
        else:
            self._pooled.close()

    def set_synchronous(self, level: str) -> None:
        """SQLite only: how far a commit waits for the disk."""
        if self._synchronous != level:
            self.run(f"PRAGMA synchronous={level}", {})
            self._synchronous = level

    @property
    def alchemy(self) -> sqlalchemy.Connection:
        """SQLAlchemy's own connection on top of this one, in the same transaction."""
        if self._alchemy is None:
            self._alchemy = sqlalchemy.Connection(self.engine, self._pooled)
        return self._alchemy

    def execute(self, clause: Any, values: Any = None) -> Any:
        """Execute what SQLAlchemy has to put into words."""
        return self.alchemy.execute(clause, values)

    def exec_driver_sql(self, sql: str) -> Any:
        return self.alchemy.exec_driver_sql(sql)

    def _tell_listeners(self, cursor: Any, sql: str, values: Any, many: bool) -> None:
        """As SQLAlchemy does, for whoever traces or counts statements."""
        if listeners := self.engine.dispatch.before_cursor_execute:
            for listener in listeners:
                listener(self, cursor, sql, values, None, many)


class Result:
    """What a statement gave: rows whose columns are attributes."""

    def __init__(self, rows: Sequence[Sequence[Any]], names: tuple[str, ...], cursor: Any) -> None:
        self.tuples, self.names = rows, names
        self.rowcount: int = cursor.rowcount

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all())

    def all(self) -> list[Any]:
        return list(map(_row_class(self.names)._make, self.tuples)) if self.tuples else []

    fetchall = all

    def first(self) -> Any:
        return _row_class(self.names)._make(self.tuples[0]) if self.tuples else None

    fetchone = first

    def scalar(self) -> Any:
        return self.tuples[0][0] if self.tuples else None

    def scalar_one(self) -> Any:
        """The only value there is."""
        [[value]] = self.tuples
        return value

    def scalars(self) -> Iterable[Any]:
        return [row[0] for row in self.tuples]


@lru_cache(maxsize=1024)
def _row_class(names: tuple[str, ...]) -> Any:
    return NamedTuple("Row", [(name, Any) for name in names])
