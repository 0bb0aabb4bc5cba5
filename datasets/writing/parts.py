"""Writing a shard's part: results and kept columns side by side, and under `_errors/` the rows that failed.

Files are written under temporary names. They get their own names once the ledger says that the shard is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import OPENAI, BatchRequest
from forebay.contract.requests.shards import ShardOutcome, ShardWork, WrittenFile
from forebay.contract.row_errors import ErrorCounts, ErrorSample
from forebay.contract.signature import Signature
from forebay.contract.values import jsonable
from forebay.datasets.columns import DEFAULT_OUTPUT, field_type, from_numpy, from_values, value_type
from forebay.datasets.formats.jsonl import CUSTOM_ID, URL
from forebay.datasets.formats.source import get_source
from forebay.datasets.reading.rows import Rows
from forebay.datasets.writing.folder import ERRORS, OutputFolder, Sink

GROUP_ROWS, GROUP_BYTES = 65_536, 16 << 20  # of a row group
KEPT = {"int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
_MISFITS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, OverflowError)


@dataclass(slots=True)
class ModelOutputs:
    """A model's outputs for the rows `ok` of a chunk, as arrays by name or one by one, and the errors of other rows."""

    ok: NDArray[np.int64]
    outputs: Mapping[str, NDArray[Any]] | list[Any]
    errors: dict[int, Exception]


class Part:
    """The files of one attempt at a shard. Not thread-safe; `discard` it or `close` it."""

    def __init__(
        self, folder: OutputFolder, request: BatchRequest, work: ShardWork, signature: Signature, model: str
    ) -> None:
        self._request = request
        self._locator = get_source(request.format).locator
        self._signature = signature
        writer, ending = (_Lines, "jsonl") if request.format == OPENAI else (_Table, "parquet")
        self._good = writer(_PartFile(folder, work, f"{work.part}.{ending}"))
        self._bad = writer(_PartFile(folder, work, f"{ERRORS}/{work.part}.{ending}"))
        self._work = work
        self._model = model
        self._types: dict[str, pa.DataType] = {}
        self._counts = ErrorCounts()

    def add(self, rows: Rows, made: ModelOutputs) -> tuple[int, int]:
        """Write a chunk; the numbers of rows with results and with errors."""
        errors = dict(made.errors)
        outputs = made.outputs if isinstance(made.outputs, Mapping) else _by_name(made.outputs, self._names())
        columns = self._kept(rows, made.ok, errors)
        columns |= self._outputs(outputs, made.ok, errors)
        good = made.ok
        if len(errors) > len(made.errors):
            stay = ~np.isin(good, list(errors))
            good, columns = good[stay], {name: array.filter(pa.array(stay)) for name, array in columns.items()}
        if self._request.format == OPENAI:
            self._add_lines(rows, good, columns, errors)
        else:
            self._add_tables(rows, good, columns, errors)
        for i, error in sorted(errors.items()):
            self._counts.add(type(error).__name__, partial(self._sample, rows, i, error))
        return len(good), len(errors)

    def close(self, seconds: float) -> ShardOutcome:
        part, errors = self._good.close(), self._bad.close()
        rows, failed = part.rows if part else 0, errors.rows if errors else 0
        return ShardOutcome(rows, failed, seconds, part, errors, self._counts.kinds())

    def discard(self) -> None:
        self._good.file.discard()
        self._bad.file.discard()

    def _sample(self, rows: Rows, i: int, error: Exception) -> ErrorSample:
        """A failed row as people look for it: by its custom_id, or by its position and file."""
        name = rows.columns[CUSTOM_ID][i] if self._request.format == OPENAI else None
        where = f"custom_id {name}" if isinstance(name, str) else f"{self._locator} {rows.where[i]}"
        files = self._request.files
        return ErrorSample(f"{where} of {files[rows.files[i]].path}" if len(files) > 1 else where, _text(error))

    def _names(self) -> list[str] | None:
        return None if self._signature.outputs is None else [field.name for field in self._signature.outputs]

    def _kept(self, rows: Rows, ok: NDArray[np.int64], errors: dict[int, Exception]) -> dict[str, pa.Array]:
        if self._request.format == OPENAI:
            return {}
        kept = {name: self._copied(rows, name, ok, errors) for name in self._request.keep}
        return kept or self._positions(rows, ok)

    def _copied(self, rows: Rows, name: str, ok: NDArray[np.int64], errors: dict[int, Exception]) -> pa.Array:
        column = rows.columns[name]
        if isinstance(column, pa.Array):
            array = column if len(ok) == len(column) else column.take(pa.array(ok))
            kind = self._types.setdefault(name, array.type)
            return array if array.type == kind else array.cast(kind, safe=False)
        kind = KEPT[self._request.keep_types[name]]
        values = [None if isinstance(column[i], Exception) else column[i] for i in ok]
        return _column(values, kind, ok, errors, f"column {shown(name)}")

    def _positions(self, rows: Rows, ok: NDArray[np.int64]) -> dict[str, pa.Array]:
        """The rows' positions, and their files if there are several."""
        where = {self._locator: pa.array(rows.where[ok])}
        return where if len(self._request.files) == 1 else {"file": self._files(rows, ok)} | where

    def _files(self, rows: Rows, ok: Any) -> pa.Array:
        files = rows.files[ok]
        used, indices = np.unique(files, return_inverse=True)
        paths = pa.array([self._request.files[i].path for i in used], pa.string())
        return paths.take(pa.array(indices))

    def _outputs(
        self, outputs: Mapping[str, Any], ok: NDArray[np.int64], errors: dict[int, Exception]
    ) -> dict[str, Any]:
        declared = {field.name: field_type(field) for field in self._signature.outputs or ()}
        made = {}
        for name, values in outputs.items():
            kind = declared.get(name) or self._types.get(name)
            if isinstance(values, np.ndarray):
                array = from_numpy(values)
                made[name] = array if kind is None or array.type == kind else array.cast(kind)
                self._types.setdefault(name, made[name].type)
            elif len(values):
                kind = self._types.setdefault(name, kind or value_type(values[0]))
                made[name] = _column(values, kind, ok, errors, f"output {shown(name)}")
        return made

    def _add_tables(
        self, rows: Rows, good: NDArray[np.int64], columns: dict[str, pa.Array], errors: dict[int, Exception]
    ) -> None:
        if len(good):
            self._good.add(pa.RecordBatch.from_arrays(list(columns.values()), list(columns)))
        if errors:
            bad = np.array(sorted(errors), np.int64)
            found = [errors[int(i)] for i in bad]
            table = {
                "file": self._files(rows, bad),
                self._locator: pa.array(rows.where[bad]),
                "error": pa.array([type(e).__name__ for e in found], pa.string()),
                "message": pa.array([_text(e) for e in found], pa.string()),
            }
            self._bad.add(pa.RecordBatch.from_arrays(list(table.values()), list(table)))

    def _add_lines(
        self, rows: Rows, good: NDArray[np.int64], columns: dict[str, pa.Array], errors: dict[int, Exception]
    ) -> None:
        names, urls = rows.columns[CUSTOM_ID], rows.columns[URL]
        values = list(zip(*(column.to_pylist() for column in columns.values()), strict=True))
        for i, row in zip(good, values, strict=True):
            body = _body(str(urls[i]), dict(zip(columns, row, strict=True)), self._model)
            response = {"status_code": 200, "request_id": self._work.batch, "body": body}
            self._good.add(self._line(rows, int(i), names[i], {"response": response, "error": None}))
        for i, error in sorted(errors.items()):
            told = {"code": type(error).__name__, "message": _text(error)}
            self._bad.add(self._line(rows, i, names[i], {"response": None, "error": told}))

    def _line(self, rows: Rows, i: int, custom_id: Any, rest: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"{self._work.batch}-{rows.files[i]}-{rows.where[i]}", "custom_id": custom_id} | rest


