"""A shard with which a process has died more than once is cut, until the row that kills stands alone.

Each part counts its attempts afresh and runs alone. A single row that has killed at every attempt is not run again: it is
written down as an error, as other bad rows are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec
import structlog

from forebay.contract.errors import InvalidInput, WorkerLost
from forebay.contract.job import JobError
from forebay.contract.requests.batch import BatchRequest, Shard
from forebay.contract.requests.shards import ShardWork
from forebay.datasets.formats.source import ISOLATED, get_source
from forebay.datasets.planning.cutting import Reading, cut
from forebay.datasets.reading.rows import columns_read
from forebay.storage.batches.records import Batch
from forebay.storage.batches.store import BatchStore
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.backoff import may_pass
from forebay.worker.kinds.batch.coordinator import BatchCoordinator

log = structlog.get_logger()

WAYS = 8  # parts of a shard that is cut: a process that dies costs far more than a shard that runs
MOST_DEATHS = 50  # so many more processes may die for a batch than its shards succeed


@dataclass(frozen=True, slots=True)
class IsolatedShard:
    """What is left of the shard, in its attempt; the error of its row when that is not to be run again, or of the whole shard
    when a file of it cannot be read at all.
    """  # fmt: skip

    job: ClaimedJob
    work: ShardWork
    known_error: WorkerLost | None = None
    unreadable: InvalidInput | OSError | None = None


class PoisonIsolation:
    """Looks at shards that have been claimed, and cuts those that kill. Thread-safe."""

    def __init__(self, store: BatchStore, coordinator: BatchCoordinator, reading: Reading) -> None:
        """`reading` limits how long a file may take to read."""
        self._store = store
        self._coordinator = coordinator
        self._reading = reading

    def isolate(self, job: ClaimedJob, work: ShardWork, request: BatchRequest, batch: Batch) -> IsolatedShard | None:
        """What to run of a claimed shard; None when it is lost, or its batch has failed.

        The first death may have been another shard's doing, which was on its way through the same process: afterwards the
        shard runs alone, and what it does then is its own.
        """
        last = job.tries >= job.max_attempts
        if not job.crashes or (job.crashes == 1 and not last):
            return IsolatedShard(job, work)
        if self._kills_too_often(batch):
            return None
        try:
            if request.format in ISOLATED:  # then it is another process that may die of a file
                source, columns = get_source(request.format), columns_read(request)
                for file in {request.files[piece.file] for piece in work.pieces}:
                    source.layout(file, columns, source.sample(file).row_bytes)
            kept, *given = cut(request, Shard(work.pieces, work.rows, work.bytes), WAYS, self._reading)
        except (InvalidInput, OSError) as error:
            if may_pass(error):
                raise
            return IsolatedShard(job, work, unreadable=error)
        if not given:
            told = self._store.queries.crash_evidence(work.id)
            evidence = f"this row ended its process, or took all its memory, {job.crashes} times; {told}"
            return IsolatedShard(job, work, WorkerLost(evidence) if last and job.crashes > 1 else None)
        routed_jobs = self._store.split_suspect(work, kept, given, batch)
        if routed_jobs is None:
            return None
        self._coordinator.send(routed_jobs)
        log.warning(
            "shard_cut", batch=batch.id, shard=work.id, crashes=job.crashes, rows=work.rows, parts=len(given) + 1
        )
        afresh = msgspec.structs.replace(job, crashes=1, tries=1)
        return IsolatedShard(afresh, replace(work, pieces=kept.pieces, rows=kept.rows, bytes=kept.bytes))

    def _kills_too_often(self, batch: Batch) -> bool:
        """Fail a batch that kills process after process and gets nowhere; whether it has failed."""
        deaths, succeeded = self._store.queries.crashes(batch)
        if deaths <= MOST_DEATHS + succeeded:
            return False
        words = f"{deaths} processes died with rows of this batch, and {succeeded} shards have succeeded"
        self._coordinator.fail(
            batch.id,
            batch.attempt,
            JobError("WorkerLost", f"{words}; {self._store.queries.last_crash_evidence(batch.id)}"),
        )
        return True
