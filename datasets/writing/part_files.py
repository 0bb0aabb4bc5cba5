"""The files of a part while they are written: Parquet, JSON lines or CSV, under a temporary name."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import CSV, JSONL, PARQUET
from forebay.contract.requests.shards import ShardWork, WrittenFile
from forebay.contract.values import jsonable
from forebay.datasets.columns import classes_of
from forebay.datasets.writing.folder import OutputFolder, Sink

GROUP_ROWS, GROUP_BYTES = 65_536, 16 << 20  # of a row group


class PartFile:
    """A file under its temporary name; created when `sink` is first used."""

    def __init__(self, folder: OutputFolder, work: ShardWork, name: str) -> None:
        self._folder, self._name, self._temporary = folder, name, work.temporary(name)

    @cached_property
    def sink(self) -> Sink:
        return self._folder.create(self._temporary)

    @property
    def created(self) -> bool:
        return "sink" in self.__dict__

    def close(self, rows: int) -> WrittenFile:
        self.sink.close()
        return WrittenFile(self._name, self._temporary, rows, self.sink.bytes, self.sink.sha256)

    def discard(self) -> None:
        if self.created:
            self.sink.close()
            self._folder.remove([self._temporary])


class TableWriter(Protocol):
    def write_table(self, table: pa.Table) -> None: ...
    def close(self) -> None: ...


class Table:
    """Writes record batches, many at once: in Parquet they are a row group."""

    def __init__(self, file: PartFile, open_writer: Callable[[Any, pa.Schema], TableWriter]) -> None:
        self.file = file
        self._open_writer = open_writer
        self._writer: TableWriter | None = None
        self._held: list[pa.RecordBatch] = []
        self._held_rows = self._held_bytes = self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        self._held.append(batch)
        self._held_rows += len(batch)
        self._held_bytes += batch.nbytes
        if self._held_rows >= GROUP_ROWS or self._held_bytes >= GROUP_BYTES:
            self._flush()

    def close(self) -> WrittenFile | None:
        self._flush()
        if self._writer is None:
            return None
        self._writer.close()
        return self.file.close(self._rows)

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._writer = self._open_writer(self.file.sink, self._held[0].schema)
        self._writer.write_table(pa.Table.from_batches(self._held))
        self._rows += self._held_rows
        self._held, self._held_rows, self._held_bytes = [], 0, 0


class Lines:
    def __init__(self, file: PartFile) -> None:
        self.file = file
        self._rows = 0

    def add(self, line: Any) -> None:
        self.file.sink.write(json.dumps(jsonable(line), ensure_ascii=False).encode() + b"\n")
        self._rows += 1

    def close(self) -> WrittenFile | None:
        return self.file.close(self._rows) if self.file.created else None


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer with the options of every part: no dictionary for numbers, where it costs more than it saves."""
    words = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
    return pq.ParquetWriter(sink, schema, compression="snappy", use_dictionary=words or False)


def csv_writer(sink: Any, schema: pa.Schema) -> TableWriter:
    """A header, then a line for each row: text in quotes, a null as nothing. InvalidInput when a column has no such form."""
    check_csv(schema)
    return CsvWriter(sink, schema)


class CsvWriter:
    """A column for each class of an output that has them, called `probabilities.cat`."""

    def __init__(self, sink: Any, schema: pa.Schema) -> None:
        self._writer = pacsv.CSVWriter(sink, _by_class(schema.empty_table()).schema)

    def write_table(self, table: pa.Table) -> None:
        self._writer.write_table(_by_class(table))

    def close(self) -> None:
        self._writer.close()


class JsonWriter:
    """An object for each row: NaN and inf as null, bytes as {"base64": …}, times in ISO 8601, decimals as text."""

    def __init__(self, sink: Any, schema: pa.Schema) -> None:
        self._sink = sink
        self._classes = {column.name: names for column in schema if (names := classes_of(column))}

    def write_table(self, table: pa.Table) -> None:
        for batch in table.to_batches():
            rows = batch.to_pylist()
            for name, classes in self._classes.items():
                for row in rows:
                    row[name] = row[name] and dict(zip(classes, row[name], strict=True))
            lines = [json.dumps(jsonable(row), ensure_ascii=False, default=_text) for row in rows]
            self._sink.write("".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """The sink is the part's to close."""


WRITERS: Mapping[str, Callable[[Any, pa.Schema], TableWriter]] = {
    PARQUET: parquet_writer,
    JSONL: JsonWriter,
    CSV: csv_writer,
}


def check_csv(schema: pa.Schema) -> None:
    """InvalidInput, naming the column, when one holds what a field of CSV cannot."""
    for field in _by_class(schema.empty_table()).schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            raise InvalidInput(
                f"column {shown(field.name)} is {field.type}, which CSV cannot hold; write parquet or jsonl"
            )


def _by_class(table: pa.Table) -> pa.Table:
    """The table with a column for each class in the place of an output that has classes."""
    columns: dict[str, Any] = {}
    for field, column in zip(table.schema, table.columns, strict=True):
        classes = classes_of(field)
        split = {f"{field.name}.{name}": pc.list_element(column, i) for i, name in enumerate(classes)}
        for name, values in (split or {field.name: column}).items():
            if name in columns:
                raise InvalidInput(
                    f"there would be two columns {shown(name)} in CSV; leave it out of keep, or write parquet"
                )
            columns[name] = values
    return pa.table(columns)


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, dt.date | dt.time) else str(value)
