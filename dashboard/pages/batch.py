"""One batch's page: its progress, its shards in input order, which of them run where, and why rows failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.contract.errors import InvalidInput
from forebay.contract.job import JobInfo, JobKind, JobState, first_line
from forebay.contract.requests.batch import BatchProgress, BatchRequest
from forebay.contract.requests.request import decode
from forebay.dashboard.pages.job import JobPageBase, read_details
from forebay.dashboard.reads.ledger import LedgerQueries
from forebay.storage.batches.views import SHARDS_ASKED, BatchErrors, Cell, ShardPage, ShardRow
from forebay.storage.jobs.views import JobDetails

# A sign and a meaning for each style of square, so that no style is recognised by its colour alone.
SIGNS = {
    "succeeded": "✓", "errors": "!", "failed": "✗", "running": "▶", "queued": "·", "canceled": "–", "expired": "–",
    "mixed": "◐",
}  # fmt: skip
LEGEND = {
    "succeeded": "succeeded", "errors": "succeeded, some rows failed", "running": "running", "failed": "failed",
    "canceled": "canceled", "queued": "waiting", "mixed": "partly done",
}  # fmt: skip
MAX_PART = 100  # characters of a part's name


@dataclass(frozen=True, slots=True)
class BatchPageData:
    """What the page shows of a batch; `request` is None where the payload is in the blob store."""

    details: JobDetails
    request: BatchRequest | None
    progress: BatchProgress
    cells: list[Cell]
    running: list[ShardRow]
    shards: ShardPage
    errors: BatchErrors


@dataclass(frozen=True, slots=True)
class Square:
    """A cell of the grid as it is drawn: its style and sign, its description, and where it links to."""

    number: int
    style: str
    sign: str
    title: str
    id: str | None
    part: str


class BatchPage(JobPageBase):
    """`/batches/ID`, and `/batches/ID?shards=PART` with the table of shards from that part on."""

    tab, template, heading = "batches", "batch", "Batch"
    scripts = ("grid.js", "pages.js")

    async def get(self, id: str) -> None:
        first = self.get_query_argument("shards", "")[:MAX_PART]
        snapshot = await self.or_404(
            self.ledger.read(("batch", id, first), lambda queries: read_batch(queries, id, first))
        )
        data = snapshot.value
        self.show_job(
            snapshot, id, first_line=first_line, legend=LEGEND, signs=SIGNS, first=first, shards_asked=SHARDS_ASKED,
            squares=squares(data.cells) if data else [],
            rate=rows_per_s(data.progress, data.details.info) if data else None,
        )  # fmt: skip


def read_batch(queries: LedgerQueries, id: str, first: str) -> BatchPageData:
    """A batch and its shards; JobNotFound when there is no such batch."""
    details = read_details(queries, id, JobKind.BATCH)
    batches = queries.batches
    return BatchPageData(
        details,
        _request(details.input),
        batches.queries.progress(id),
        batches.cells(id),
        batches.running(id),
        batches.shards(id, first),
        batches.errors(id),
    )


def _request(data: bytes | None) -> BatchRequest | None:
    try:
        return decode(data, BatchRequest) if data else None
    except InvalidInput:
        return None


def squares(cells: Sequence[Cell]) -> list[Square]:
    return [_square(number, cell) for number, cell in enumerate(cells, start=1)]


def _square(number: int, cell: Cell) -> Square:
    style = _style(cell)
    which = f"Shard {cell.first:,}" if cell.count == 1 else f"Shards {cell.first:,} to {cell.last:,}"
    states = sorted(cell.states.items(), key=lambda item: (-item[1], item[0]))
    summary = states[0][0] if cell.count == 1 else ", ".join(f"{count:,} {state}" for state, count in states)
    bad = f"; {cell.with_errors:,} with rows that failed" if cell.count > 1 else "; some rows failed"
    title = f"{which}: {summary}{bad if cell.with_errors else ''}"
    return Square(number, style, SIGNS[style], title, cell.id, cell.part)


def _style(cell: Cell) -> str:
    """The worst of what a cell holds."""
    for state in (JobState.FAILED, JobState.RUNNING):
        if cell.states.get(state):
            return state.value
    if len(cell.states) > 1:
        return "mixed"
    [state] = cell.states
    return "errors" if state is JobState.SUCCEEDED and cell.with_errors else state.value


def rows_per_s(progress: BatchProgress, job: JobInfo) -> float | None:
    """The speed now; of a batch that has ended, its speed from start to end."""
    if not job.state.final:
        return progress.rows_per_s
    if job.started_at is None or job.finished_at is None:
        return None
    seconds = (job.finished_at - job.started_at).total_seconds()
    return (progress.completed + progress.failed) / seconds if seconds > 0 else None
