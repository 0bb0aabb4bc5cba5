"""The files of a part while they are written: Parquet or JSON lines, under a temporary name."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forebay.contract.requests.shards import ShardWork, WrittenFile
from forebay.contract.values import jsonable
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


class Table:
    """Writes record batches as Parquet, many in one row group."""

    def __init__(self, file: PartFile) -> None:
        self.file = file
        self._writer: pq.ParquetWriter | None = None
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
            self._writer = parquet_writer(self.file.sink, self._held[0].schema)
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
