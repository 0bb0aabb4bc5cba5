"""What a format of input files is, and which format a name or a file's ending means. Each is in a module beside this."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.references import shown
from forebay.contract.requests.batch import (
    ARROW,
    AUDIO,
    CSV,
    FORMATS,
    IMAGES,
    JSONL,
    MEDIA,
    NPY,
    NPZ,
    OPENAI,
    PARQUET,
    InputFile,
)
from forebay.datasets.columns import Column
from forebay.datasets.decoding import SUFFIXES as MEDIA_SUFFIXES
from forebay.datasets.formats.files import is_store_error

CHUNK_BYTES, CHUNK_ROWS = 8 << 20, 16_384  # about what a reader yields at once, at most
ISOLATED = (PARQUET, ARROW)  # pyarrow aborts on some damaged files
ANY_CUTS = 1 << 30  # for a block that may be cut anywhere

SUFFIXES: Mapping[str, tuple[str, ...]] = {
    PARQUET: (".parquet", ".pq"),
    ARROW: (".arrow", ".feather", ".ipc"),
    NPY: (".npy",),
    NPZ: (".npz",),
    CSV: (".csv", ".csv.gz"),
    JSONL: (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    OPENAI: (".jsonl", ".ndjson"),
    **{name: MEDIA_SUFFIXES[kind] for name, kind in MEDIA.items()},
}
_MODULES = {
    PARQUET: "parquet:Parquet",
    ARROW: "arrow:Arrow",
    NPY: "arrays:Npy",
    NPZ: "arrays:Npz",
    CSV: "csv:Csv",
    JSONL: "jsonl:JsonLines",
    OPENAI: "jsonl:OpenAI",
    IMAGES: "media:Images",
    AUDIO: "media:Audio",
}


@dataclass(slots=True)
class Chunk:
    """Some rows of a file: their columns, their positions `where`, and the errors of those that cannot be read, by index.

    A row's position is its number in the file, or the byte at which its line begins: see the source's `locator`.
    """

    columns: Mapping[str, Column]
    where: NDArray[np.int64]
    bad: dict[int, Exception] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.where)

    def part(self, start: int, stop: int) -> Chunk:
        if start == 0 and stop >= len(self):
            return self
        bad = {i - start: error for i, error in self.bad.items() if start <= i < stop}
        columns = {name: column[start:stop] for name, column in self.columns.items()}
        return Chunk(columns, self.where[start:stop], bad)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a file's beginning or footer tells: its columns with their types (None: only the values tell), whether it is
    empty, and about how many bytes a row takes up.
    """  # fmt: skip

    types: Mapping[str, pa.DataType | None]
    empty: bool
    row_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a file that can be read on its own: units from `first` up to `last`, with its rows and bytes.

    It may be cut into up to `cuts` shards. A block that ends TO_THE_END is the file's only one, is not cut, and its rows are a
    guess. Of a text file they are known only where they were `counted`.
    """

    first: int
    last: int
    rows: int
    bytes: int
    cuts: int = 1
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Size:
    """What a shard holds at most."""

    rows: int
    bytes: int


class Source(Protocol):
    """Reads files of one format. Methods raise InvalidInput, naming the file, for one of another format."""

    locator: str  # "row" or "offset"

    def sample(self, file: InputFile) -> Sample:
        """What the file holds; reads only its footer or its beginning where the format allows it."""

    def layout(self, file: InputFile, columns: Sequence[str], row_bytes: int) -> Sequence[Block]:
        """The file's blocks in order, sized by the columns that will be read; of compressed text the beginning is read."""

    def read(self, file: InputFile, first: int, last: int, columns: Sequence[str]) -> Iterator[Chunk]:
        """The rows of a range of units, a chunk at a time."""


class TextSource(Source, Protocol):
    """A source whose rows are found only by reading: its units are bytes, and ranges begin and end where records do."""

    def counted(self, file: InputFile, first: int, size: Size) -> Iterator[Block]:
        """Blocks of counted rows from byte `first` on, each a shard at most; of a compressed file one, counted if small."""

    def starts(self, file: InputFile, first: int, last: int) -> Iterator[NDArray[np.int64]]:
        """Where the rows of a range begin, some mebibytes of them at a time."""


@cache
def get_source(format: str) -> Source:
    """The format's source; one whose decoder can end a process asks another process, but for the rows themselves."""
    if format in ISOLATED:
        isolated = importlib.import_module("forebay.datasets.formats.isolated")
        return cast(Source, isolated.Isolated(format))
    return own_source(format)


@cache
def own_source(format: str) -> Source:
    """The source that does everything in this process."""
    module, _, name = _MODULES[format].partition(":")
    return cast(Source, getattr(importlib.import_module(f"forebay.datasets.formats.{module}"), name)())


def get_text_source(format: str) -> TextSource | None:
    """The source of a text format; None for a format that knows its rows beforehand."""
    source = get_source(format)
    return cast(TextSource, source) if source.locator == "offset" else None


def check_format(format: str | None) -> str | None:
    """`format` itself; InvalidInput, listing the formats, when it is not one."""
    if format is not None and format not in FORMATS:
        raise InvalidInput(f"format {shown(format)} is not one of {', '.join(FORMATS)}")
    return format


def guess_format(path: str) -> str:
    """The format that a path's ending stands for; InvalidInput when it stands for none."""
    for format, suffixes in SUFFIXES.items():
        if path.lower().endswith(suffixes):
            return format
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise InvalidInput(f"{shown(path)}: its ending is not one of {known}; name the format")


def check_columns(file: InputFile, sample: Sample, wanted: Sequence[str]) -> None:
    """InvalidInput, naming the columns there are, when one of `wanted` is missing."""
    missing = [name for name in wanted if name not in sample.types]
    if missing:
        there = ", ".join(map(shown, sample.types))
        raise InvalidInput(f"{shown(file.path)}: there is no column {shown(missing[0])}; there are {there:.500}")


@contextmanager
def decoding(path: str, what: str) -> Iterator[None]:
    """Turns whatever a decoder raises for a damaged file into InvalidInput. Errors of a file system, which have a number, and
    of a store pass.
    """  # fmt: skip
    try:
        yield
    except (ForebayError, MemoryError):
        raise
    except Exception as error:
        if is_store_error(error, path):
            raise
        raise unreadable(path, what, error) from error


def unreadable(path: str, what: str, error: Exception) -> InvalidInput:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return InvalidInput(f"{shown(path)} cannot be read as {what}: {shown(reason)}")
