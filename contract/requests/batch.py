"""Batch jobs as both ends see them: what was asked for, what a shard covers, and how far a batch is.

A batch reads a data set and writes one; its shards are jobs of kind `shard`. Positions in a file are counted in its unit:
rows where a format knows its rows beforehand, bytes in text. Knows nothing of Arrow, SQL or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobState

PARQUET, ARROW, NPY, NPZ, CSV, JSONL, OPENAI, IMAGES = (
    "parquet", "arrow", "npy", "npz", "csv", "jsonl", "openai", "images",
)  # fmt: skip
FORMATS = (PARQUET, ARROW, NPY, NPZ, CSV, JSONL, OPENAI, IMAGES)
TO_THE_END = -1


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the input: a local path or an fsspec URL, and its size in bytes when the batch was submitted."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What a batch job is to do, as its payload holds it.

    `columns` names for each input of the model the column, or the numeric columns, that make it. `keep` are columns copied
    to the output, `keep_types` their types as text where the format does not tell. `row_bytes` is about what a row takes up
    in a text file. `error_threshold` is a number of rows (an int) or a share of them (a float); None: all of them.
    """

    files: tuple[InputFile, ...]
    output: str
    format: str
    columns: Mapping[str, tuple[str, ...]]
    keep: tuple[str, ...] = ()
    keep_types: Mapping[str, str] = field(default_factory=dict)
    row_bytes: int = 0
    shard_rows: int | None = None
    error_threshold: int | float | None = None

    def dump(self) -> bytes:
        """The request as bytes."""
        return json.dumps(asdict(self) | {"files": [[f.path, f.size] for f in self.files]}).encode()

    @classmethod
    def load(cls, data: bytes) -> BatchRequest:
        """From those bytes; InvalidInput when they are no request."""
        try:
            given = json.loads(data)
            given["files"] = tuple(InputFile(path, size) for path, size in given["files"])
            given["columns"] = {name: tuple(columns) for name, columns in given["columns"].items()}
            return cls(**given | {"keep": tuple(given["keep"])})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInput(f"these bytes are no batch request: {type(error).__name__}") from error

    def fingerprint(self, model: str) -> str:
        """Equal for requests that ask for the same: what a resume is held against. File sizes count, guesses do not."""
        about = asdict(self) | {"row_bytes": 0, "keep_types": {}, "model": model}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """The size of the input."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of one input file, from `first` up to but without `last` (TO_THE_END: to its end), in the file's unit."""

    file: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard covers: pieces in the order of the input, their rows (a guess in text), and about their bytes."""

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


def dump_pieces(pieces: Sequence[Piece]) -> str:
    """Pieces as the ledger keeps them."""
    return json.dumps([[p.file, p.first, p.last] for p in pieces])


def load_pieces(text: str) -> tuple[Piece, ...]:
    """The pieces again."""
    return tuple(Piece(*numbers) for numbers in json.loads(text))


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """How far a batch is. `total` rows are those planned so far, all of them once `planned`; in text they are a guess until
    the batch has ended. `share` is the part of the input's bytes that is done; `rows_per_s` and `eta_s` are None until
    something is measured.
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
        """The rows in all, completed and failed, as hosted batch APIs tell them."""
        return {"total": self.total, "completed": self.completed, "failed": self.failed}
