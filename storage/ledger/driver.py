"""A connection to the ledger whose statements go straight to the driver: what SQLAlchemy adds to each costs several times as
much as a small statement itself. Its pool, its dialects and its errors are used, and all of it where no Statement is executed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, NamedTuple, cast

import sqlalchemy
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, TimeoutError

from forebay.storage.ledger.silence import watch

WAIT_S = 30
LEVELS = ("", "FULL", "NORMAL")  # of `synchronous`; "" is PostgreSQL's, and SQLite's before it was set


class Pool:
    """The connections of one process. Thread-safe. It does less for each use of one than SQLAlchemy's, whose work takes longer
    than a small statement.
    """  # fmt: skip

    def __init__(self, engine: Engine, limit: int) -> None:
        """About `limit` may be in use at a time; whoever wants one more waits."""
        self.engine, self._limit = engine, limit
        self.sqlite = engine.dialect.name == "sqlite"
        self._inherited: list[object] = []
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._idle: dict[str, list[Connection]] = {level: [] for level in LEVELS}
        self._taken: set[Connection] = set()
        if not self.sqlite:
            watch(self)

    def taken(self) -> list[Connection]:
        """Those that are in use."""
        return list(self._taken)

    def take(self, *, ping: bool = False, synchronous: str = "") -> Connection:
        """A connection, for its `close` to give back; with `ping`, one that PostgreSQL has dropped meanwhile is replaced. One of
        SQLite comes with this level, for to change it is a statement of its own.
        """  # fmt: skip
        if self._pid != os.getpid():  # forked: they are the parent's, and must not even be closed
            self._inherited += [self._idle, self._taken]
            self._begin()
        if len(self._taken) >= self._limit:
            self._wait()
        connection = self._take_idle(synchronous)
        if connection is not None and ping and not self.sqlite:
            self._taken.add(connection)  # so that it is watched
            if not connection.answers():
                self._taken.discard(connection)
                connection = None
        if connection is None:
            connection = Connection(self)
        if synchronous:
            connection.set_synchronous(synchronous)
        self._taken.add(connection)
        return connection

    def _take_idle(self, synchronous: str) -> Connection | None:
        for level in (synchronous, "") if synchronous else LEVELS:
            if self._idle[level]:
                with suppress(IndexError):  # another thread was quicker
                    return self._idle[level].pop()
        return None

    def _wait(self) -> None:
        until = time.monotonic() + WAIT_S
        while len(self._taken) >= self._limit:
            if time.monotonic() > until:
                raise TimeoutError(f"all {self._limit} connections of this process have been in use for {WAIT_S} s")
            time.sleep(0.005)

    def give_back(self, connection: Connection, usable: bool) -> None:
        if connection in self._taken:  # or this process is another one now
            self._taken.discard(connection)
            if usable:
                self._idle[connection.synchronous].append(connection)
            else:
                connection.discard()

    def close_idle(self) -> bool:
        """Close what nobody uses; whether that was all."""
        while (connection := self._take_idle("")) is not None:
            connection.discard()
        return not self._taken


class Connection:
    """One connection of the driver, which is its `driver`."""

    def __init__(self, pool: Pool) -> None:
        self.engine, self.sqlite = pool.engine, pool.sqlite
        self._pool = pool
        self._pooled = pool.engine.raw_connection()
        self.driver: Any = self._pooled.driver_connection
        self._errors: type[Exception] = pool.engine.dialect.loaded_dbapi.Error
        self._alchemy: sqlalchemy.Connection | None = None
        self._invalidated = False
        self.synchronous = ""
        self.server_id = ""  # PostgreSQL's, see Commits
        self.dirty = False  # whether something was begun and not committed
        self.busy_since = 0.0  # when the statement was sent that it waits for; 0: for none

    @contextmanager
    def busy(self) -> Iterator[None]:
        """It waits for its server meanwhile."""
        self.busy_since = time.monotonic()
        try:
            yield
        finally:
            self.busy_since = 0.0

    def run(self, sql: str, values: Mapping[str, Any]) -> Result:
        """Execute one statement, as the driver has it, and fetch what it gives."""
        cursor = self.driver.cursor()
        self._tell_listeners(cursor, sql, values, False)
        self.busy_since = time.monotonic()
        try:
            cursor.execute(sql, values)
            if cursor.description is None:
                return Result([], (), cursor)
            return Result(cursor.fetchall(), tuple([column[0] for column in cursor.description]), cursor)
        except self._errors as error:
            raise self.failure(sql, error) from error
        finally:
            self.busy_since = 0.0

    def run_many(self, sql: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Execute one statement for each of the rows."""
        if len(rows) == 1:  # psycopg does far more for many
            self.run(sql, rows[0])
            return
        cursor = self.driver.cursor()
        self._tell_listeners(cursor, sql, rows, True)
        try:
            with self.busy():
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
        """It is gone, and whatever cut it has cut those that idle."""
        if not self.invalidated:
            self._pooled.invalidate()
        self._invalidated = True
        self._pool.close_idle()

    def answers(self) -> bool:
        """Whether the server still knows this connection."""
        try:
            with self.busy():
                self.engine.dialect.do_ping(self._pooled)
        except self._errors:
            self.invalidate()
        return not self._invalidated

    def commit(self) -> None:
        """Commit what was begun."""
        try:
            with self.busy():
                self.engine.dialect.do_commit(self._pooled)
        except self._errors as error:
            raise self.failure("COMMIT", error) from error
        self.dirty = False

    def close(self) -> None:
        """Give the connection back; what was not committed is rolled back."""
        usable = False
        try:
            with suppress(self._errors, DBAPIError):
                if not self.invalidated:
                    if self._alchemy is not None:
                        self._alchemy.rollback()  # which ends its part of what has been committed already
                    if self.dirty:
                        self.driver.rollback()
                        self.dirty = False
                    usable = True
        finally:
            self._pool.give_back(self, usable)

    def discard(self) -> None:
        """Close it for good."""
        self._pooled.close()

    def set_synchronous(self, level: str) -> None:
        """SQLite only: how far a commit waits for the disk."""
        if self.synchronous != level:
            self.run(f"PRAGMA synchronous={level}", {})
            self.synchronous = level

    @property
    def alchemy(self) -> sqlalchemy.Connection:
        """SQLAlchemy's own connection on top of this one, in the same transaction."""
        if self._alchemy is None:
            self._alchemy = sqlalchemy.Connection(self.engine, self._pooled)
        return self._alchemy

    def execute(self, clause: Any, values: Any = None) -> Any:
        """Execute what SQLAlchemy has to put into words."""
        with self.busy():
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
