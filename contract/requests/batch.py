"""Batch jobs as both ends see them: what was asked for, what a shard covers, and how far a batch is.

A batch reads a data set and writes one; its shards are jobs of kind `shard`. Positions in a file are counted in its unit:
rows where a format knows its rows beforehand, bytes in text. Knows nothing of Arrow, SQL or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from msgspec import Meta, Struct

from forebay.contract.job import JobState
from forebay.contract.requests.explain import ExplainRequest, explained
from forebay.contract.requests.request import Request
from forebay.contract.signature import Signature

PARQUET, ARROW, NPY, NPZ, CSV, JSONL, OPENAI, IMAGES, AUDIO = (
    "parquet", "arrow", "npy", "npz", "csv", "jsonl", "openai", "images", "audio",
)  # fmt: skip
FORMATS = (PARQUET, ARROW, NPY, NPZ, CSV, JSONL, OPENAI, IMAGES, AUDIO)
MEDIA = {IMAGES: "image", AUDIO: "audio"}  # of which a file is a row, and the column of its bytes
TO_THE_END = -1
UNKNOWN = -1


class InputFile(Struct, frozen=True, array_like=True):
    """One file of the input: a local path or an fsspec URL, and its size in bytes when the batch was submitted."""

    path: str
    size: int


class BatchRequest(Request, frozen=True):
    """What a batch job is to do, as its payload holds it.

    `columns` names for each input of the model the column, or the numeric columns, that make it. `keep` are columns copied
    to the output, `keep_types` their types as text where the format does not tell. `row_bytes` is about what a row takes up
    in a text file. The batch fails when more than `max_errors` rows fail, or more than `max_error_share` of them; with neither,
    when all do. With `explain` its outputs are explanations of what the model gives.
    """

    ESTIMATES: ClassVar = {"row_bytes": 0, "keep_types": {}}

    files: tuple[InputFile, ...]
    output: str
    format: str
    columns: Mapping[str, tuple[str, ...]]
    keep: tuple[str, ...] = ()
    keep_types: Mapping[str, str] = {}
    row_bytes: int = 0
    output_format: Annotated[
        Literal["parquet", "jsonl", "csv"] | None,
        Meta(description="of the files: parquet, jsonl or csv; none: parquet, or OpenAI's form for a file in that"),
    ] = None
    shard_rows: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="rows in a shard; none: about 5 s of work")
    ] = None
    max_errors: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="fails the batch when more rows fail; none: when all do")
    ] = None
    max_error_share: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="fails the batch when a larger share of the rows fails"),
    ] = None

    explain: ExplainRequest | None = None

    def signature(self, model: Signature) -> Signature:
        """The model's signature, as the rows of this batch are run."""
        return model if self.explain is None else explained(model)

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


class Piece(Struct, frozen=True, array_like=True):
    """A range of one input file, from `first` up to but without `last` (TO_THE_END: to its end), in the file's unit.

    `rows` is how many rows were counted in it, where the unit does not tell; UNKNOWN when nobody has counted.
    """

    file: int
    first: int
    last: int
    rows: int = UNKNOWN

    @property
    def counted(self) -> bool:
        return self.rows != UNKNOWN


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard covers: pieces in the order of the input, their rows (a guess where a piece reaches TO_THE_END), and about
    their bytes.
    """  # fmt: skip

    pieces: tuple[Piece, ...]
    rows: int
    bytes: int

    @property
    def part(self) -> str:
        """The name of its part, without an ending: sorted by name, parts are in the order of the input."""
        return f"part-{self.pieces[0].file:06d}-{self.pieces[0].first:015d}"


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where a batch has been planned: a file, and the first unit in it that no shard covers yet."""

    file: int = 0
    first: int = 0


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is. `total` rows are those planned so far, all of them once `planned`; of large compressed text they are a
    guess until the batch has ended. `share` is the part of the input's bytes that is done; `rows_per_s` and `eta_s` are None
    until something is measured.
    """  # fmt: skip

    total: int
    completed: int
    failed: int
    planned: bool
    shards: Mapping[JobState, int]
    share: float
    rows_per_s: float | None
    eta_s: float | None

    @property
    def request_counts(self) -> dict[str, int]:
        return {"total": self.total, "completed": self.completed, "failed": self.failed}
