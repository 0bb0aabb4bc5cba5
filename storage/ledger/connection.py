"""The connection to the ledger: SQLite in WAL mode or PostgreSQL, reads, write transactions, and the ledger's clock.

Every database error that a user can meet leaves here as LedgerUnavailable with the address and the next step.
"""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from forebay.contract.errors import LedgerOutdated, LedgerUnavailable, MissingExtra
from forebay.contract.setting_kinds import mask_password
from forebay.storage.ledger.statement import Statement

BUSY_TIMEOUT_S = 60
# Pages. At the default of 1000 every few thousand jobs one commit waits a quarter of a second for the log to be moved; the
# sweepers do that beside the commits (`checkpoint`), and this bounds the log when there is none.
WAL_LIMIT = "wal_autocheckpoint=20000"
CLOCK_REFRESH_S = 60

FORK_WAIT_S = 2.0


class Ledger:
    """One database. Thread-safe; open one per process and close it."""

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        clock: Callable[[], float] = time.time,
        statement_limit_s: float | None = None,
    ) -> None:
        """Connect lazily to `url`; with `create`, a missing SQLite file is made.

        A read that takes longer than `statement_limit_s` is given up with LedgerUnavailable: for the dashboard.
        LedgerUnavailable when the SQLite file is missing, MissingExtra when psycopg is.
        """
        self.url = url
        self.sqlite = url.startswith("sqlite")
        self._clock = clock
        self._offset = 0.0
        self._offset_until = 0.0
        if self.sqlite:
            _check_file(url, create)
        self._limit = statement_limit_s
        self.engine = _sqlite_engine(url) if self.sqlite else _postgres_engine(url, statement_limit_s)
        self._one_writer: AbstractContextManager[Any] = WriterLock(url) if self.sqlite else nullcontext()
        self._reader = self.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._writer = self.engine.execution_options(forebay_write="FULL")
        self._quick_writer = self.engine.execution_options(forebay_write="NORMAL")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection on which every statement sees what is committed."""
        with self._clear_errors(), self._reader.connect() as connection, self._limited(connection):
            yield connection

    def rows(self, statement: Statement, /, **values: Any) -> Sequence[Any]:
        """What a query gives."""
        with self.read() as connection:
            return statement.execute(connection, **values).fetchall()

    def row(self, statement: Statement, /, **values: Any) -> Any:
        """The first row of a query, None when there is none."""
        with self.read() as connection:
            return statement.execute(connection, **values).fetchone()

    def scalar(self, statement: Statement, /, **values: Any) -> Any:
        """The first value of a query, None when there is none."""
        with self.read() as connection:
            return statement.execute(connection, **values).scalar()

    def quick_scalar(self, statement: Statement, /, **values: Any) -> Any:
        """The same for a small query that is asked very often.

        On SQLite the driver answers directly: SQLAlchemy's share would be ten times the query's, at every submit.
        """
        if not self.sqlite:
            return self.scalar(statement, **values)
        with self._clear_errors(), closing(self.engine.raw_connection()) as pooled:
            row = pooled.cursor().execute(statement.sqlite.text, statement.bind(values, sqlite=True)).fetchone()
        return row[0] if row else None

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """One transaction, committed when the block ends without an error.

        Without `durable` the commit does not wait for the disk: for what a power cut may undo, such as a claim, whose
        worker dies with it.
        """
        engine = self._writer if durable else self._quick_writer
        with self._clear_errors(), self._one_writer, engine.begin() as connection:
            if not durable and not self.sqlite:
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            yield connection

    def now(self) -> float:
        """Seconds since the epoch by the ledger's clock: leases must not depend on which machine's clock is fast."""
        now = self._clock()
        if not self.sqlite and now >= self._offset_until:
            self._measure_offset()
        return now + self._offset

    def checkpoint(self) -> None:
        """Move what SQLite's write-ahead log holds into the database, in the background: it holds up nobody's commit."""
        if self.sqlite:
            with self.read() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def ping(self) -> None:
        """LedgerUnavailable unless the ledger answers."""
        with self.read() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    def prepare_fork(self) -> None:
        """Close SQLite's connections, which a forked process must not even close; those in use are waited for, a moment."""
        until = time.monotonic() + FORK_WAIT_S
        while self.sqlite:
            self.engine.pool.dispose()
            if not self.engine.pool.checkedout() or time.monotonic() > until:  # type: ignore[attr-defined] # QueuePool
                return
            time.sleep(0.001)

    @contextmanager
    def _limited(self, connection: Connection) -> Iterator[None]:
        """PostgreSQL enforces the limit itself; SQLite asks, every so many of its steps, whether to go on."""
        if self._limit is None or not self.sqlite:
            yield
            return
        driver: Any = connection.connection.driver_connection
        until = time.monotonic() + self._limit
        driver.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    def _measure_offset(self) -> None:
        with self.read() as connection:
            before = self._clock()
            theirs = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            after = self._clock()
        self._offset = float(theirs) - (before + after) / 2
        self._offset_until = after + CLOCK_REFRESH_S

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (DBAPIError, sqlite3.Error) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            kind = LedgerOutdated if _is_outdated(cause, reason) else LedgerUnavailable
            raise kind(f"the ledger {mask_password(self.url)}: {reason}{_advice(cause, reason)}") from error
        except SQLAlchemyError as error:
            raise LedgerUnavailable(f"the ledger {mask_password(self.url)}: {error}") from error


