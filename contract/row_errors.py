"""Why rows of a batch failed: counted by kind, with a few samples of each, and bounded whatever the rows were.

A shard keeps it in its outcome, so that sums over shards tell what is wrong with a batch without a look at its files. Knows no
SQL and no Arrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from forebay.contract.references import plain_text

MAX_KINDS, MAX_SAMPLES = 8, 3
MAX_TYPE_LENGTH, MAX_TEXT_LENGTH = 100, 200  # characters
OTHERS = "(other kinds)"


class ErrorSample(Struct, frozen=True):
    """One row that failed: where it stands in the input, and what was said of it; both are cut to MAX_TEXT_LENGTH."""

    where: str
    message: str


class ErrorKind(Struct, frozen=True):
    """How many rows failed with one type of error, and the first few of them."""

    type: str
    count: int
    samples: tuple[ErrorSample, ...] = ()


class ErrorCounts:
    """Counts errors by kind. After MAX_KINDS of them all further ones count as OTHERS. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._samples: dict[str, list[ErrorSample]] = {}

    def add(self, type: str, sample: Callable[[], ErrorSample]) -> None:
        """One more row; `sample` is asked for only while there are few of its kind."""
        name = self._name(plain_text(type, MAX_TYPE_LENGTH))
        self._counts[name] = self._counts.get(name, 0) + 1
        samples = self._samples.setdefault(name, [])
        if len(samples) < MAX_SAMPLES:
            found = sample()
            samples.append(
                ErrorSample(plain_text(found.where, MAX_TEXT_LENGTH), plain_text(found.message, MAX_TEXT_LENGTH))
            )

    def include(self, kinds: Iterable[ErrorKind]) -> None:
        for kind in kinds:
            name = self._name(kind.type)
            self._counts[name] = self._counts.get(name, 0) + kind.count
            samples = self._samples.setdefault(name, [])
            samples += [sample for sample in kind.samples if sample not in samples][: MAX_SAMPLES - len(samples)]

    def kinds(self) -> tuple[ErrorKind, ...]:
        """What was counted, the most frequent first and OTHERS last."""
        found = [ErrorKind(name, count, tuple(self._samples[name])) for name, count in self._counts.items()]
        return tuple(sorted(found, key=lambda kind: (kind.type == OTHERS, -kind.count, kind.type)))

    def _name(self, type: str) -> str:
        full = len(self._counts.keys() - {OTHERS}) >= MAX_KINDS
        return OTHERS if full and type not in self._counts else type
