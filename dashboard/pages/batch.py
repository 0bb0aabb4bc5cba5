"""One batch's page: how far it is, its shards in the order of the input, which of them run where, and why rows failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tornado.web import HTTPError

from forebay.contract.errors import InvalidInput, JobNotFound
from forebay.contract.job import JobInfo, JobKind, JobState
from forebay.contract.requests.batch import BatchProgress, BatchRequest
from forebay.dashboard.pages.base import Page
from forebay.dashboard.pages.job import PREVIEW_BYTES, SAID, may_cancel, may_retry
from forebay.dashboard.reads.ledger_view import ConsumerHealth
from forebay.storage.batches.views import SHARDS_ASKED, BatchErrors, Cell, ShardPage, ShardRow
from forebay.storage.jobs.views import JobDetails

# One sign for each kind of cell, so that none is told by its colour alone.
SIGNS = {
    "succeeded": "✓", "errors": "!", "failed": "✗", "running": "▶", "queued": "·", "canceled": "–", "expired": "–",
    "mixed": "◐",
}  # fmt: skip
LEGEND = {
    "succeeded": "succeeded", "errors": "succeeded, some rows failed", "running": "running", "failed": "failed",
    "canceled": "canceled", "queued": "waiting", "mixed": "partly done",
}  # fmt: skip
FIRST_PART = 100  # characters of a part's name


@dataclass(frozen=True, slots=True)
class SeenBatch:
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
    """A cell as it is drawn: its sign, what it says in words, and where it leads."""

    number: int
    look: str
    sign: str
    words: str
    id: str | None
    part: str


class BatchPage(Page):
    """`/batches/ID`, and `/batches/ID?shards=PART` with the table of shards from that part on."""

    tab = "batches"

    async def get(self, id: str) -> None:
        """The page, or the part that changes; 404 for a job that is not there or no batch."""
        first = self.get_query_argument("shards", "")[:FIRST_PART]
        try:
            answer = await self.ledger.ask(("batch", id, first), lambda ears: look(ears, id, first))
        except JobNotFound as error:
            raise HTTPError(404, "%s", str(error)) from error
        seen = answer.value
        job = seen.details.info if seen else None
        self.show(
            "batch", answer, id=id, seen=seen, job=job, now=self.now(), legend=LEGEND, signs=SIGNS, first=first,
            squares=squares(seen.cells) if seen else [], rate=rows_per_s(seen.progress, job) if seen and job else None,
            asked=SHARDS_ASKED, can_cancel=job is not None and may_cancel(job),
            can_retry=job is not None and may_retry(job.state), said=SAID.get(self.get_query_argument("said", ""), ""),
        )  # fmt: skip


def look(ears: ConsumerHealth, id: str, first: str) -> SeenBatch:
    """Read a batch and its shards; JobNotFound when there is no such batch."""
    details = ears.views.details(id, PREVIEW_BYTES)
    if details.info.kind is not JobKind.BATCH:
        raise JobNotFound(f"job {id} is a {details.info.kind} job and no batch: see its page among the jobs")
    batches = ears.batches
    return SeenBatch(
        details,
        _request(details.input),
        batches.progress(id),
        batches.cells(id),
        batches.running(id),
        batches.shards(id, first),
        batches.errors(id),
    )


def _request(data: bytes | None) -> BatchRequest | None:
    try:
        return BatchRequest.load(data) if data else None
    except InvalidInput:
        return None


def squares(cells: Sequence[Cell]) -> list[Square]:
    """Cells as they are drawn."""
    return [_square(number, cell) for number, cell in enumerate(cells, start=1)]


def _square(number: int, cell: Cell) -> Square:
    kind = _kind(cell)
    which = f"Shard {cell.first:,}" if cell.count == 1 else f"Shards {cell.first:,} to {cell.last:,}"
    states = sorted(cell.states.items(), key=lambda item: (-item[1], item[0]))
    told = states[0][0] if cell.count == 1 else ", ".join(f"{count:,} {state}" for state, count in states)
    bad = f"; {cell.with_errors:,} with rows that failed" if cell.count > 1 else "; some rows failed"
    return Square(number, kind, SIGNS[kind], f"{which}: {told}{bad if cell.with_errors else ''}", cell.id, cell.part)


def _kind(cell: Cell) -> str:
    """What a cell looks like: the worst of what it holds."""
    for state in (JobState.FAILED, JobState.RUNNING):
        if cell.states.get(state):
            return state.value
    if len(cell.states) > 1:
        return "mixed"
    [state] = cell.states
    return "errors" if state is JobState.SUCCEEDED and cell.with_errors else state.value


def rows_per_s(progress: BatchProgress, job: JobInfo) -> float | None:
    """How fast it goes; of a batch that has ended, how fast it went from its start to its end."""
    if not job.state.final:
        return progress.rows_per_s
    if job.started_at is None or job.finished_at is None:
        return None
    seconds = (job.finished_at - job.started_at).total_seconds()
    return (progress.completed + progress.failed) / seconds if seconds > 0 else None
