"""Sketches what this child serves of versions that have a reference, and hands the counts to its parent with each pool task.

It takes SHARE of the child's processor time at most: beyond the first rows of an hour, batches are left out while more than that
has been spent. So a small model that is asked for a great many rows is sampled, and all of what is rarely asked for is seen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from forebay.contract.drift.sketch import Served, Side, Sketcher, Values
from forebay.contract.errors import LedgerUnavailable
from forebay.contract.model import ModelVersion
from forebay.storage.models.drift import DriftStore

log = structlog.get_logger()

SHARE = 0.004  # of the child's processor time
ALWAYS = 1000  # rows of a version in an hour, whatever that takes
AT_ONCE = 2048  # rows of a batch, at most, evenly
REPORT_S = 100e-6  # of processor time: what it takes to hand counts to the parent, and to add them up there
LOOK_S = 60.0  # between two looks whether a version has a reference, or another one

Key = tuple[str, int]


class DriftWatch:
    """The counts of one child since they were last taken. Never raises: what cannot be sketched is no job's fault."""

    def __init__(self, store: DriftStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._known: dict[Key, tuple[float, int | None, Sketcher | None]] = {}  # when looked at, revision
        self._served: dict[tuple[Key, int, int], Served] = {}  # by revision and hour too
        self._seen: dict[Key, tuple[int, int]] = {}  # the hour, and how many rows of it
        self._spent, self._failed = 0.0, set[Key]()
        self._lock = threading.Lock()

    def due(self, spec: ModelVersion) -> bool:
        """Whether a batch of this version is to be sketched: it has a reference, and not too much time has been spent."""
        key = (spec.name, spec.version)
        with self._lock:
            known = self._known.get(key)
            if known is None or self._clock() - known[0] >= LOOK_S:
                known = self._look(spec, known)
            if known[2] is None or key in self._failed:
                return False
            if self._spent < SHARE * time.process_time():
                return True
            hour, rows = self._seen.get(key, (0, 0))
            with suppress(LedgerUnavailable):  # its clock
                return rows < ALWAYS or hour != self._store.now_hour()
            return False

    def rows(self, spec: ModelVersion, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        """Rows that were run: each input as its signature has it, and what was made of it; None of one that failed."""
        self._count(spec, lambda: (_given(_few(inputs)), _made(spec, _few(outputs))))

    def columns(self, spec: ModelVersion, inputs: Values, outputs: Any) -> None:
        """The same of a chunk of a data set: by input, and by output or a list of rows."""

        def few() -> tuple[Values, Values]:
            made = {name: _few(values) for name, values in outputs.items()} if isinstance(outputs, Mapping) else None
            return {name: _few(values) for name, values in inputs.items()}, _made(
                spec, _few(outputs)
            ) if made is None else made

        self._count(spec, few)

    def take(self) -> tuple[Served, ...]:
        """What was counted since this was last called."""
        with self._lock:
            served, self._served = tuple(self._served.values()), {}
            self._spent += REPORT_S * len(served)
        return served

    def _count(self, spec: ModelVersion, few: Callable[[], tuple[Values, Values]]) -> None:
        key = (spec.name, spec.version)
        with self._lock, self._timed():
            _, revision, sketcher = self._known.get(key, (0.0, None, None))
            if sketcher is None or revision is None:
                return
            try:
                hour, counts, (inputs, outputs) = self._store.now_hour(), sketcher.zeros(), few()
                sides: tuple[tuple[Side, Values], ...] = (("input", inputs), ("output", outputs))
                for side, values in sides:
                    sketcher.count(side, {name: column for name, column in values.items() if len(column)}, counts)
            except LedgerUnavailable:  # its clock: of which hour these rows are, nobody knows
                return
            except Exception:
                log.exception("drift_not_watched", model=spec.ref)
                self._failed.add(key)
                return
            rows = max(map(len, [*inputs.values(), *outputs.values()]), default=0)
            served, before = Served(*key, revision, hour, rows, counts), self._served.get((key, revision, hour))
            self._served[key, revision, hour] = served if before is None else before + served
            since = self._seen.get(key, (hour, 0))
            self._seen[key] = (hour, rows + (since[1] if since[0] == hour else 0))

    def _look(self, spec: ModelVersion, known: tuple[float, int | None, Sketcher | None] | None) -> Any:
        now, (_, revision, sketcher) = self._clock(), known or (0.0, None, None)
        try:
            newest = self._store.revision(spec.name, spec.version)
            if newest != revision:
                found = None if newest is None else self._store.reference(spec.name, spec.version)
                revision, sketcher = (None, None) if found is None else (found[0], Sketcher(found[1], spec.signature))
                self._failed.discard((spec.name, spec.version))
        except LedgerUnavailable:  # the work itself needs no ledger
            now -= LOOK_S  # the next batch asks again: else nothing of a minute would be counted
        except Exception:
            log.exception("drift_not_watched", model=spec.ref)
            revision, sketcher = None, None
        self._known[spec.name, spec.version] = (now, revision, sketcher)
        return self._known[spec.name, spec.version]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self._spent += time.thread_time() - began


def _few(values: Any) -> Any:
    """Of many rows AT_ONCE at most, evenly."""
    return values[:: max(1, -(-len(values) // AT_ONCE))]


def _given(rows: Sequence[Any]) -> Values:
    rows = [row for row in rows if isinstance(row, Mapping)]
    return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}


def _made(spec: ModelVersion, rows: Sequence[Any]) -> Values:
    rows, fields = [row for row in rows if row is not None], spec.signature.outputs or ()
    if len(fields) == 1:
        return {fields[0].name: rows}
    return {field.name: [row[field.name] for row in rows] for field in fields}
