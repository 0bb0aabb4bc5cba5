"""A batch in this process, without ledger and queue: files through a function, in shards, into parts."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import PARQUET, BatchRequest, InputFile, Position
from forebay.contract.requests.shards import ShardWork
from forebay.contract.signature import Signature
from forebay.datasets.formats.source import Size, get_source, get_text_source
from forebay.datasets.planning.checking import check_file
from forebay.datasets.planning.schema import kept_columns, part_schema
from forebay.datasets.planning.shards import shards
from forebay.datasets.reading.inputs import convert
from forebay.datasets.reading.rows import columns_read, read_pieces
from forebay.datasets.reading.shard_range import ShardRange
from forebay.datasets.writing.folder import OutputFolder
from forebay.datasets.writing.outputs import PartSchema
from forebay.datasets.writing.parts import Part
from forebay.worker.execution.ceilings import MemoryCeilings
from forebay.worker.execution.child_metrics import ChildMetrics
from forebay.worker.execution.chunks import run_chunk
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.model_cache import LoadedModel


class Rowwise:
    """Runs rows one by one."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def predict(self, rows: Sequence[Any]) -> list[Any]:
        return [self._function(row) for row in rows]


class NoCeilings:
    """Takes the place of the ledger's ceilings."""

    def get(self, name: str, version: int) -> None:
        return None

    def lower(self, name: str, version: int, rows: int) -> None: ...


def files_of(*paths: Path) -> tuple[InputFile, ...]:
    return tuple(InputFile(str(path), path.stat().st_size) for path in paths)


def write_tables(folder: Path, *tables: pa.Table) -> tuple[InputFile, ...]:
    """A Parquet file for each table."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}.parquet" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(table, path)
    return files_of(*paths)


def run_batch(
    folder: Path,
    files: Sequence[InputFile],
    model: Any,
    columns: Mapping[str, tuple[str, ...]],
    *,
    keep: Sequence[str] = (),
    format: str = PARQUET,
    signature: Signature = Signature(),  # noqa: B008 - frozen
    shard_rows: int = 1 << 30,
    batch_rows: int = 8,
    **more: Any,
) -> Path:
    """Where the parts lie. `model` is a model, or a function of one row."""
    request = BatchRequest(tuple(files), str(folder), format, columns, tuple(keep), **more)
    agreed = [part_schema(request, signature, nullcontext)]
    known = len(agreed[0])
    runs = model if hasattr(model, "predict") or hasattr(model, "predict_columns") else Rowwise(model)
    store: Any = NoCeilings()
    spec = ModelVersion("m", 1, "python", "", "none", 0, signature, max_batch_size=batch_rows)
    engine, loaded = Engine(MemoryCeilings(store), ChildMetrics()), LoadedModel(spec, runs, 0, True)

    def agree(schema: pa.Schema) -> pa.Schema:
        if len(agreed[0]) == known:
            agreed[0] = schema
        return agreed[0]

    output = OutputFolder(str(folder))
    for shard, _ in planned(request, signature, shard_rows):
        work = ShardWork("s", "b", 1, shard.part, shard.pieces, shard.rows, shard.bytes, 30)
        part = Part(
            output, request, work, PartSchema(agreed[0], len(kept_columns(request)), signature.outputs, agree), "m/1"
        )
        for rows in read_pieces(request, ShardRange(shard.pieces)):
            inputs = convert(rows, request.columns, signature, format)
            part.add(rows, run_chunk(engine, loaded, inputs, lambda *_: None))
        for file in part.close(1.0).files:
            output.place(file.temporary, file.name)
    return folder


def planned(request: BatchRequest, signature: Signature, shard_rows: int) -> Any:
    """The shards of a batch, as workers plan them."""
    source, text, size = get_source(request.format), get_text_source(request.format), Size(shard_rows, 1 << 60)

    def layout(number: int, first: int) -> Any:
        check_file(request, signature, request.files[number])
        if text is not None:
            return text.counted(request.files[number], first, size)
        return source.layout(request.files[number], columns_read(request), request.row_bytes)

    return shards(layout, len(request.files), Position(), size)
