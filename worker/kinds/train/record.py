"""What a run leaves in the ledger while it goes on: what was found in the data, the curve, checkpoints.

Points are written about once a second, checkpoints by a thread of their own: blob first, then its row, then the local file and
the blobs that nobody needs any more go. When ledger or blob store are away the trainer goes on, and what waits is written later.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import structlog

from forebay.contract.requests.training import TRAIN, DataSummary, Point, Saved, TrainRequest
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.records import ClaimedJob
from forebay.storage.training.store import TrainingStore
from forebay.worker.execution.backoff import may_pass

log = structlog.get_logger()

WRITE_EVERY_S, LONGEST_S = 1.0, 30.0  # between two writes of points: longer in a long run, whose curve has thousands
CURVE_POINTS = 2000
RETRY_S = 5.0  # after ledger or blob store were away
TAKEN = "storing.ckpt"
MAX_POINTS = 10_000  # that wait for a ledger that is away


class RunRecorder:
    """Keeps what one attempt tells. Whatever is called after the job has become another's raises LeaseLost."""

    def __init__(
        self, store: TrainingStore, blobs: BlobStore, job: ClaimedJob, request: TrainRequest, folder: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._store, self._blobs, self._job, self._request, self._folder = store, blobs, job, request, folder
        self._clock = clock
        self._began = self._written = clock()
        self._not_before = 0.0  # after a store was away
        self._data: DataSummary | None = None
        self._points: list[Point] = []
        self._waiting: Saved | None = None
        self._saving: tuple[Saved, Future[None]] | None = None
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.data: DataSummary | None = None
        self.saved = 0

    def data_found(self, data: DataSummary) -> None:
        self.data = self._data = data
        self._not_before = 0.0

    def measured(self, point: Point) -> None:
        self._points.append(point)
        del self._points[:-MAX_POINTS]

    def checkpoint_saved(self, saved: Saved) -> None:
        """A checkpoint lies in the trainer's folder; it takes the place of one that still waits."""
        before, self._waiting = self._waiting, saved
        if before is not None:
            self._remove(before)

    def write_due(self) -> None:
        """Write what is due. Called some times a second."""
        self._reap()
        now = self._clock()
        if now < self._not_before:
            return
        if self._waiting is not None and self._saving is None:
            saved, self._waiting = self._waiting, None
            if self._take(saved):
                self._saving = saved, self._saver.submit(self._save, saved)
        every = min(LONGEST_S, max(WRITE_EVERY_S, (now - self._began) / CURVE_POINTS))
        if self._data is not None or now - self._written >= every:
            self._try(self._write)

    def flush(self, seconds: float, *, checkpoints: bool = True) -> None:
        """Write all that waits, for the trainer has ended; checkpoints too, unless nobody needs them any more."""
        until, self._not_before = self._clock() + seconds, 0.0
        if not checkpoints:
            self._waiting = None
        while True:
            self._try(self._write)
            self.write_due()
            if self._saving is None and self._waiting is None and not self._points and self._data is None:
                return
            left = until - self._clock()
            if left <= 0:
                return
            if self._saving is not None:
                wait([self._saving[1]], timeout=left)
            else:  # the blob store was away
                time.sleep(min(0.2, left))

    def close(self) -> None:
        """End the thread; what it is doing is finished first."""
        self._saver.shutdown(wait=True, cancel_futures=True)

    def _write(self) -> None:
        if self._data is not None:
            self._store.set_data(self._job, self._data)
            self._data = None
        points = _thinned(self._points)
        self._store.add_metrics(self._job, points, progress(self._points[-1]) if points else "")
        self._points.clear()
        self._written = self._clock()

    def _reap(self) -> None:
        if self._saving is None or not self._saving[1].done():
            return
        saved, future = self._saving
        self._saving = None
        if not self._try(future.result):
            if self._waiting is None:
                self._waiting = saved
            else:
                self._remove(saved)

    def _take(self, saved: Saved) -> bool:
        """Whether the file is there, under a name of our own: the trainer removes its older ones."""
        taken = self._folder / TAKEN
        taken.unlink(missing_ok=True)
        try:
            taken.hardlink_to(self._folder / saved.path)
        except FileNotFoundError:  # a later one has been told by now, or will be
            return False
        return True

    def _save(self, saved: Saved) -> None:
        path, started = self._folder / TAKEN, time.monotonic()
        size, blob = path.stat().st_size, self._blobs.put_file(path)
        stale = self._store.add_checkpoint(
            self._job, saved.step, saved.epoch, blob, size, self._request.checkpoint_keep
        )
        if not self._blobs.has(blob):  # a run with the same checkpoint has dropped it before this one's row was there
            self._blobs.put_file(path)
        self._remove(saved)
        self.saved += 1
        self._blobs.drop(stale, self._store.queries.used_checkpoints)
        log.info(
            "checkpoint_saved", job=self._job.id, attempt=self._job.attempt, step=saved.step, bytes=size,
            seconds=round(time.monotonic() - started, 3),
        )  # fmt: skip

    def _remove(self, saved: Saved) -> None:
        (self._folder / saved.path).unlink(missing_ok=True)

    def _try(self, action: Callable[[], None]) -> bool:
        """Whether it went through; what may pass is logged and tried again later."""
        try:
            action()
        except Exception as error:
            if not may_pass(error):
                raise
            if not self._not_before:
                log.warning("training_record_delayed", job=self._job.id, error=f"{type(error).__name__}: {error}")
            self._not_before = self._clock() + RETRY_S
            return False
        self._not_before = 0.0
        return True


def _thinned(points: Sequence[Point]) -> list[Point]:
    """All but the points of training that a later one of the same write stands in for."""
    last = max((point.step for point in points if point.split == TRAIN), default=-1)
    return [point for point in points if point.split != TRAIN or point.step == last]


def progress(point: Point) -> str:
    """How far a run is, for people."""
    values = ", ".join(f"{name} {value:.4g}" for name, value in point.values.items() if value is not None)
    pace = f", {point.rows_per_s:,.0f} rows/s" if point.rows_per_s else ""
    left = f", {_duration(point.eta_s)} left" if point.eta_s else ""
    where = f"epoch {point.epoch}" if point.epoch else f"step {point.step:,}"
    return f"{where}: {point.split} {values}{pace}{left}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
