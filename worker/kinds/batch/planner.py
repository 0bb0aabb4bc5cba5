"""Which rows a batch's next shards cover: as many as take a few seconds, by what its shards have taken so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache

from forebay.contract.job import JobState
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import TO_THE_END, BatchRequest, Position, Shard
from forebay.datasets.formats.source import Block, get_source
from forebay.datasets.planning.checking import check_file
from forebay.datasets.planning.shards import Layout, Size, shards
from forebay.datasets.reading.rows import columns_read
from forebay.storage.batches.records import Totals

SHARD_S = 5.0  # how long a shard should take, once it is known how quick the model is
SHARD_BYTES = 64 << 20
FIRST_BATCHES = 16  # the device's batches in a shard while nothing is known
LEAST_BATCHES = 8
PLAN_S = 1.0  # for a step of planning


class ShardPlanner:
    """Plans the shards of one batch, in steps that take about a second. `waiting` limits how long a file may take to read."""

    def __init__(
        self, request: BatchRequest, spec: ModelVersion, waiting: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._request = request
        self._spec = spec
        self._waiting = waiting

    def plan(self, position: Position, wanted: int, totals: Totals) -> tuple[list[Shard], Position, bool]:
        """Up to `wanted` shards from `position` on, the position behind them, and whether these are the last.

        InvalidInput or OSError when a file cannot be read.
        """
        request, source, until = self._request, get_source(self._request.format), time.monotonic() + PLAN_S
        columns = columns_read(request)

        @cache
        def layout(number: int) -> list[Block]:
            file = request.files[number]
            with self._waiting():
                check_file(request, self._spec.signature, file)
                return list(source.layout(file, columns, request.row_bytes))

        planned: list[Shard] = []
        size = self._size(totals, _rows_left(request, position, layout))
        for shard, behind in shards(layout, len(request.files), position, size):
            planned.append(shard)
            position = behind
            if len(planned) >= wanted or time.monotonic() > until:
                return planned, position, False
        return planned, position, True

    def _size(self, totals: Totals, left: int) -> Size:
        """What takes about SHARD_S by what was measured, and a guess before; less towards the end, of `left` rows, so that all
        workers end at about the same time.
        """  # fmt: skip
        if self._request.shard_rows is not None:
            return Size(self._request.shard_rows, 1 << 60)
        batch_rows = self._spec.max_batch_size
        done, seconds = totals.done + totals.failed, totals.seconds
        rows = int(done / seconds * SHARD_S) if done and seconds > 0 else FIRST_BATCHES * batch_rows
        running = max(1, totals.shards.get(JobState.RUNNING, 0))
        return Size(max(LEAST_BATCHES * batch_rows, min(rows, left // (2 * running))), SHARD_BYTES)


def _rows_left(request: BatchRequest, position: Position, layout: Layout) -> int:
    """About how many rows no shard covers yet: counted in the file that is being planned, by their bytes in those behind it."""
    if position.file >= len(request.files):
        return 0
    blocks = layout(position.file)
    rows = sum(block.rows for block in blocks)
    rest = sum(int(block.rows * _share_behind(block, position.first)) for block in blocks)
    behind = sum(file.size for file in request.files[position.file + 1 :])
    return rest + behind * rows // max(1, request.files[position.file].size)


def _share_behind(block: Block, first: int) -> float:
    """Which share of a block lies at or behind `first`."""
    if block.last == TO_THE_END or first <= block.first:
        return 1.0
    return max(0, block.last - first) / (block.last - block.first)
