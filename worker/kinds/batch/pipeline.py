"""Shards of one batch on their way through a child: a thread reads and decodes ahead, the device works, a thread writes behind.

While one shard is on the device the next one of its batch is claimed and read already.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import structlog

from forebay.contract.errors import ForebayError, without_frames
from forebay.contract.requests.batch import TO_THE_END
from forebay.datasets.formats.source import ISOLATED
from forebay.datasets.reading.inputs import Inputs, convert
from forebay.datasets.reading.rows import Rows, read_pieces, unread_pieces
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.chunks import chunk_rows
from forebay.worker.kinds.batch.running_shard import RunningShard, StopReason
from forebay.worker.kinds.batch.shards import ShardRunner

log = structlog.get_logger()

HEARTBEAT_S = 1.0
AHEAD = 1  # chunks decoded ahead, and written behind, beside the one in each thread's hand

# A shard with a chunk of it; None stands for its end, and a queue's None for the end of all.
Step = tuple[RunningShard, Any]


class Pipeline:
    """Shards of one batch, one after the other, through three threads."""

    def __init__(self, runner: ShardRunner, batch: str, claimed: Sequence[ClaimedJob], until: float) -> None:
        self._runner = runner
        self._attempts = runner.attempts
        self._batch = batch
        self._claimed = claimed
        self._until = until
        self._read: queue.Queue[Step | None] = queue.Queue(AHEAD)
        self._made: queue.Queue[Step | None] = queue.Queue(AHEAD)
        self._live: list[RunningShard] = []
        self._lock = threading.Lock()
        self._over = threading.Event()

    def run(self) -> None:
        """Run these shards, and others of the batch until the time is up."""
        threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (("read", self._read_all), ("write", self._write_all), ("beat", self._heartbeats))
        ]
        for thread in threads:
            thread.start()
        try:
            while (step := self._read.get()) is not None:
                self._made.put(self._run_step(*step))
        finally:
            self._made.put(None)
            threads[1].join()
            self._over.set()
            for thread in threads:
                thread.join()

    def _jobs(self) -> Iterator[ClaimedJob]:
        for job in self._claimed:
            if self._attempts.stopping:
                self._attempts.release_all([job])
            else:
                yield job
        # What may have killed a worker before can then kill nothing but itself: nothing is read ahead beside it.
        suspect = any(job.crashes for job in self._claimed)
        while not suspect and not self._attempts.stopping and time.monotonic() < self._until:
            following = self._runner.claim_next(self._batch)
            if following is None:
                return
            yield following

    def _read_all(self) -> None:
        try:
            for job in self._jobs():
                shard = self._runner.prepare(job)
                if shard is not None:
                    with self._lock:
                        self._live.append(shard)
                    self._read_shard(shard)
        except Exception as error:
            log.exception("shards_failed", batch=self._batch, error=str(error))  # leases lapse, and sweeps free them
        finally:
            self._read.put(None)

    def _read_shard(self, shard: RunningShard) -> None:
        try:
            for rows in () if shard.over else self._runner.reading(_rows(shard)):
                if shard.over:
                    break
                self._read.put((shard, (rows, _inputs(shard, rows))))
        except MemoryError as error:  # as a death: it is cut until the row stands alone
            shard.stop = shard.stop or StopReason.MEMORY
            shard.error = without_frames(error)
        except Exception as error:  # noqa: BLE001 - a shard that cannot be read fails alone
            shard.error = without_frames(error)
        self._read.put((shard, None))

    def _run_step(self, shard: RunningShard, chunk: Any) -> Step:
        if chunk is not None and self._attempts.stopping:
            shard.stop = shard.stop or StopReason.STOPPING
        if chunk is None or shard.over:
            return shard, None if chunk is None else ()
        rows, inputs = chunk
        try:
            return shard, (rows, self._runner.run_inputs(shard, inputs))
        except Exception as error:  # noqa: BLE001 - a model that cannot be loaded fails the shard
            shard.error = None if shard.stop else without_frames(error)
            return shard, ()

    def _write_all(self) -> None:
        while (step := self._made.get()) is not None:
            shard, chunk = step
            if chunk is None:
                self._finish(shard)
            elif chunk and not shard.over:
                try:
                    with self._runner.writing():
                        done, failed = shard.part.add(*chunk)
                    shard.done, shard.failed = shard.done + done, shard.failed + failed
                except Exception as error:  # noqa: BLE001 - as above
                    shard.error = without_frames(error)

    def _finish(self, shard: RunningShard) -> None:
        try:
            self._runner.finish(shard)
        except Exception as error:
            log.exception("shards_failed", batch=self._batch, error=str(error))
        finally:
            with self._lock:
                self._live.remove(shard)

    def _heartbeats(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            with self._lock:
                live = list(self._live)
            for shard in live:
                try:
                    self._runner.heartbeat(shard)
                    if len(live) == 1:
                        self._runner.share(shard)
                except ForebayError as error:
                    log.warning("housekeeping_failed", what="beat", shard=shard.work.id, error=str(error))


def _rows(shard: RunningShard) -> Iterator[Rows]:
    ends = {piece.last for piece in shard.work.pieces}
    if shard.known_error is not None and shard.request.format in ISOLATED and TO_THE_END not in ends:
        return unread_pieces(shard.range)
    return read_pieces(shard.request, shard.range, chunk_rows(shard.spec))


def _inputs(shard: RunningShard, rows: Rows) -> Inputs:
    """The rows as the model takes them; as they are when they are not to be run: decoding them may be what kills."""
    if shard.known_error is not None:
        return Inputs({}, np.arange(len(rows), dtype=np.int64))
    spec, request = shard.spec, shard.request
    return convert(rows, request.columns, spec.signature, request.format, oriented=spec.oriented)
