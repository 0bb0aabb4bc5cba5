"""Whether a transaction was committed whose COMMIT got no answer. The database is asked, so that no write has to guess, and
none that was done is done again or taken for somebody else's.

PostgreSQL knows what became of each transaction by its number, which comes with the answer to BEGIN. A server that has crashed
gives the numbers of what it lost to others: then it is the data that tell. A SQLite ledger keeps the mark of its last commit in a
row; nobody else writes meanwhile, for the writer's lock is still held.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import sqlalchemy
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.silence import asking

XID = "SELECT CAST(pg_current_xact_id() AS text)"
# Another after each crash: the second time is when it threw away its statistics, as it does when it recovers.
SERVER = """concat(extract(epoch FROM pg_postmaster_start_time()), ' ',
    (SELECT extract(epoch FROM stats_reset) FROM pg_stat_bgwriter))"""
# Whoever has lost its client may still hold its rows, or be about to commit.
END_SESSION = text("""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_xid = CAST(CAST(CAST(:number AS text) AS xid8) AS xid) AND datname = current_database()""")
STATUS = text("SELECT pg_xact_status(CAST(CAST(:number AS text) AS xid8))")
SAME_SERVER = text(f"SELECT CAST(:server AS text) = {SERVER}")
IN_THE_FUTURE = "22023"  # what it says of a number that it has given to nobody

Stored: TypeAlias = Callable[[sqlalchemy.Connection], bool]  # whether what a transaction adds is there

KEEP = "INSERT INTO last_commit (id, mark) VALUES (1, :mark) ON CONFLICT (id) DO UPDATE SET mark = excluded.mark"
LAST = "SELECT mark FROM last_commit WHERE id = 1"


class Unknowable(Exception):
    """Nobody can tell any more what became of a transaction."""


class Commits(Protocol):
    """How one kind of database marks its transactions. `begin` one, `seal` it before its COMMIT, then ask for its mark."""

    def begin(self, connection: Connection, durable: bool) -> Any: ...

    def seal(self, connection: Connection, mark: Any) -> None: ...

    def was_done(self, engine: Engine, mark: Any, stored: Stored | None) -> bool | None:
        """Whether the transaction was committed; None while that is not decided. By a connection of its own.

        `stored` is asked where the mark may be somebody else's by now; without it, Unknowable.
        """
        ...

    def end(self, engine: Engine, mark: Any) -> None:
        """End what a cut connection has left of a transaction that was never to be committed."""
        ...


class PostgresMark(NamedTuple):
    """A transaction's number, and the server that gave it."""

    number: str
    server: str


class PostgresCommits:
    def begin(self, connection: Connection, durable: bool) -> PostgresMark:
        """Begin the transaction: all in one message, where the driver would send a BEGIN alone."""
        import psycopg  # here, for whoever has SQLite may lack it
        from psycopg.pq import ExecStatus

        relaxed = "" if durable else "SET LOCAL synchronous_commit = off; "
        asked = XID if connection.server_id else f"{XID}, {SERVER}"
        server = connection.driver.pgconn
        with connection.busy():
            result = server.exec_(f"BEGIN; {relaxed}{asked}".encode())
        if result.status != ExecStatus.TUPLES_OK:
            connection.invalidate()
            error = psycopg.OperationalError(server.get_error_message() or "the server did not begin a transaction")
            raise connection.failure("BEGIN", error)
        connection.dirty = True
        connection.server_id = connection.server_id or result.get_value(0, 1).decode()
        return PostgresMark(str(int(result.get_value(0, 0))), connection.server_id)

    def seal(self, connection: Connection, mark: PostgresMark) -> None:
        """Nothing: its number says it all."""

    def was_done(self, engine: Engine, mark: PostgresMark, stored: Stored | None) -> bool | None:
        with asking(engine) as connection:
            same = self._end(connection, mark)
            status = _status(connection, mark)
        if status == "committed" and not same:
            if stored is None:
                raise Unknowable("the server has crashed meanwhile, and the transaction's number is another's by now")
            with asking(engine) as connection:
                return stored(connection)
        # Of one that has crashed: who is at work under this number is another.
        return {"committed": True, "aborted": False}.get(status, None if same else False)

    def end(self, engine: Engine, mark: PostgresMark) -> None:
        with asking(engine) as connection:
            self._end(connection, mark)

    def _end(self, connection: sqlalchemy.Connection, mark: PostgresMark) -> bool:
        """End the session; False, where the server has crashed since: that has ended it."""
        same = bool(connection.execute(SAME_SERVER, {"server": mark.server}).scalar())
        if same:
            connection.execute(END_SESSION, {"number": mark.number})
        return same


def _status(connection: sqlalchemy.Connection, mark: PostgresMark) -> str:
    try:
        return str(connection.execute(STATUS, {"number": mark.number}).scalar())
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != IN_THE_FUTURE:
            raise
        return "aborted"  # it was lost in a crash


@dataclass(frozen=True, slots=True)
class SqliteMark:
    """A transaction's mark, and how many changes its connection had made before it."""

    name: str
    changes: int


class SqliteCommits:
    def __init__(self) -> None:
        self._ours, self._numbers = secrets.token_hex(8), itertools.count()

    def begin(self, connection: Connection, durable: bool) -> SqliteMark:
        """Take the write lock at once: that is what rules out "database is locked"."""
        del durable  # the connection was chosen so
        connection.run("BEGIN IMMEDIATE", {})
        connection.dirty = True
        return SqliteMark(f"{self._ours}-{next(self._numbers)}", connection.driver.total_changes)

    def seal(self, connection: Connection, mark: SqliteMark) -> None:
        """One that has changed nothing has nothing to lose, and must not cost a write."""
        if connection.driver.total_changes != mark.changes:
            connection.run(KEEP, {"mark": mark.name})

    def was_done(self, engine: Engine, mark: SqliteMark, stored: Stored | None) -> bool:
        del stored  # the mark is nobody else's
        with engine.connect() as connection:
            return connection.exec_driver_sql(LAST).scalar() == mark.name

    def end(self, engine: Engine, mark: SqliteMark) -> None:
        """Nothing is left of it."""
