"""How many rows of a model version a batch may have here: what was registered, or less where memory has run out before.

A ceiling that one worker finds is written to the ledger and holds for every worker with the same kind of device. Now and then
one of them tries twice as many, so that a ceiling found on a crowded day does not last for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.model import ModelVersion
from forebay.storage.models.ceilings import CeilingStore

log = structlog.get_logger()

LOOK_AGAIN_S = 60.0
TRY_MORE_AFTER_S = 3600.0


class MemoryCeilings:
    """The batch sizes of one child process; `times` as many for work that takes several batches through a model together."""

    def __init__(self, ceilings: CeilingStore, clock: Callable[[], float] = time.monotonic, times: int = 1) -> None:
        self._ceilings, self._times = ceilings, times
        self._clock = clock
        self._known: dict[tuple[str, int], tuple[int, float]] = {}  # rows, and until when that holds
        self._trying: set[tuple[str, int]] = set()

    @property
    def device(self) -> str:
        """The kind of device that they are of, such as `cpu` or `NVIDIA H200`."""
        return self._ceilings.device

    def apart(self, work: str, times: int = 1) -> MemoryCeilings:
        """Those of another work with the same models, which takes other room."""
        return MemoryCeilings(self._ceilings.apart(work), self._clock, times)

    def rows(self, spec: ModelVersion) -> int:
        key = (spec.name, spec.version)
        rows, until = self._known.get(key, (0, 0.0))
        if self._clock() >= until:
            rows = self._look_or_keep(spec, rows)
            self._known[key] = (rows, self._clock() + LOOK_AGAIN_S)
        return rows

    def too_large(self, spec: ModelVersion, rows: int) -> None:
        """So many rows did not fit; from now on at most half as many."""
        key, half = (spec.name, spec.version), max(1, rows // 2)
        if half < self._known.get(key, (half + 1, 0.0))[0]:
            log.warning("out_of_memory", model=spec.ref, rows=rows, ceiling=half)
            self._trying.discard(key)
            self._known[key] = (half, self._clock() + LOOK_AGAIN_S)
            with suppress(LedgerUnavailable):  # whoever tries as many again finds out too
                self._ceilings.lower(spec.name, spec.version, half)

    def fitted(self, spec: ModelVersion, rows: int) -> None:
        """So many rows did fit: the ceiling is lifted when this was the try of more."""
        key = (spec.name, spec.version)
        if key in self._trying and rows == self._known[key][0]:
            self._trying.discard(key)
            with suppress(LedgerUnavailable):
                self._ceilings.raise_to(spec.name, spec.version, rows)
            log.info("ceiling_lifted", model=spec.ref, ceiling=rows)

    def _look_or_keep(self, spec: ModelVersion, known: int) -> int:
        try:
            return self._look(spec)
        except LedgerUnavailable as error:  # must not cost a batch that runs: what is known here will do
            log.warning("ceiling_unknown", model=spec.ref, error=str(error))
            return known or self._times * spec.max_batch_size

    def _look(self, spec: ModelVersion) -> int:
        ceiling = self._ceilings.get(spec.name, spec.version)
        most = self._times * (spec.max_batch_size if ceiling is None else ceiling.max_batch_size)
        if ceiling is None or ceiling.rows is None:
            return most
        rows = min(ceiling.rows, most)
        old = ceiling.age_s > TRY_MORE_AFTER_S and rows < most
        if old and self._ceilings.try_more(spec.name, spec.version, TRY_MORE_AFTER_S):
            self._trying.add((spec.name, spec.version))
            return min(2 * rows, most)
        return rows


def device_kind(device: str) -> str:
    """The name of this kind of device: batch sizes that fit on one fit on the others."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))[:100]
    return "cpu"


def is_out_of_memory(error: object) -> bool:
    """Whether this is an exception that says that the device or the machine had no room; torch is not imported for it."""
    if not isinstance(error, Exception):
        return False
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or "can't allocate memory" in str(error)
