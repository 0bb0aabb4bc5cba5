"""The connection to the ledger: SQLite in WAL mode or PostgreSQL, reads, write transactions, and the ledger's clock.

Every database error that a user can meet leaves here as LedgerUnavailable with the address and the next step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from math import inf
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from forebay.contract.errors import LedgerOutdated, LedgerUnavailable, OutcomeUnknown
from forebay.contract.places import make_private_folder
from forebay.contract.setting_kinds import mask_password
from forebay.storage.ledger.boot_clock import BOOT_ID, boot_offset, steady_time
from forebay.storage.ledger.commits import Commits, PostgresCommits, SqliteCommits, Stored, Unknowable
from forebay.storage.ledger.driver import Connection, Pool, Result
from forebay.storage.ledger.engines import postgres_engine, sqlite_engine
from forebay.storage.ledger.statement import Statement
from forebay.storage.ledger.writer_lock import WriterLock

log = structlog.get_logger()

LAST_HEARTBEAT = text("SELECT max(heartbeat_at) FROM workers")
BUSY_TIMEOUT_S = 60
CLOCK_REFRESH_S = 60
SETTLE_S = 10.0

FORK_WAIT_S = 2.0
LEVEL = {True: "FULL", False: "NORMAL"}  # of SQLite: whether a commit waits for the disk
MOST_CONNECTIONS = {True: 80, False: 40}  # of a process, to SQLite and to PostgreSQL


class Ledger:
    """One database. Thread-safe; open one per process and close it."""

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        clock: Callable[[], float] | None = None,
        statement_limit_s: float | None = None,
        settle_s: float = SETTLE_S,
    ) -> None:
        """Connect lazily to `url`; with `create`, a missing SQLite file is made.

        A read that takes longer than `statement_limit_s` is given up with LedgerUnavailable: for the dashboard. When the answer
        to a COMMIT is lost, the ledger is asked for up to `settle_s` seconds what came of it.
        LedgerUnavailable when the SQLite file is missing, MissingExtra when psycopg is.
        """
        self.url = url
        self.sqlite = url.startswith("sqlite")
        self._clock = clock or steady_time
        self._offset, self._offset_until = 0.0, 0.0
        if self.sqlite and (clock is not None or not BOOT_ID.exists()):
            self._clock, self._offset_until = clock or time.time, inf
        if self.sqlite:
            _check_file(url, create)
        self._limit = statement_limit_s
        self._settle_s = settle_s
        self.engine = sqlite_engine(url, BUSY_TIMEOUT_S) if self.sqlite else postgres_engine(url, statement_limit_s)
        self._clear_errors = _ClearErrors(url, self.engine.dialect.loaded_dbapi.Error)
        self._writer_lock = WriterLock(url, BUSY_TIMEOUT_S) if self.sqlite else None
        self._one_writer: AbstractContextManager[Any] = self._writer_lock or nullcontext()
        self._pool = Pool(self.engine, MOST_CONNECTIONS[self.sqlite])
        self._commits: Commits = SqliteCommits() if self.sqlite else PostgresCommits()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection on which every statement sees what is committed."""
        with self._clear_errors, closing(self._pool.take(ping=True)) as connection, self._limited(connection):
            yield connection

    def rows(self, statement: Statement, /, **values: Any) -> Sequence[Any]:
        """What a query gives."""
        return self.ask(statement, **values).all()

    def row(self, statement: Statement, /, **values: Any) -> Any:
        """The first row of a query, None when there is none."""
        return self.ask(statement, **values).first()

    def scalar(self, statement: Statement, /, **values: Any) -> Any:
        """The first value of a query, None when there is none."""
        return self.ask(statement, **values).scalar()

    def ask(self, statement: Statement, /, **values: Any) -> Result:
        """What a query gives. It is asked again where its connection is cut: that a pool of them knows of none is not rare."""
        with self._clear_errors:
            try:
                return self._ask(statement, values)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            return self._ask(statement, values)

    def _ask(self, statement: Statement, values: dict[str, Any]) -> Result:
        connection = self._pool.take()
        try:
            if self._limit is None:
                return statement.execute(connection, **values)
            with self._limited(connection):
                return statement.execute(connection, **values)
        finally:
            connection.close()

    @contextmanager
    def write(self, *, durable: bool = True, stored: Stored | None = None) -> Iterator[Connection]:
        """One transaction, committed when the block ends without an error.

        LedgerUnavailable says that nothing was written: where the answer to the COMMIT is lost, the ledger is asked, and a
        transaction that it knows as committed is none that failed. OutcomeUnknown: nobody has answered that either, or the server
        has crashed meanwhile and cannot tell; then `stored` is asked, where it is given.

        Without `durable` the commit does not wait for the disk: for what a power cut may undo, such as a claim, whose
        worker dies with it.
        """
        with self._clear_errors, self._one_writer:
            connection, mark = self._begin(durable)
            with closing(connection):
                try:
                    yield connection
                    self._commits.seal(connection, mark)
                except BaseException:
                    if connection.invalidated:
                        with suppress(SQLAlchemyError):  # else the server finds out in its own time
                            self._commits.end(self.engine, mark)
                    raise
                try:
                    connection.commit()
                except DBAPIError as error:
                    connection.invalidate()
                    if not self._was_committed(mark, error, stored):
                        raise

    def _begin(self, durable: bool) -> tuple[Connection, Any]:
        """A connection and its transaction's mark. One that its server has dropped, since it was last used, is replaced."""
        for last in (False, True):
            connection = self._pool.take(synchronous=LEVEL[durable] if self.sqlite else "")
            try:
                return connection, self._commits.begin(connection, durable)
            except BaseException:
                dropped = connection.invalidated
                connection.close()
                if last or not dropped:
                    raise
        raise AssertionError

    def _was_committed(self, mark: Any, error: DBAPIError, stored: Stored | None) -> bool:
        until, pause = time.monotonic() + self._settle_s, 0.01
        done: bool | None = None
        while done is None:
            try:
                done = self._commits.was_done(self.engine, mark, stored)
            except DBAPIError as still:
                error = still
            except Unknowable as unknowable:
                raise OutcomeUnknown(
                    f"the ledger {mask_password(self.url)}: the answer to a commit was lost: {unknowable}"
                ) from error
            if done is None:
                if time.monotonic() >= until:
                    raise OutcomeUnknown(
                        f"the ledger {mask_password(self.url)}: the answer to a commit was lost, and it has not said within "
                        f"{self._settle_s:g} s whether that was done: {error.orig}"
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
        log.warning("commit_answer_lost", committed=done, error=str(error.orig).strip())
        return done

    def now(self) -> float:
        """Seconds since the epoch by the ledger's clock: leases must not depend on which machine's clock is fast."""
        now = self._clock()
        if now >= self._offset_until:
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

    def waiting_since(self) -> float:
        """Since when, by the monotonic clock, the oldest statement that has no answer yet has been waiting; 0: none is."""
        return min((since for c in self._pool.taken() if (since := c.busy_since)), default=0.0)

    def close(self) -> None:
        """Give back every connection."""
        self._pool.close_idle()
        if self._writer_lock is not None:
            self._writer_lock.close()

    def prepare_fork(self) -> None:
        """Close SQLite's connections, which a forked process must not even close; those in use are waited for, a moment."""
        if self._writer_lock is None:
            return
        until = time.monotonic() + FORK_WAIT_S
        self._writer_lock.close(FORK_WAIT_S)
        while not self._pool.close_idle() and time.monotonic() < until:
            time.sleep(0.001)

    @contextmanager
    def _limited(self, connection: Connection) -> Iterator[None]:
        """PostgreSQL enforces the limit itself; SQLite asks, every so many of its steps, whether to go on."""
        if self._limit is None or not self.sqlite:
            yield
            return
        driver = connection.driver
        until = time.monotonic() + self._limit
        driver.set_progress_handler(lambda: time.monotonic() > until, 10_000)
        try:
            yield
        finally:
            driver.set_progress_handler(None, 0)

    def _measure_offset(self) -> None:
        if self.sqlite:
            self._offset, self._offset_until = boot_offset(str(make_url(self.url).database), self._latest), inf
            return
        with self.read() as connection:
            before = self._clock()
            theirs = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
            after = self._clock()
        self._offset = float(theirs) - (before + after) / 2
        self._offset_until = after + CLOCK_REFRESH_S

    def _latest(self) -> float:
        """A time that is not ahead of the ledger's, and hardly behind it when workers have been at work."""
        with suppress(LedgerUnavailable), self.read() as connection:
            return float(connection.execute(LAST_HEARTBEAT).scalar() or 0.0)
        return 0.0


class _ClearErrors:
    """Raises what a database raises as LedgerUnavailable, with its address and the next step. One serves every block."""

    def __init__(self, url: str, driver_error: type[Exception]) -> None:
        self._url, self._driver_error = url, driver_error

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is None or isinstance(error, IntegrityError):
            return
        if isinstance(error, (DBAPIError, self._driver_error)):
            cause = error.orig if isinstance(error, DBAPIError) else error
            reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
            made = LedgerOutdated if _is_outdated(cause, reason) else LedgerUnavailable
            raise made(f"the ledger {mask_password(self._url)}: {reason}{_advice(cause, reason)}") from error
        if isinstance(error, SQLAlchemyError):
            raise LedgerUnavailable(f"the ledger {mask_password(self._url)}: {error}") from error


OLD_TABLES = ("42P01", "42703", "no such table", "no such column", "has no column named")


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
            make_private_folder(path.parent)
        except OSError as error:
            raise LedgerUnavailable(f"cannot make the folder of the ledger {path}: {error}") from error
    elif not path.is_file():
        raise LedgerUnavailable(
            f"there is no ledger at {path}; start the stack with `forebay up`, or run `forebay db upgrade`"
        )
