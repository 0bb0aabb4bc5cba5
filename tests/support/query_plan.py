"""How SQLite would go about a statement."""

from sqlalchemy import text

from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement


def query_plan(ledger: Ledger, statement: Statement, **values: object) -> str:
    """The steps of its plan, one a line."""
    with ledger.read() as connection:
        rows = connection.execute(text(f"EXPLAIN QUERY PLAN {statement.sqlite}"), statement.bind(values, sqlite=True))
        return "\n".join(str(row.detail) for row in rows)
