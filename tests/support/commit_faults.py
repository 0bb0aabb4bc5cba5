"""Databases whose commits a test may lose: before the database hears of one, or after it is done and before its answer comes.

On PostgreSQL a proxy cuts the connection; a SQLite ledger is given an error where SQLAlchemy asks the driver to commit.
"""

import sqlite3
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import event

from forebay.storage.ledger.connection import Ledger
from support.fault_proxy import Cut, Decide, Exchange, FaultProxy, never


class OneCut:
    """Cuts at the first COMMIT of a transaction that holds this text."""

    def __init__(self, cut: Cut, text: str = "") -> None:
        self.cut, self.text, self.done = cut, text, False

    def __call__(self, exchange: Exchange) -> Cut | None:
        if self.done or not exchange.is_commit or not any(self.text in each for each in exchange.transaction):
            return None
        self.done = True
        return self.cut


class FaultyDatabase:
    """A database at `url`; `decide` is asked about every COMMIT of the ledgers that it is told to `watch`."""

    def __init__(self, url: str, proxy: FaultProxy | None) -> None:
        self.url, self.proxy = url, proxy
        self._decide: Decide = never
        self._lock = threading.Lock()
        if proxy is not None:
            proxy.decide = self._ask

    def lose(self, decide: Decide) -> None:
        """From now on these commits are lost; `never` ends that."""
        self._decide = decide

    def watch(self, ledger: Ledger) -> Ledger:
        """Lose commits of this ledger too. PostgreSQL's pass through the proxy, whoever opens them."""
        if self.proxy is None:
            _watch_driver(ledger, self._ask)
        return ledger

    def _ask(self, exchange: Exchange) -> Cut | None:
        with self._lock:
            return self._decide(exchange)


@contextmanager
def faulty_database(database: str) -> Iterator[FaultyDatabase]:
    """The database at this address, with commits that can be lost."""
    if database.startswith("sqlite"):
        yield FaultyDatabase(database, None)
        return
    url = urlsplit(database)
    with closing(FaultProxy(url.port or 5432)) as proxy:
        yield FaultyDatabase(url._replace(netloc=f"{url.username}@127.0.0.1:{proxy.port}").geturl(), proxy)


def _watch_driver(ledger: Ledger, decide: Decide) -> None:
    texts: defaultdict[int, list[str]] = defaultdict(list)
    commit = ledger.engine.dialect.do_commit

    @event.listens_for(ledger.engine, "before_cursor_execute")
    def _note(_: Any, cursor: Any, statement: str, *__: Any) -> None:
        if statement.startswith("BEGIN"):
            texts[id(cursor.connection)] = []
        texts[id(cursor.connection)].append(statement)

    def do_commit(connection: Any) -> None:
        driver = getattr(connection, "driver_connection", connection)
        cut = decide(Exchange("COMMIT", tuple(texts.pop(id(driver), ()))))
        if cut is not Cut.BEFORE:
            commit(connection)
        if cut is not None:
            raise sqlite3.OperationalError(f"disk I/O error, made {cut} the commit")

    ledger.engine.dialect.do_commit = do_commit  # type: ignore[method-assign]
