"""Statement: SQL that is written once, as PostgreSQL has it, and rendered for SQLite where that differs.

SQLite has a single writer and needs no row locks; a list reaches it as JSON. Either way the text is the same for a list of
any length, so it is planned once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from forebay.storage.ledger.driver import Connection, Result

ROWS_AT_ONCE = 1000  # of which each may have a payload
_ROW_LOCK = re.compile(r"\s*\bFOR UPDATE( SKIP LOCKED)?")
_LIST = re.compile(r"= ANY\(:(\w+)\)")
_PARAMETER = re.compile(r"(?<![:\w]):(\w+)(?!:)")


class Statement:
    """One SQL statement with named parameters (`:name`); `= ANY(:names)` takes a list.

    `many` is how PostgreSQL does the same for many rows at once: each of its parameters is an array with a value of each row.
    """

    def __init__(self, sql: str, many: str | None = None) -> None:
        self._sql = sql
        self._texts: dict[frozenset[str], str] = {}
        self._many = None if many is None else _for_psycopg(many)

    def execute(self, connection: Connection, /, **values: Any) -> Result:
        """Execute it within the transaction of `connection`."""
        if connection.sqlite:
            return connection.run(self.sqlite, self.bind(values, True))
        values = self.bind(values, False)
        single = frozenset([name for name in self._lists if len(values[name]) == 1])
        for name in single:
            [values[name]] = values[name]
        return connection.run(self._of_single(single), values)

    def execute_many(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        """Execute it once for each of the rows, none of which holds a list."""
        rows = list(rows)
        if connection.sqlite or self._many is None or len(rows) < 2:
            connection.run_many(self.sqlite if connection.sqlite else self._of_single(frozenset()), rows)
        else:
            connection.run(self._many, {name: [row[name] for row in rows] for name in rows[0]})

    def bind(self, values: dict[str, Any], sqlite: bool) -> dict[str, Any]:
        """The values as the driver wants them."""
        for name in self._lists:
            values[name] = json.dumps(list(values[name])) if sqlite else list(values[name])
        return values

    def dicts(self, connection: Connection, /, **values: Any) -> list[dict[str, Any]]:
        """Execute it and give the rows as dicts."""
        result = self.execute(connection, **values)
        return [dict(zip(result.names, row, strict=True)) for row in result.tuples]

    @cached_property
    def sqlite(self) -> str:
        """The statement as SQLite has it."""
        return _LIST.sub(r"IN (SELECT value FROM json_each(:\1))", _ROW_LOCK.sub("", self._sql))

    def _of_single(self, single: frozenset[str]) -> str:
        """With `= :name` for these lists, which have one value: the server then plans it once for all, and not anew each time,
        which takes longer than to execute it. A list whose length it does not know makes no plan that it would keep.
        """  # fmt: skip
        if single not in self._texts:
            sql = _LIST.sub(lambda found: f"= :{found[1]}" if found[1] in single else found[0], self._sql)
            self._texts[single] = _for_psycopg(sql)
        return self._texts[single]

    @cached_property
    def _lists(self) -> frozenset[str]:
        return frozenset(_LIST.findall(self._sql))


def _for_psycopg(sql: str) -> str:
    return _PARAMETER.sub(r"%(\1)s", sql.replace("%", "%%"))


class Insert(Statement):
    """Adds rows of these columns, whose types on PostgreSQL are given: many rows by one statement, in which a column has an array
    of values, or a single one when all rows have the same.
    """  # fmt: skip

    def __init__(self, table: str, types: Mapping[str, str]) -> None:
        self._into, self._types = f"INSERT INTO {table} ({', '.join(types)})", types
        self._of_many: dict[tuple[str, ...], str] = {}
        super().__init__(f"{self._into} VALUES (:{', :'.join(types)})")

    def execute_many(self, connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
        rows = list(rows)
        if connection.sqlite or len(rows) < 2:
            super().execute_many(connection, rows)
            return
        for start in range(0, len(rows), ROWS_AT_ONCE):
            self._add(connection, rows[start : start + ROWS_AT_ONCE])

    def _add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        first = rows[0]
        differ = tuple(name for name in self._types if any(row[name] != first[name] for row in rows)) or (
            next(iter(first)),
        )
        if differ not in self._of_many:
            self._of_many[differ] = _for_psycopg(self._many_sql(differ))
        values = {name: [row[name] for row in rows] if name in differ else first[name] for name in self._types}
        connection.run(self._of_many[differ], values)

    def _many_sql(self, differ: tuple[str, ...]) -> str:
        values = (
            f"made.{name}" if name in differ else f"CAST(:{name} AS {kind})" for name, kind in self._types.items()
        )
        arrays = (f"CAST(:{name} AS {self._types[name]}[])" for name in differ)
        return f"{self._into} SELECT {', '.join(values)} FROM unnest({', '.join(arrays)}) AS made ({', '.join(differ)})"