class _PartFile:
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


class _Table:
    """Writes record batches as Parquet, many in one row group."""

    def __init__(self, file: _PartFile) -> None:
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


class _Lines:
    def __init__(self, file: _PartFile) -> None:
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


def _by_name(outputs: Sequence[Any], names: Sequence[str] | None) -> Mapping[str, list[Any]]:
    """Rows of outputs as columns: by the declared names, or by their keys if every row is a dict with the same, or as one."""
    if names is not None and len(names) == 1:
        return {names[0]: list(outputs)}
    keys = names or (list(outputs[0]) if outputs and isinstance(outputs[0], dict) else None)
    if keys and all(isinstance(row, dict) and [*row] == [*keys] for row in outputs):
        return {str(name): [row[name] for row in outputs] for name in keys}
    return {DEFAULT_OUTPUT: list(outputs)}


def _column(
    values: Sequence[Any], kind: pa.DataType, ok: NDArray[np.int64], errors: dict[int, Exception], what: str
) -> pa.Array:
    """Values as a column; for one that does not fit there is a null, and its row gets an error."""
    try:
        return from_values(values, kind)
    except _MISFITS:
        return pa.concat_arrays([_single(v, kind, int(i), errors, what) for v, i in zip(values, ok, strict=True)])


def _single(value: Any, kind: pa.DataType, i: int, errors: dict[int, Exception], what: str) -> pa.Array:
    try:
        return from_values([value], kind)
    except _MISFITS:
        errors.setdefault(i, InvalidInput(f"{what}: expected {kind}, got {shown(value)}"))
        return pa.nulls(1, kind)


def _body(url: str, row: dict[str, Any], model: str) -> dict[str, Any]:
    """A response's body: embeddings as OpenAI returns them, any other outputs by name."""
    values = list(row.values())
    if url.endswith("/embeddings") and len(values) == 1 and isinstance(values[0], list):
        vector = {"object": "embedding", "index": 0, "embedding": values[0]}
        return {"object": "list", "data": [vector], "model": model}
    return {"output": row[DEFAULT_OUTPUT] if [*row] == [DEFAULT_OUTPUT] else row, "model": model}


def _text(error: Exception) -> str:
    return (str(error) or repr(error)).encode("utf-8", "backslashreplace").decode()
