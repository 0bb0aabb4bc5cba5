"""Arrow and Feather files, read record batch by record batch. One shard reads a whole file: its footer has no row counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from forebay.contract.requests.batch import TO_THE_END, InputFile
from forebay.datasets.formats.files import open_file
from forebay.datasets.formats.source import CHUNK_ROWS, Block, Chunk, Sample, decoding


class Arrow:
    locator = "row"

    def sample(self, file: InputFile) -> Sample:
        with _opened(file) as batches:
            schema = next(batches)
            rows = next((batch.num_rows for batch in batches if batch.num_rows), 0)
            size = file.size // rows if rows else 0
            return Sample({field.name: field.type for field in schema}, not rows, size)

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> list[Block]:
        del columns
        return [Block(0, TO_THE_END, file.size // max(1, row_bytes), file.size)]

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        at = 0
        with _opened(file) as batches:
            next(batches)
            for batch in batches:
                batch.validate(full=True)  # offsets of a damaged file point anywhere
                stop = batch.num_rows if last == TO_THE_END else min(batch.num_rows, last - at)
                for start in range(max(0, first - at), stop, CHUNK_ROWS):
                    part = batch.slice(start, min(CHUNK_ROWS, stop - start))
                    where = np.arange(at + start, at + start + len(part), dtype=np.int64)
                    yield Chunk({name: part.column(name) for name in columns}, where)
                at += batch.num_rows


@contextmanager
def _opened(file: InputFile) -> Iterator[Iterator[Any]]:
    """The schema, then the record batches."""
    with open_file(file.path) as handle, decoding(file.path, "an Arrow file"):
        yield _batches(handle)


def _batches(handle: Any) -> Iterator[Any]:
    if handle.read(6) == b"ARROW1":
        handle.seek(0)
        reader = pa.ipc.open_file(handle)
        yield reader.schema
        for i in range(reader.num_record_batches):
            yield reader.get_batch(i)
    else:
        handle.seek(0)
        stream = pa.ipc.open_stream(handle)
        yield stream.schema
        yield from stream
