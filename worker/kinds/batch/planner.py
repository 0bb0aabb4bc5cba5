"""Which rows a batch's next shards cover: as many as take a few seconds, by what its shards have taken so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial

from forebay.contract.job import JobState
from forebay.contract.model import ModelVersion
from forebay.contract.requests.batch import TO_THE_END, BatchRequest, InputFile, Position, Shard
from forebay.datasets.formats.source import Block, Size, get_source, get_text_source
from forebay.datasets.planning.checking import check_file
from forebay.datasets.planning.shards import shards
from forebay.datasets.reading.rows import columns_read
from forebay.storage.batches.records import Totals

SHARD_S = 5.0  # how long a shard should take, once it is known how quick the model is
SHARD_BYTES = 64 << 20
FIRST_BATCHES = 16  # the device's batches in a shard while nothing is known
LEAST_BATCHES = 8
REMOTE_ROWS = 4  # in the place of a batch of the device, for a model that another server runs: answers are dear
TEXT = ("str", "json")
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
        until = time.monotonic() + PLAN_S
        size = self._size(totals, self._rows_left(position))
        planned: list[Shard] = []
        for shard, behind in shards(partial(self._layout, size), len(self._request.files), position, size):
            planned.append(shard)
            position = behind
            if len(planned) >= wanted or time.monotonic() > until:
                return planned, position, False
        return planned, position, True

    def _layout(self, size: Size, number: int, first: int) -> Iterator[Block]:
        """The blocks of a file. Those of text are counted as they are needed, and no byte twice."""
        request, text = self._request, get_text_source(self._request.format)
        file = request.files[number]
        with self._waiting():
            check_file(request, self._spec.signature, file)
            found = iter(text.counted(file, first, size) if text else self._blocks(file))
        while True:
            with self._waiting():
                block = next(found, None)
            if block is None:
                return
            yield block

    def _blocks(self, file: InputFile) -> Sequence[Block]:
        source = get_source(self._request.format)
        return source.layout(file, columns_read(self._request), self._request.row_bytes)

    def _rows_left(self, position: Position) -> int:
        """About how many rows no shard covers yet; by their bytes where the format does not tell."""
        files = self._request.files
        if position.file >= len(files):
            return 0
        file, *behind = files[position.file :]
        if get_text_source(self._request.format):
            return (file.size - position.first + sum(f.size for f in behind)) // max(1, self._request.row_bytes)
        with self._waiting():
            blocks = self._blocks(file)
        rows = sum(block.rows for block in blocks)
        rest = sum(int(block.rows * _share_behind(block, position.first)) for block in blocks)
        return rest + sum(f.size for f in behind) * rows // max(1, file.size)

    def _size(self, totals: Totals, left: int) -> Size:
        """What takes about SHARD_S by what was measured, and a guess before; less towards the end, of `left` rows, so that all
        workers end at about the same time.
        """  # fmt: skip
        if self._request.shard_rows is not None:
            return Size(self._request.shard_rows, 1 << 60)
        batch_rows = REMOTE_ROWS if self._spec.remote else self._spec.max_batch_size
        done, seconds = totals.done + totals.failed, totals.seconds
        rows = int(done / seconds * SHARD_S) if done and seconds > 0 else FIRST_BATCHES * batch_rows
        running = max(1, totals.shards.get(JobState.RUNNING, 0))
        wanted = max(LEAST_BATCHES * batch_rows, min(rows, left // (2 * running)))
        return Size(wanted, max(1, min(SHARD_BYTES, int(wanted * self._row_bytes(totals)))))

    def _row_bytes(self, totals: Totals) -> float:
        """How many bytes a row has, where it takes as long as its text is long: a shard of long ones then has fewer rows.
        Else no limit.
        """  # fmt: skip
        if not any(field.dtype in TEXT for field in self._spec.signature.inputs or ()):
            return SHARD_BYTES
        rows = totals.done + totals.failed
        if rows and totals.bytes_done:
            return totals.bytes_done / rows
        known = self._request.row_bytes and get_text_source(self._request.format)  # others count bytes in their own way
        return self._request.row_bytes if known else SHARD_BYTES


def _share_behind(block: Block, first: int) -> float:
    """Which share of a block lies at or behind `first`."""
    if block.last == TO_THE_END or first <= block.first:
        return 1.0
    return max(0, block.last - first) / (block.last - block.first)
