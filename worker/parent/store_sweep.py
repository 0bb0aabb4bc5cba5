"""The thread that removes what nothing refers to any more: blobs, this machine's copies of artifacts, and what batches that ended
badly have left in their output folders.

Apart from the sweeper's, which must not wait for a slow store.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable

import structlog

from forebay.contract.errors import ForebayError, LedgerUnavailable, StoreUnavailable
from forebay.contract.places import ARTIFACTS
from forebay.datasets.writing.folder import OutputFolder
from forebay.storage.batches.queries import BatchQueries
from forebay.storage.batches.records import EndedBatch
from forebay.storage.blobs.store import BlobStore
from forebay.storage.blobs.sweep import BlobSweep
from forebay.worker.parent.context import ParentContext
from forebay.worker.parent.drift_sweep import DriftSweep

log = structlog.get_logger()

EVERY_S, SECONDS = 60.0, 5.0  # between two passes, and how long one may take
MOST_BATCHES = 1000  # that ended badly, the newest, are looked after
COPY_GRACE_S = 3600.0  # a copy that nothing refers to is kept so long, and what a child that died left of one
JOIN_S = 10.0


class StoreSweepLoop:
    """`start` it once; `stop` waits a moment for a pass that is under way."""

    def __init__(self, context: ParentContext, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._clock = context, clock
        self._copies = context.settings.home / ARTIFACTS
        settings = context.settings
        self._sweep = BlobSweep(context.store.ledger, BlobStore(settings.blobs), settings.blob_grace_s)
        self._idle: dict[tuple[str, int], float] = {}  # copies that nothing refers to, and since when
        self._batches = BatchQueries(context.store.ledger)
        self._drift = DriftSweep(context.store.ledger, settings)
        self._cleared: set[EndedBatch] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="store sweep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=JOIN_S)

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            self._context.tolerate("sweep_blobs", self.sweep_blobs)
            self._context.tolerate("sweep_copies", self.sweep_copies)
            self._context.tolerate("sweep_outputs", self.sweep_outputs)
            self._context.tolerate("sweep_drift", self._drift.sweep)

    def sweep_blobs(self) -> None:
        freed = self._sweep.sweep(SECONDS)
        self._context.metrics.count("blobs_removed_total", by=freed.blobs)
        self._context.metrics.count("blob_bytes_removed_total", by=freed.blob_bytes)
        if freed.blobs:
            log.info("blobs_removed", blobs=freed.blobs, bytes=freed.blob_bytes)

    def sweep_copies(self) -> None:
        """Those that have been idle since an earlier look, as they are now. Other workers of this home may do the same."""
        if not self._copies.is_dir():
            return
        found = {path: path.name.strip(".").partition(".")[0] for path in self._copies.iterdir()}
        used = self._sweep.used([f"sha256:{digest}" for digest in found.values()])
        now, idle = self._clock(), dict[tuple[str, int], float]()
        for path, digest in found.items():
            if f"sha256:{digest}" in used and not path.name.startswith("."):
                continue
            try:
                key = path.name, path.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            idle[key] = self._idle.get(key, now)
            if now - idle[key] >= COPY_GRACE_S:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        self._idle = idle

    def sweep_outputs(self) -> None:
        """Each batch that has ended badly is seen to once. What its retry needs stays: parts of shards that have succeeded."""
        until, ended = time.monotonic() + SECONDS, self._batches.ended_badly(MOST_BATCHES)
        self._cleared.intersection_update(ended)
        for batch in ended:
            if batch in self._cleared:
                continue
            try:
                folder = OutputFolder(batch.output)
                if names := folder.temporary(batch.id):
                    folder.remove_temporary(batch.id, self._batches.abandoned(names))
            except StoreUnavailable:  # next time
                continue
            except LedgerUnavailable:
                raise
            except (ForebayError, OSError) as error:
                log.warning("output_not_cleared", batch=batch.id, output=batch.output, error=str(error))
            self._cleared.add(batch)
            if time.monotonic() > until:
                return
