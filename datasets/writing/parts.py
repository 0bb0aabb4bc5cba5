"""Writing a shard's part: results and kept columns side by side, and under `_errors/` the rows that failed.

Files are written under temporary names. They get their own names once the ledger says that the shard is finished.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract import generation
from forebay.contract.generation.openai import answer_row
from forebay.contract.references import shown
from forebay.contract.requests.batch import JSONL, OPENAI, PARQUET, BatchRequest
from forebay.contract.requests.shards import ShardOutcome, ShardWork
from forebay.contract.row_errors import ErrorCounts, ErrorSample
from forebay.contract.values import jsonable
from forebay.datasets.columns import DEFAULT_OUTPUT
from forebay.datasets.formats.jsonl import CUSTOM_ID, URL
from forebay.datasets.formats.source import get_source
from forebay.datasets.reading.rows import Rows
from forebay.datasets.writing.folder import ERRORS, OutputFolder
from forebay.datasets.writing.outputs import ModelOutputs, PartSchema, as_rows, fitted, fitted_column
from forebay.datasets.writing.part_files import WRITERS, Lines, PartFile, Table


class Part:
    """The files of one attempt at a shard. Not thread-safe; `discard` it or `close` it."""

    def __init__(
        self, folder: OutputFolder, request: BatchRequest, work: ShardWork, schema: PartSchema, model: str
    ) -> None:
        self._request = request
        self._locator = get_source(request.format).locator
        ending = JSONL if request.format == OPENAI else request.output_format or PARQUET  # formats are called by them
        writer = Lines if request.format == OPENAI else partial(Table, open_writer=WRITERS[ending])
        self._good = writer(PartFile(folder, work, f"{work.part}.{ending}"))
        self._bad = writer(PartFile(folder, work, f"{ERRORS}/{work.part}.{ending}"))
        self._work = work
        self._schema = schema
        self._model = model
        self._counts = ErrorCounts()
        self._tokens = np.zeros(2, np.int64)

    def add(self, rows: Rows, made: ModelOutputs) -> tuple[int, int]:
        """Write a chunk; the numbers of rows with results and with errors."""
        errors = dict(made.errors)
        self._tokens += made.tokens
        if self._request.format == OPENAI:
            self._add_lines(rows, made, errors)
        else:
            self._add_table(rows, made, errors)
        for i, error in sorted(errors.items()):
            self._counts.add(type(error).__name__, partial(self._sample, rows, i, error))
        return len(made.ok) + len(made.errors) - len(errors), len(errors)

    def close(self, seconds: float) -> ShardOutcome:
        part, errors = self._good.close(), self._bad.close()
        rows, failed = part.rows if part else 0, errors.rows if errors else 0
        return ShardOutcome(rows, failed, seconds, part, errors, self._counts.kinds(), *self._tokens.tolist())

    def discard(self) -> None:
        self._good.file.discard()
        self._bad.file.discard()

    def _sample(self, rows: Rows, i: int, error: Exception) -> ErrorSample:
        """A failed row as people look for it: by its custom_id, or by its position and file."""
        name = rows.columns[CUSTOM_ID][i] if self._request.format == OPENAI else None
        where = f"custom_id {name}" if isinstance(name, str) else f"{self._locator} {rows.where[i]}"
        files = self._request.files
        return ErrorSample(f"{where} of {files[rows.files[i]].path}" if len(files) > 1 else where, _text(error))

    def _add_table(self, rows: Rows, made: ModelOutputs, errors: dict[int, Exception]) -> None:
        if len(made.ok):
            self._schema.settle(made.outputs)
            kept = [self._kept(field, rows, made.ok, errors) for field in self._schema.kept]
            columns = [*kept, *self._schema.columns(made.outputs, made.ok, errors)]
            batch = pa.RecordBatch.from_arrays(columns, schema=self._schema.schema)
            if len(errors) > len(made.errors):
                batch = batch.filter(pa.array(~np.isin(made.ok, list(errors))))
            if len(batch):
                self._good.add(batch)
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

    def _kept(self, field: pa.Field, rows: Rows, ok: NDArray[np.int64], errors: dict[int, Exception]) -> pa.Array:
        """A kept column, or of those that stand for them when none is kept: each row's position and file."""
        if not self._request.keep:
            return self._files(rows, ok) if field.name == "file" else pa.array(rows.where[ok])
        column, what = rows.columns[field.name], f"column {shown(field.name)}"
        if isinstance(column, pa.Array):
            array = column if len(ok) == len(column) else column.take(pa.array(ok))
            return fitted_column(array, field.type, ok, errors, what)
        values = [None if isinstance(column[i], Exception) else column[i] for i in ok]
        return fitted(values, field.type, ok, errors, what)

    def _files(self, rows: Rows, ok: Any) -> pa.Array:
        files = rows.files[ok]
        used, indices = np.unique(files, return_inverse=True)
        paths = pa.array([self._request.files[i].path for i in used], pa.string())
        return paths.take(pa.array(indices))

    def _add_lines(self, rows: Rows, made: ModelOutputs, errors: dict[int, Exception]) -> None:
        names, urls = rows.columns[CUSTOM_ID], rows.columns[URL]
        for i, row in zip(made.ok, as_rows(made.outputs, self._schema), strict=True):
            response = {
                "status_code": 200,
                "request_id": self._work.batch,
                "body": _body(str(urls[i]), row, self._model, self._work.batch),
            }
            self._good.add(self._line(rows, int(i), names[i], {"response": response, "error": None}))
        for i, error in sorted(errors.items()):
            told = {"code": type(error).__name__, "message": _text(error)}
            self._bad.add(self._line(rows, i, names[i], {"response": None, "error": told}))

    def _line(self, rows: Rows, i: int, custom_id: Any, rest: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"{self._work.batch}-{rows.files[i]}-{rows.where[i]}", "custom_id": custom_id} | rest


def _body(url: str, row: Mapping[str, Any], model: str, id: str) -> dict[str, Any]:
    """A response's body: embeddings and generated texts as OpenAI returns them, any other outputs by name."""
    row = jsonable(dict(row))
    values = list(row.values())
    if [*row] == [*generation.OUTPUTS] and url.endswith("/completions"):
        return answer_row(url, model, row["completion"], id)
    if url.endswith("/embeddings") and len(values) == 1 and isinstance(values[0], list):
        vector = {"object": "embedding", "index": 0, "embedding": values[0]}
        return {"object": "list", "data": [vector], "model": model}
    return {"output": row[DEFAULT_OUTPUT] if [*row] == [DEFAULT_OUTPUT] else row, "model": model}


def _text(error: Exception) -> str:
    return (str(error) or repr(error)).encode("utf-8", "backslashreplace").decode()
