"""SQLAlchemy's engines for the two kinds of database. Their connections are kept by driver.Pool."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, NullPool, create_engine, event

from forebay.contract.errors import MissingExtra

# Pages. At the default of 1000 every few thousand jobs one commit waits a quarter of a second for the log to be moved; the
# sweepers do that beside the commits (`checkpoint`), and this bounds the log when there is none.
WAL_LIMIT = "wal_autocheckpoint=20000"
# Bytes to which the log is cut when it begins anew: one burst must not leave it as long as it made it.
WAL_KEPT = "journal_size_limit=16777216"
# Notices within a quarter of a minute a server that is gone without closing its connections.
KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}

# What clients and workers ask is of few rows. A plan that is kept from when the table had hardly any would else read through all
# of a million until statistics are made. JIT would take the price of what has no index for that of a long query.
PREFER_INDEXES = b"SET enable_seqscan = off; SET jit = off"


def sqlite_engine(url: str, busy_timeout_s: float) -> Engine:
    engine = create_engine(
        url, connect_args={"timeout": busy_timeout_s, "check_same_thread": False}, poolclass=NullPool
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # Commits begins transactions
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "temp_store=MEMORY",
            WAL_LIMIT,
            WAL_KEPT,
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def postgres_engine(url: str, statement_limit_s: float | None) -> Engine:
    """The server ends a statement that takes longer than `statement_limit_s`."""
    given: dict[str, Any] = {"connect_timeout": 10, "application_name": "forebay"} | KEEPALIVE
    if statement_limit_s is not None:
        given |= {"options": f"-c statement_timeout={round(statement_limit_s * 1000)}", "connect_timeout": 5}
    try:
        engine = create_engine(
            url,
            isolation_level="AUTOCOMMIT",
            poolclass=NullPool,
            connect_args=given,
        )
    except ImportError as error:
        raise MissingExtra("a PostgreSQL ledger needs psycopg", "postgres") from error
    if statement_limit_s is None:

        @event.listens_for(engine, "connect")
        def _prefer_indexes(connection: Any, _record: Any) -> None:
            connection.pgconn.exec_(PREFER_INDEXES)

    return engine
