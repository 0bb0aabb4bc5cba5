"""Statement: SQL that is written once, as PostgreSQL has it, and rendered for SQLite where that differs.

SQLite has a single writer and needs no row locks; a list reaches it as JSON. Either way the text is the same for a list of
any length, so it is planned once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, CursorResult, TextClause, text

_ROW_LOCK = re.compile(r"\s*\bFOR UPDATE( SKIP LOCKED)?")
_LIST = re.compile(r"= ANY\(:(\w+)\)")


class Statement:
    """One SQL statement with named parameters (`:name`); `= ANY(:names)` takes a list."""

    def __init__(self, sql: str) -> None:
        self._sql = sql

    def execute(self, connection: Connection, /, **values: Any) -> CursorResult[Any]:
        """Execute it within the transaction of `connection`."""
        sqlite = connection.dialect.name == "sqlite"
        return connection.execute(self.sqlite if sqlite else self._postgresql, self.bind(values, sqlite))

    def execute_many(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Execute it once for each of the rows, none of which holds a list."""
        connection.execute(self.sqlite if connection.dialect.name == "sqlite" else self._postgresql, list(rows))

    def bind(self, values: dict[str, Any], sqlite: bool) -> dict[str, Any]:
        """The values as the driver wants them."""
        for name in self._lists:
            values[name] = json.dumps(list(values[name])) if sqlite else list(values[name])
        return values

    def dicts(self, connection: Connection, /, **values: Any) -> list[dict[str, Any]]:
        """Execute it and give the rows as dicts: where there are many, much faster than to ask each row for each column."""
        result = self.execute(connection, **values)
        names = tuple(result.keys())
        return [dict(zip(names, row, strict=True)) for row in result.all()]  # one fetch for all rows

    @cached_property
    def sqlite(self) -> TextClause:
        """The statement as SQLite has it."""
        return text(_LIST.sub(r"IN (SELECT value FROM json_each(:\1))", _ROW_LOCK.sub("", self._sql)))

    @cached_property
    def _postgresql(self) -> TextClause:
        return text(self._sql)

    @cached_property
    def _lists(self) -> frozenset[str]:
        return frozenset(_LIST.findall(self._sql))
