"""Shards of one batch on their way through a child: a thread reads and decodes ahead, the device works, a thread writes behind.

While one shard is on the device the next one of its batch is claimed and read already. What becomes of each is the business of
worker.batches.shards.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import structlog

from forebay.contract.errors import ForebayError
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import BatchRequest
from forebay.contract.requests.shards import ShardWork
from forebay.datasets.formats.source import CHUNK_ROWS
from forebay.datasets.reading.inputs import Inputs, convert
from forebay.datasets.reading.rows import Rows, read_pieces
from forebay.datasets.reading.shard_range import ShardRange
from forebay.datasets.writing.folder import OutputFolder
from forebay.datasets.writing.parts import Part
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.chunks import CHUNK_BATCHES

if TYPE_CHECKING:
    from forebay.worker.kinds.batch.shards import ShardRunner

log = structlog.get_logger()

BEAT_S = 1.0
AHEAD = 1  # chunks decoded ahead, and written behind, beside the one in each thread's hand
LOST, CANCELED, STOPPING = "lost", "canceled", "stopping"  # why a shard's work is given up


class Stopped(Exception):
    """The shard's work is in vain, or this process has to stop."""


@dataclass(slots=True)
class Run:
    """One shard on its way through the child."""

    job: ClaimedJob
    work: ShardWork
    request: BatchRequest
    spec: ModelVersion
    part: Part
    folder: OutputFolder
    shard_range: ShardRange
    done: int = 0
    failed: int = 0
    seen: int = 0
    began: float = 0.0
    error: Exception | None = None
    verdict: Exception | None = None  # the error of its row, which is not run again
    tried: bool = True  # not when its model could not be loaded
    stop: str = ""  # LOST, CANCELED, STOPPING
    ended: threading.Event = field(default_factory=threading.Event)

    def ran(self, rows: int) -> None:
        """So many more rows came through the device; Stopped when the others need not."""
        self.seen += rows
        if self.stop:
            raise Stopped

    @property
    def over(self) -> bool:
        """Whether nothing more need be done for it."""
        return bool(self.stop) or self.error is not None

    @property
    def seconds(self) -> float:
        """Since its first rows came to the device."""
        return time.monotonic() - self.began if self.began else 0.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of shards: how many ended in which way, their rows, and the ids of those given back unrun."""

    succeeded: int = 0
    failed: int = 0
    stopped: int = 0
    postponed: int = 0
    dropped: int = 0
    rows: int = 0
    left: tuple[str, ...] = ()

    def __add__(self, other: Ran) -> Ran:
        return Ran(*(getattr(self, n) + getattr(other, n) for n in self.__slots__))


class Pipeline:
    """Shards of one batch, one after the other, through three threads."""

    def __init__(self, runner: ShardRunner, batch: str, claimed: Sequence[ClaimedJob], until: float) -> None:
        self._runner = runner
        self._batch = batch
        self._claimed = claimed
        self._until = until
        self._read: queue.Queue[tuple[Run, Any] | None] = queue.Queue(AHEAD)
        self._made: queue.Queue[tuple[Run, Any] | None] = queue.Queue(AHEAD)
        self._live: list[Run] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._ended: list[tuple[str, int]] = []
        self._left: list[str] = []

    def run(self) -> Ran:
        """Run these shards, and others of the batch until the time is up; what became of them."""
        threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("read", self._read_all), ("write", self._write_all), ("beat", self._beat_all))
        ]
        for thread in threads:
            thread.start()
        try:
            while (item := self._read.get()) is not None:
                self._made.put(self._on_device(*item))
        finally:
            self._made.put(None)
            threads[1].join()
            self._over.set()
            for thread in threads:
                thread.join()
        ways = ("succeeded", "failed", "stopped", "postponed", "dropped")
        counts = {what: sum(one == what for one, _ in self._ended) for what in ways}
        return Ran(**counts, rows=sum(rows for _, rows in self._ended), left=tuple(self._left))

    def _jobs(self) -> Iterator[ClaimedJob]:
        for job in self._claimed:
            if self._runner.stopping:
                self._runner.give_back(job)
                self._left.append(job.id)
            else:
                yield job
        # What may have killed a worker before can then kill nothing but itself: nothing is read ahead beside it.
        suspect = any(job.crashes for job in self._claimed)
        while not suspect and not self._runner.stopping and time.monotonic() < self._until:
            following = self._runner.claim_next(self._batch)
            if following is None:
                return
            yield following

    def _read_all(self) -> None:
        try:
            for job in self._jobs():
                run = self._runner.prepare(job)
                if run is not None:
                    with self._lock:
                        self._live.append(run)
                    self._read_one(run)
        except Exception as error:
            log.exception("shards_failed", batch=self._batch, error=str(error))  # leases lapse, and sweeps free them
        finally:
            self._read.put(None)

    def _read_one(self, run: Run) -> None:
        try:
            size = min(CHUNK_ROWS, CHUNK_BATCHES * run.spec.max_batch_size)
            for rows in self._runner.reading(read_pieces(run.request, run.shard_range, size)):
                if run.over:
                    break
                self._read.put((run, (rows, _inputs(run, rows))))
        except Exception as error:  # noqa: BLE001 - a shard that cannot be read fails alone
            run.error = error
        self._read.put((run, None))

    def _on_device(self, run: Run, chunk: Any) -> tuple[Run, Any]:
        if chunk is not None and self._runner.stopping:
            run.stop = run.stop or STOPPING
        if chunk is None or run.over:
            return run, None if chunk is None else ()
        rows, inputs = chunk
        try:
            return run, (rows, self._runner.on_device(run, inputs))
        except Exception as error:  # noqa: BLE001 - a model that cannot be loaded fails the shard
            run.error = None if run.stop else error
            return run, ()

    def _write_all(self) -> None:
        while (item := self._made.get()) is not None:
            run, chunk = item
            if chunk is None:
                self._finish(run)
            elif chunk and not run.over:
                try:
                    with self._runner.writing():
                        done, failed = run.part.add(*chunk)
                    run.done, run.failed = run.done + done, run.failed + failed
                except Exception as error:  # noqa: BLE001 - as above
                    run.error = error

    def _finish(self, run: Run) -> None:
        try:
            what = self._runner.finish(run)
            self._ended.append((what, run.done + run.failed))
            if what == "left":
                self._left.append(run.work.id)
        except Exception as error:
            log.exception("shards_failed", batch=self._batch, error=str(error))
        finally:
            with self._lock:
                self._live.remove(run)

    def _beat_all(self) -> None:
        while not self._over.wait(BEAT_S):
            with self._lock:
                live = list(self._live)
            for run in live:
                try:
                    self._runner.beat(run)
                    if len(live) == 1:
                        self._runner.share(run)
                except ForebayError as error:
                    log.warning("housekeeping_failed", what="beat", shard=run.work.id, error=str(error))


def _inputs(run: Run, rows: Rows) -> Inputs:
    """The rows as the model takes them; as they are when they are not to be run: decoding them may be what kills."""
    if run.verdict is not None:
        return Inputs({}, np.arange(len(rows), dtype=np.int64))
    return convert(rows, run.request.columns, run.spec.signature, run.request.format)
