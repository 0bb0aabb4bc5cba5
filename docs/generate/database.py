"""The page of the database: the tables and their comments as SQLAlchemy knows them."""

from __future__ import annotations

from typing import Any

from docs.generate.text import listed, sentence
from sqlalchemy import Table

from forebay.storage.ledger import tables

HEAD = """
# Database

The tables of the ledger, for whoever looks into it with SQL. Read as you like; let only Forebay write. `forebay db upgrade` makes
and changes the tables. A type with `null` may be empty. Times are seconds since 1970 in UTC; ids of jobs are 32 hexadecimal
digits, in the order of submission. In PostgreSQL `DOUBLE` is `DOUBLE PRECISION` and `BLOB` is `BYTEA`.
"""


def database() -> str:
    """The page of the database."""
    found = sorted(tables.metadata.tables.values(), key=lambda table: table.name)
    return "\n\n".join([HEAD.strip(), *map(_section, found)])


def _section(table: Table) -> str:
    lines = [
        f"## {table.name}",
        "",
        table.comment or "",
        "",
        "| column | type | meaning |",
        "| --- | --- | --- |",
    ]
    for column in table.columns:
        key = next(
            (f"[`{key.column.table.name}.{key.column.name}`](#{key.column.table.name})" for key in column.foreign_keys),
            "",
        )
        both = " ".join(filter(None, [sentence(column.comment or ""), f"Refers to {key}." if key else ""]))
        lines.append(
            f"| `{column.name}` | {column.type!s}{', null' * bool(column.nullable)} | {both} |".replace("  ", " ")
        )
    lines += ["", f"- Primary key: {listed(column.name for column in table.primary_key)}"]
    for index in sorted(table.indexes, key=lambda one: str(one.name)):
        lines.append(f"- {'Unique index' if index.unique else 'Index'} `{index.name}`: {_columns(index)}")
    return "\n".join(lines)


def _columns(index: Any) -> str:
    columns = ", ".join(f"`{getattr(one, 'name', None) or one}`" for one in index.expressions)
    where = index.dialect_options["postgresql"].get("where")
    return columns + (f" where `{where}`" if where is not None else "")
