"""Writing a shard's part: results as typed columns beside the columns that are kept, bad rows beside it under `_errors/`.

Each is written under a temporary name; giving it its own is left to who has the ledger's word that the shard is finished.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from forebay.datasets.formats.jsonl import CUSTOM_ID, URL
from forebay.datasets.formats.source import get_source
from forebay.datasets.reading.rows import Rows
from forebay.datasets.writing.folder import ERRORS, OutputFolder, Sink
from forebay.datasets.writing.outputs import LONE, arrow_type, by_name, from_values, type_of, whole_array

GROUP_ROWS, GROUP_BYTES = 65_536, 16 << 20  # what is held back for one row group
KEPT = {"int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
_CODECS = "snappy"


@dataclass(slots=True)
class ModelOutputs:
    """What a model made of a chunk: outputs of its rows `ok`, by name as arrays or one by one, and errors by row."""

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
        self._good: _Table | _Lines
        self._bad: _Table | _Lines
        if request.format == OPENAI:
            self._good = _Lines(folder, work, f"{work.part}.jsonl")
            self._bad = _Lines(folder, work, f"{ERRORS}/{work.part}.jsonl")
        else:
            self._good = _Table(folder, work, f"{work.part}.parquet")
            self._bad = _Table(folder, work, f"{ERRORS}/{work.part}.parquet")
        self._work = work
        self._model = model
        self._types: dict[str, pa.DataType] = {}
        self._counts = ErrorCounts()

    def add(self, rows: Rows, made: ModelOutputs) -> tuple[int, int]:
        """Write a chunk; how many rows went to the part and to the errors."""
        errors = dict(made.errors)
        outputs = made.outputs if isinstance(made.outputs, Mapping) else by_name(made.outputs, self._names())
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
        """Finish the files; they still have their temporary names."""
        part, errors = self._good.close(), self._bad.close()
        rows, failed = part.rows if part else 0, errors.rows if errors else 0
        return ShardOutcome(rows, failed, seconds, part, errors, self._counts.kinds())

    def discard(self) -> None:
        """Remove what was written."""
        self._good.discard()
        self._bad.discard()

    def _sample(self, rows: Rows, i: int, error: Exception) -> ErrorSample:
        """A bad row as people look for it: by its custom_id, or where it stands and in which file."""
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
        return kept or self._places(rows, ok)

    def _copied(self, rows: Rows, name: str, ok: NDArray[np.int64], errors: dict[int, Exception]) -> pa.Array:
        column = rows.columns[name]
        if isinstance(column, pa.Array):
            array = column if len(ok) == len(column) else column.take(pa.array(ok))
            kind = self._types.setdefault(name, array.type)
            return array if array.type == kind else array.cast(kind, safe=False)
        kind = KEPT[self._request.keep_types[name]]
        values = [None if isinstance(column[i], Exception) else column[i] for i in ok]
        return _tolerant(values, kind, ok, errors, f"column {shown(name)}")

    def _places(self, rows: Rows, ok: NDArray[np.int64]) -> dict[str, pa.Array]:
        """Where each row stands: its number in the file or the byte its line begins at, and the file if there are several."""
        where = {self._locator: pa.array(rows.where[ok])}
        return where if len(self._request.files) == 1 else {"file": self._files(rows, ok)} | where

    def _files(self, rows: Rows, ok: Any) -> pa.Array:
        files = rows.files[ok]
        used, places = np.unique(files, return_inverse=True)
        paths = pa.array([self._request.files[i].path for i in used], pa.string())
        return paths.take(pa.array(places))

    def _outputs(
        self, outputs: Mapping[str, Any], ok: NDArray[np.int64], errors: dict[int, Exception]
    ) -> dict[str, Any]:
        declared = {field.name: arrow_type(field) for field in self._signature.outputs or ()}
        made = {}
        for name, values in outputs.items():
            kind = declared.get(name) or self._types.get(name)
            if isinstance(values, np.ndarray):
                array = whole_array(values)
                made[name] = array if kind is None or array.type == kind else array.cast(kind)
                self._types.setdefault(name, made[name].type)
            elif len(values):
                kind = self._types.setdefault(name, kind or type_of(values[0]))
                made[name] = _tolerant(values, kind, ok, errors, f"output {shown(name)}")
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


class _Table:
    """A Parquet file that begins with its first rows, written in row groups."""

    def __init__(self, folder: OutputFolder, work: ShardWork, name: str) -> None:
        self._folder, self._name, self._temporary = folder, name, work.temporary(name)
        self._sink: Sink | None = None
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
        if self._writer is None or self._sink is None:
            return None
        self._writer.close()
        self._sink.close()
        return WrittenFile(self._name, self._temporary, self._rows, self._sink.bytes, self._sink.sha256)

    def discard(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._folder.remove([self._temporary])

    def _flush(self) -> None:
        if not self._held:
            return
        if self._writer is None:
            self._sink = self._folder.create(self._temporary)
            self._writer = parquet_writer(self._sink, self._held[0].schema)
        self._writer.write_table(pa.Table.from_batches(self._held))
        self._rows += self._held_rows
        self._held, self._held_rows, self._held_bytes = [], 0, 0


class _Lines:
    """A file of JSON lines that begins with its first line."""

    def __init__(self, folder: OutputFolder, work: ShardWork, name: str) -> None:
        self._folder, self._name, self._temporary = folder, name, work.temporary(name)
        self._sink: Sink | None = None
        self._rows = 0

    def add(self, line: Any) -> None:
        if self._sink is None:
            self._sink = self._folder.create(self._temporary)
        self._sink.write(json.dumps(jsonable(line), ensure_ascii=False).encode() + b"\n")
        self._rows += 1

    def close(self) -> WrittenFile | None:
        if self._sink is None:
            return None
        self._sink.close()
        return WrittenFile(self._name, self._temporary, self._rows, self._sink.bytes, self._sink.sha256)

    def discard(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._folder.remove([self._temporary])


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """As all parts are written: numbers plainly, for a dictionary of floats costs more than it saves."""
    words = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_binary(field.type)]
    return pq.ParquetWriter(sink, schema, compression=_CODECS, use_dictionary=words or False)


def _tolerant(
    values: Sequence[Any], kind: pa.DataType, ok: NDArray[np.int64], errors: dict[int, Exception], what: str
) -> pa.Array:
    """Values as a column; one that does not fit becomes its row's error, and null here."""
    try:
        return from_values(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, OverflowError):
        return pa.concat_arrays([_single(v, kind, int(i), errors, what) for v, i in zip(values, ok, strict=True)])


def _single(value: Any, kind: pa.DataType, i: int, errors: dict[int, Exception], what: str) -> pa.Array:
    try:
        return from_values([value], kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, ValueError, OverflowError):
        errors.setdefault(i, InvalidInput(f"{what}: expected {kind}, got {shown(value)}"))
        return pa.nulls(1, kind)


def _body(url: str, row: dict[str, Any], model: str) -> dict[str, Any]:
    """A response's body: OpenAI's form for embeddings, and the outputs by name for all else."""
    values = list(row.values())
    if url.endswith("/embeddings") and len(values) == 1 and isinstance(values[0], list):
        vector = {"object": "embedding", "index": 0, "embedding": values[0]}
        return {"object": "list", "data": [vector], "model": model}
    return {"output": row[LONE] if [*row] == [LONE] else row, "model": model}


def _text(error: Exception) -> str:
    return (str(error) or repr(error)).encode("utf-8", "backslashreplace").decode()
