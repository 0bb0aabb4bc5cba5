"""Bringing a ledger's tables to the form this Forebay needs, and saying which form they have."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.schema import SetColumnComment, SetTableComment

from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.driver import Connection
from forebay.storage.ledger.tables import metadata

_LOCK = 0x464F5245  # any number of our own for PostgreSQL's advisory lock


def upgrade(ledger: Ledger) -> str:
    """Run every missing migration in one transaction and give the revision; safe from many processes at once."""
    from alembic import command  # a third of a second that only upgrades need pay
    from alembic.config import Config

    with ledger.write() as connection:
        if not ledger.sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection.alchemy
        command.upgrade(config, "head")
        if not ledger.sqlite:
            _comment(connection)
        return _revision(connection) or ""


def current(ledger: Ledger) -> str | None:
    """The revision of the ledger's tables, or None when it has none."""
    with ledger.read() as connection:
        return _revision(connection)


def _comment(connection: Connection) -> None:
    """Give tables and columns the comments that they are declared with; SQLite has no place for them."""
    for table in metadata.tables.values():
        connection.alchemy.execute(SetTableComment(table))
        for column in table.columns:
            connection.alchemy.execute(SetColumnComment(column))


def _revision(connection: Connection) -> str | None:
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection.alchemy).get_current_revision()
