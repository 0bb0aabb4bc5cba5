"""Batches that no worker runs: their shards go the way shards go, through BatchStore, as a test or a picture wants them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import text

from forebay.contract.job import JobError, JobKind, new_ids
from forebay.contract.requests.batch import PARQUET, BatchRequest, InputFile, Piece, Position, Shard
from forebay.contract.requests.request import encode
from forebay.contract.requests.shards import ShardOutcome, ShardWork, WrittenFile
from forebay.contract.row_errors import ErrorKind
from forebay.storage.batches.store import FINISH, BatchStore
from forebay.storage.jobs.records import ClaimedJob, Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger

ROWS = 1000
ENDED = """
UPDATE jobs SET state = 'succeeded', attempt = 1, worker = :worker, started_at = :start, finished_at = :end WHERE id = :id"""


class MadeBatch:
    """A batch that runs, with all its shards planned and waiting; `shards` are their jobs in the order of the input."""

    def __init__(
        self,
        ledger: Ledger,
        shards: int,
        *,
        id: str = "",
        model: str = "minilm",
        queue: str = "gpu",
        output: str = "out",
        worker: str = "gpu0@atlas",
        **more: Any,
    ) -> None:
        self.id, self.worker = id or new_ids(1)[0], worker
        self.jobs, self.store = JobStore(ledger), BatchStore(ledger)
        rows = ROWS * shards
        columns = {"text": ("text",)}
        request = BatchRequest((InputFile("in/a.parquet", rows * 100),), output, PARQUET, columns, keep=("id",))
        self.request = request
        job = NewJob(self.id, JobKind.BATCH, model, 1, queue, input=encode(request), rows=max(1, rows), **more)
        self.jobs.add([job])
        [claimed] = self.jobs.claim([self.id], worker, 30)
        self.store.start(claimed, request)
        planned = [Shard(_pieces(i), ROWS, ROWS * 100) for i in range(shards)]
        routed_jobs = self.store.plan(self.store.queries.get(self.id), planned, Position(1, 0), True)
        self.shards = [routed_job.id for routed_job in routed_jobs or []]
        self.store.parents.hand_off(claimed)

    def claim(self, numbers: Sequence[int], worker: str = "") -> list[tuple[ClaimedJob, ShardWork]]:
        """Let a worker take these shards, counted from 0."""
        claimed = self.jobs.claim([self.shards[i] for i in numbers], worker or self.worker, 30)
        return [(job, self.store.queries.shard(job, 30)) for job in sorted(claimed, key=lambda job: job.id)]

    def finish(self, numbers: Sequence[int], kinds: Sequence[ErrorKind] = (), seconds: float = 2.0) -> None:
        """Claim these shards and end them well, each with rows that failed in these ways."""
        failed = sum(kind.count for kind in kinds)
        for _, work in self.claim(numbers):
            part = WrittenFile(f"{work.part}.parquet", "", ROWS - failed, 4096, "0" * 64)
            assert self.store.finish(work, ShardOutcome(ROWS - failed, failed, seconds, part, None, tuple(kinds)))
        self._show()

    def run(self, numbers: Sequence[int], done: int, failed: int = 0, worker: str = "") -> list[ShardWork]:
        """Claim these shards and come this far with each."""
        works = [work for _, work in self.claim(numbers, worker)]
        for work in works:
            self.store.renew(work, done, failed, 1.5, 30)
        self._show()
        return works

    def fail(self, numbers: Sequence[int], error: JobError) -> None:
        """Claim these shards and end them with an error."""
        for job, _ in self.claim(numbers):
            assert self.jobs.finish([Finished(job.id, job.attempt, error=error)])

    def finish_quickly(self, numbers: Sequence[int], kinds: Sequence[ErrorKind], bad: Sequence[int]) -> None:
        """As `finish`, in one transaction and without claims: for very many shards. Those in `bad` have rows that failed."""
        failed = sum(kind.count for kind in kinds)
        good, worse = ShardOutcome(ROWS, 0, 2.0), ShardOutcome(ROWS - failed, failed, 2.0, kinds=tuple(kinds))
        outcomes = [(i, self.shards[i], worse if i in bad else good) for i in numbers]
        ends = self.store.ledger.now() - 2.0 * len(outcomes)
        with self.store.ledger.write() as connection:
            connection.execute(
                text(ENDED),
                [
                    {"id": id, "worker": self.worker, "start": ends + 2 * i, "end": ends + 2 * i + 1.8}
                    for i, (_, id, _) in enumerate(outcomes)
                ],
            )
            rows = [
                {
                    "id": id,
                    "done": o.rows,
                    "failed": o.failed,
                    "seconds": o.seconds,
                    "outcome": encode(o).decode(),
                    "rows": ROWS,
                    "pieces": encode(_pieces(i)).decode(),
                }
                for i, id, o in outcomes
            ]
            FINISH.execute_many(connection, rows)
        self._show()

    def complete(self) -> None:
        """End the batch well."""
        totals = self.store.queries.totals(self.id)
        batch = self.store.queries.get(self.id)
        assert self.store.complete(batch, b"", None, totals.done + totals.failed, totals.done + totals.failed)

    def _show(self) -> None:
        totals = self.store.queries.totals(self.id)
        self.store.parents.set_progress(self.id, totals.done + totals.failed, totals.rows, "shards done")


def _pieces(number: int) -> tuple[Piece, ...]:
    """What a shard covers, counted from 0."""
    return (Piece(0, number * ROWS, (number + 1) * ROWS),)
