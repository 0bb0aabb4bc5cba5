"""A shard of a batch as those who run it, write it and record it see it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from forebay.contract.requests.batch import Piece
from forebay.contract.row_errors import ErrorKind


@dataclass(frozen=True, slots=True)
class ShardWork:
    """A shard that this worker runs: what it covers, and the attempt that fences every write."""

    id: str
    batch: str
    attempt: int
    part: str
    pieces: tuple[Piece, ...]
    rows: int
    bytes: int
    lease_s: float

    def temporary(self, name: str) -> str:
        """Where this attempt writes what becomes the file `name`."""
        return f"_temporary/{self.batch}/{name.replace('/', '-')}.{self.id}.{self.attempt}"


def writer_of(temporary: str) -> tuple[str, int]:
    """The shard and the attempt that write, or wrote, this temporary file; ("", 0) when it is none."""
    *_, id, attempt = ["", *temporary.split(".")]
    return (id, int(attempt)) if attempt.isdecimal() else ("", 0)


class WrittenFile(Struct, frozen=True):
    """A finished file of a batch: its name, where it was written first, and what is in it."""

    name: str
    temporary: str
    rows: int
    bytes: int
    sha256: str


class ShardOutcome(Struct, frozen=True):
    """How a shard ended: rows with results, rows with errors, the files that hold them (None: no such rows), why the latter
    failed, and the tokens of prompts and of what a language model made of them.
    """  # fmt: skip

    rows: int
    failed: int
    seconds: float
    part: WrittenFile | None = None
    errors: WrittenFile | None = None
    kinds: tuple[ErrorKind, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        return tuple(file for file in (self.part, self.errors) if file is not None)