OLD_TABLES = ("42P01", "42703", "no such table", "no such column", "has no column named")


class WriterLock:
    """One writer at a time among all threads and processes that share a SQLite file.

    SQLite has one writer anyway, but whoever finds it busy sleeps for up to 100 ms before looking again. Here threads queue
    on a lock that wakes at once, and one thread of each process looks again within a millisecond.
    """

    def __init__(self, url: str) -> None:
        self._path = f"{make_url(url).database}-writer"
        self._threads = threading.Lock()
        self._file: IO[bytes] | None = None

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            self._file = open(self._path, "ab")  # noqa: PTH123 - closed, and so given back, in __exit__
            self._lock(self._file)
        except BaseException:
            self._release()
            raise

    def __exit__(self, *_: object) -> None:
        self._release()

    def _lock(self, file: IO[bytes]) -> None:
        deadline, pause = time.monotonic() + BUSY_TIMEOUT_S, 0.0001
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LedgerUnavailable(
                        f"{self._path}: another process has held it for {BUSY_TIMEOUT_S} s"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 1.5, 0.001)

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._threads.release()


def _is_outdated(error: object, reason: str) -> bool:
    sqlstate = getattr(error, "sqlstate", None)  # PostgreSQL's words depend on its language, this does not
    return sqlstate in OLD_TABLES or any(words in reason for words in OLD_TABLES)


def _advice(error: object, reason: str) -> str:
    if _is_outdated(error, reason):
        return "; its tables are missing or older than this Forebay: run `forebay db upgrade`"
    if getattr(error, "sqlstate", None) == "57014" or reason == "interrupted":
        return "; the query took too long and was given up: ask for less"
    if "locked" in reason:
        return f"; another process has held it for {BUSY_TIMEOUT_S} s"
    return ""


def _check_file(url: str, create: bool) -> None:
    path = Path(make_url(url).database or "")
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerUnavailable(f"cannot make the folder of the ledger {path}: {error}") from error
    elif not path.is_file():
        raise LedgerUnavailable(
            f"there is no ledger at {path}; start the stack with `forebay up`, or run `forebay db upgrade`"
        )


def _sqlite_engine(url: str) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False}, pool_size=16, max_overflow=64
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we begin transactions ourselves, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "temp_store=MEMORY", WAL_LIMIT):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        synchronous = connection.get_execution_options().get("forebay_write")
        if synchronous:  # taking the write lock at once is what rules out "database is locked"
            connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _limited_connection(limit_ms: int) -> dict[str, Any]:
    """The server ends a statement that takes too long; keepalives notice a server that is gone without closing."""
    keepalive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3, "tcp_user_timeout": 10_000}
    return {"options": f"-c statement_timeout={limit_ms}", "connect_timeout": 5} | keepalive


def _postgres_engine(url: str, statement_limit_s: float | None) -> Engine:
    limit: dict[str, Any] = {} if statement_limit_s is None else _limited_connection(round(statement_limit_s * 1000))
    try:
        return create_engine(
            url,
            pool_pre_ping=True,
            pool_size=8,
            max_overflow=32,
            connect_args={"connect_timeout": 10, "application_name": "forebay"} | limit,
        )
    except ImportError as error:
        raise MissingExtra("a PostgreSQL ledger needs psycopg: pip install 'forebay[postgres]'") from error
