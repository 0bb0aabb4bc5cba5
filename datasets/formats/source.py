"""What a format of input is, and which one a name or a file's ending means. The formats themselves stand beside this."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.errors import InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import ARROW, CSV, FORMATS, IMAGES, JSONL, NPY, NPZ, OPENAI, PARQUET, InputFile
from forebay.datasets.planning.shards import Block

CHUNK_BYTES = 8 << 20  # about what a reader hands on at once
CHUNK_ROWS = 16_384

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    PARQUET: (".parquet", ".pq"),
    ARROW: (".arrow", ".feather", ".ipc"),
    NPY: (".npy",),
    NPZ: (".npz",),
    CSV: (".csv", ".csv.gz"),
    JSONL: (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    OPENAI: (".jsonl", ".ndjson"),
    IMAGES: (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
}
_MODULES = {
    PARQUET: "parquet:Parquet",
    ARROW: "arrow:Arrow",
    NPY: "npy:Npy",
    NPZ: "npz:Npz",
    CSV: "csv:Csv",
    JSONL: "jsonl:JsonLines",
    OPENAI: "jsonl:OpenAI",
    IMAGES: "images:Images",
}

Column: TypeAlias = "pa.Array | list[Any]"


@dataclass(slots=True)
class Chunk:
    """Some rows of a file: their columns, as Arrow or as Python's values; where each row stands; which cannot be read.

    `where` is a row's number in its file, or the byte at which its line begins, as the source's `locator` says.
    """

    columns: Mapping[str, Column]
    where: NDArray[np.int64]
    bad: dict[int, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.where)

    def part(self, start: int, stop: int) -> Chunk:
        """Its rows from `start` up to `stop`; itself when these are all."""
        if start == 0 and stop >= len(self):
            return self
        bad = {i - start: error for i, error in self.bad.items() if start <= i < stop}
        columns = {name: column[start:stop] for name, column in self.columns.items()}
        return Chunk(columns, self.where[start:stop], bad)


@dataclass(frozen=True, slots=True)
class Sample:
    """What submit learns of a file: its columns with their types (None: only the values tell), whether it holds rows, and
    about how many bytes a row takes up."""

    types: Mapping[str, pa.DataType | None]
    empty: bool
    row_bytes: int = 0


class Source(Protocol):
    """One format. Methods raise InvalidInput for a file that is none of theirs, naming it."""

    locator: str  # "row" or "offset"

    def sample(self, file: InputFile) -> Sample:
        """What the file holds, from its footer or its first lines."""

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> Sequence[Block]:
        """The file's blocks in order, of the columns that are read; no data is read for it."""

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """The rows of a range, a chunk at a time."""


@cache
def get_source(format: str) -> Source:
    """The source called `format`."""
    module, _, name = _MODULES[format].partition(":")
    return cast(Source, getattr(importlib.import_module(f"forebay.datasets.formats.{module}"), name)())


def check_format(format: str | None) -> str | None:
    """A format's name as it was given; InvalidInput listing them for another."""
    if format is not None and format not in FORMATS:
        raise InvalidInput(f"format {shown(format)} is none of {', '.join(FORMATS)}")
    return format


def guess_format(path: str) -> str:
    """The format that a path's ending means; InvalidInput when it means none."""
    for format, suffixes in SUFFIXES.items():
        if path.lower().endswith(suffixes):
            return format
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise InvalidInput(f"{shown(path)}: its ending is none of {known}; name the format")


def unreadable(path: str, what: str, error: Exception) -> InvalidInput:
    """The error for a file that is not of its format."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InvalidInput(f"{shown(path)} cannot be read as {what}: {shown(reason)}")
