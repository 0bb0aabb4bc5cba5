"""Whether a transaction was committed whose COMMIT got no answer. The database is asked, so that no write has to guess, and
none that was done is done again or taken for somebody else's.

PostgreSQL knows what became of each transaction by its number, which comes with the answer to BEGIN. A SQLite ledger keeps the
mark of its last commit in a row; nobody else writes meanwhile, for the writer's lock is still held.
"""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Engine, text

from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.silence import asking

XID = "SELECT CAST(pg_current_xact_id() AS text)"
# Whoever has lost its client may still hold its rows, or be about to commit.
END_SESSION = text("""
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE backend_xid = CAST(CAST(CAST(:mark AS text) AS xid8) AS xid) AND datname = current_database()""")
STATUS = text("SELECT pg_xact_status(CAST(CAST(:mark AS text) AS xid8))")

KEEP = "INSERT INTO last_commit (id, mark) VALUES (1, :mark) ON CONFLICT (id) DO UPDATE SET mark = excluded.mark"
LAST = "SELECT mark FROM last_commit WHERE id = 1"


class Commits(Protocol):
    """How one kind of database marks its transactions. `begin` one, `seal` it before its COMMIT, then ask for its mark."""

    def begin(self, connection: Connection, durable: bool) -> Any: ...

    def seal(self, connection: Connection, mark: Any) -> None: ...

    def was_done(self, engine: Engine, mark: Any) -> bool | None:
        """Whether the transaction was committed; None while that is not decided. By a connection of its own."""
        ...

    def end(self, engine: Engine, mark: Any) -> None:
        """End what a cut connection has left of a transaction that was never to be committed."""
        ...


class PostgresCommits:
    def begin(self, connection: Connection, durable: bool) -> str:
        """Begin the transaction: all in one message, where the driver would send a BEGIN alone."""
        import psycopg  # here, for whoever has SQLite may lack it
        from psycopg.pq import ExecStatus

        relaxed = "" if durable else "SET LOCAL synchronous_commit = off; "
        server = connection.driver.pgconn
        with connection.busy():
            result = server.exec_(f"BEGIN; {relaxed}{XID}".encode())
        if result.status != ExecStatus.TUPLES_OK:
            connection.invalidate()
            error = psycopg.OperationalError(server.get_error_message() or "the server did not begin a transaction")
            raise connection.failure("BEGIN", error)
        connection.dirty = True
        return str(int(result.get_value(0, 0)))

    def seal(self, connection: Connection, mark: str) -> None:
        """Nothing: its number says it all."""

    def was_done(self, engine: Engine, mark: str) -> bool | None:
        with asking(engine) as connection:
            connection.execute(END_SESSION, {"mark": mark})
            status = connection.execute(STATUS, {"mark": mark}).scalar()
        return {"committed": True, "aborted": False}.get(str(status))

    def end(self, engine: Engine, mark: str) -> None:
        with asking(engine) as connection:
            connection.execute(END_SESSION, {"mark": mark})


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

    def was_done(self, engine: Engine, mark: SqliteMark) -> bool:
        with engine.connect() as connection:
            return connection.exec_driver_sql(LAST).scalar() == mark.name

    def end(self, engine: Engine, mark: SqliteMark) -> None:
        """Nothing is left of it."""
