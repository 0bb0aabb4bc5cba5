"""Ends waiting for a PostgreSQL connection that has gone silent: one whose statement the server has long answered, or never
heard, behind something that keeps the connection open. TCP's own timeouts see nothing of that.

A statement may take as long as it likes: only when its server process says, by another connection, that it is not at work on
one is the connection cut. Whoever waits for it then gets the error that a cut connection gives.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol
from weakref import ReferenceType, ref

import sqlalchemy
import structlog
from sqlalchemy import Engine

log = structlog.get_logger()

SILENT_S = 10.0  # that a statement takes before its server process is asked after
EVERY_S = 2.0  # between two looks, of which two have to find it idle
ASKED_S = 5.0  # for the answers to questions about other connections, each of which is quick
AT_WORK = "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%(pids)s) AND state = 'active'"


class Connection(Protocol):
    driver: Any  # psycopg's
    busy_since: float  # when the statement was sent that it waits for, by the monotonic clock; 0: for none


class Pool(Protocol):
    engine: Engine

    def taken(self) -> list[Any]:
        """The connections that are in use."""
        ...


def watch(pool: Pool) -> None:
    """Look after the connections of this pool for as long as it is there."""
    threading.Thread(target=_run, args=(ref(pool),), name="ledger silence", daemon=True).start()


def _run(pool: ReferenceType[Pool]) -> None:
    suspects: dict[Connection, float] = {}
    while True:
        time.sleep(EVERY_S)
        found = pool()
        if found is None:
            return
        try:
            suspects = _look(found, suspects)
        except Exception as error:  # noqa: BLE001 - such as of a connection that is closed at this moment
            log.debug("ledger_silent", error=str(error))
        del found


def _look(pool: Pool, suspects: dict[Connection, float]) -> dict[Connection, float]:
    """Cut those that are idle at both ends since the last look; those that are so now."""
    before = time.monotonic() - SILENT_S
    waiting = {c: since for c in pool.taken() if 0 < (since := c.busy_since) < before}
    if not waiting:
        return {}
    pids = {c: c.driver.info.backend_pid for c in waiting}
    try:
        with asking(pool.engine) as other:
            at_work = set(other.exec_driver_sql(AT_WORK, {"pids": list(pids.values())}).scalars())
    except Exception as error:  # noqa: BLE001 - nobody answers: then waiting is right, and TCP ends it
        log.debug("ledger_silent", error=str(error))
        return suspects
    idle = {c: since for c, since in waiting.items() if pids[c] not in at_work}
    for connection, since in idle.items():
        if suspects.get(connection) == since == connection.busy_since:
            log.warning(
                "connection_silent", waited_s=round(time.monotonic() - since, 1), server_process=pids[connection]
            )
            _cut(connection.driver)
    return idle


@contextmanager
def asking(engine: Engine) -> Iterator[sqlalchemy.Connection]:
    """A connection outside the pool, for a quick question; it is cut when that takes too long."""
    with engine.connect() as connection:
        timer = threading.Timer(ASKED_S, _cut, (connection.connection.driver_connection,))
        timer.daemon = True
        timer.start()
        try:
            yield connection
        finally:
            timer.cancel()


def _cut(driver: Any) -> None:
    with suppress(Exception), socket.socket(fileno=os.dup(driver.fileno())) as line:  # it may be closed at this moment
        line.shutdown(socket.SHUT_RDWR)
