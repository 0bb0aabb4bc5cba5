"""The manifest of a finished batch: what `BatchJob.result()` gives, and what its output folder holds as `_manifest.json`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from msgspec import Struct


class InputRange(Struct, frozen=True):
    """Rows of one input file, from `first` up to but without `last`, counted in the file's unit; -1 is the file's end."""

    file: str
    first: int
    last: int


class OutputFile(Struct, frozen=True):
    """One file that the batch wrote, and the ranges of the input that it was made from."""

    name: str
    rows: int
    bytes: int
    sha256: str
    pieces: tuple[InputRange, ...]


class RowCounts(Struct, frozen=True):
    """The rows of a batch."""

    total: int
    completed: int
    failed: int


class Manifest(Struct, frozen=True):
    """What a batch that has succeeded wrote. `parts` hold the rows with results, `errors` those that failed; `usage` sums the
    tokens of a language model (prompt_tokens, completion_tokens, total_tokens), and is None for any other.
    """  # fmt: skip

    batch: str
    model: str
    output: str
    format: str
    counts: RowCounts
    started_at: datetime | None
    finished_at: datetime | None
    parts: tuple[OutputFile, ...]
    errors: tuple[OutputFile, ...]
    usage: Mapping[str, Any] | None = None
