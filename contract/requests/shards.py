"""A shard of a batch as those who run it, write it and record it see it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

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
        return f"_temporary/{name.replace('/', '-')}.{self.id}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A finished file of a batch: its name, where it was written first, and what is in it."""

    name: str
    temporary: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ShardOutcome:
    """How a shard ended: rows with results, rows with errors, the files that hold them (None: no such rows), and why the
    latter failed.
    """  # fmt: skip

    rows: int
    failed: int
    seconds: float
    part: WrittenFile | None = None
    errors: WrittenFile | None = None
    kinds: tuple[ErrorKind, ...] = ()

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        """The files there are."""
        return tuple(file for file in (self.part, self.errors) if file is not None)

    def dump(self) -> str:
        """As the ledger keeps it."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> ShardOutcome:
        """The outcome again."""
        given = json.loads(text)
        files = {name: WrittenFile(**given[name]) if given[name] else None for name in ("part", "errors")}
        return cls(**given | files | {"kinds": tuple(map(ErrorKind.load, given.get("kinds", ())))})
