"""Predict jobs: many of one model version at once, their rows in batches.

While a batch is on the device the next one is prepared and the last one's results are written, several jobs to a commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import structlog

from forebay.contract.errors import LedgerUnavailable, Transient, without_frames
from forebay.contract.job import Transition
from forebay.contract.signature import Row
from forebay.contract.wire import codec
from forebay.contract.wire.messages import TextPiece
from forebay.contract.wire.payload import InputReader, PackedRows, join_rows
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.jobs.records import ClaimedJob, Finished, Postponed
from forebay.worker.execution.attempts import Attempts, outcome_of_error
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.large_results import LargeResult, LargeResults
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.summary import Summary
from forebay.worker.runtimes import Interrupted, Piece

log = structlog.get_logger()

COMMIT_EVERY_S = 0.05  # finished jobs wait at most about this long for the commit they share
QUICK_S = 0.1
GROUP_BYTES = 128 << 20  # of payloads: about twice as much is in memory while their rows run
CANCEL_CHECK_S = 0.5  # between two reads of which jobs are to be canceled


class PredictHandler:
    """Runs the predict jobs of one child."""

    def __init__(self, context: ChildContext) -> None:
        self._models = context.models
        self._engine = context.engine
        self._payloads = context.payloads
        self._announcer = context.announcer
        self._drift = context.drift
        self._outage_timeout_s = context.settings.outage_timeout_s
        self._large: LargeResults | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")

    def run(self, claimed: Sequence[ClaimedJob], attempts: Attempts) -> None:
        """Run these jobs, one model version after the other."""
        self._large = self._large or LargeResults(self._payloads, attempts, self._outage_timeout_s)
        stops = StopRequests(attempts, claimed)
        by_model: dict[tuple[str, int], list[ClaimedJob]] = {}
        for job in claimed:
            by_model.setdefault((job.model, job.version), []).append(job)
        for jobs in by_model.values():
            if attempts.stopping:
                attempts.release_all(jobs)
            else:
                self._run_version(jobs, attempts, stops)

    def _run_version(self, claimed: Sequence[ClaimedJob], attempts: Attempts, stops: StopRequests) -> None:
        first, started = claimed[0], time.perf_counter()
        ref = f"{first.model}/{first.version}"
        attempts.begin(claimed)
        try:
            loaded = self._models.load(first.model, first.version)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises, these jobs cannot run here
            passing = isinstance(error, Transient)
            event, level = ("model_away", "warning") if passing else ("model_unusable", "error")
            getattr(log, level)(event, model=ref, jobs=len(claimed), error=repr(error))
            outcomes = [outcome_of_error(job, error, passing=passing, counted=not passing) for job in claimed]
            attempts.finish(first, outcomes)
            return
        left, total = list(claimed), Summary()
        for jobs in self._decoded(claimed, loaded):
            total += self._run_jobs(loaded, jobs, attempts, stops)
            del left[: len(jobs)]
            if attempts.stopping:
                attempts.release_all([*(job.claimed for job in jobs if job.unfinished and not job.lost), *left])
                break
            del jobs  # frees their rows before the next ones are read
        seconds = time.perf_counter() - started
        quick = seconds < QUICK_S and total.succeeded == len(claimed)
        if quick and not logging.getLogger().isEnabledFor(logging.DEBUG):
            return  # metrics count it; a line would cost as much as the job
        (log.debug if quick else log.info)(
            "batch_done", model=ref, queue=first.queue, worker=attempts.worker, jobs=len(claimed),
            succeeded=total.succeeded, failed=total.failed, stopped=total.stopped, postponed=total.postponed,
            lost=total.lost, rows=total.rows, batches=total.batches, padding=round(total.padding, 3),
            attempt=max(job.attempt for job in claimed), seconds=round(seconds, 4),
        )  # fmt: skip

    def _decoded(self, claimed: Sequence[ClaimedJob], loaded: LoadedModel) -> Generator[list[PredictJob], None, None]:
        """The jobs in order with their rows, so many at once as have GROUP_BYTES of payloads; a few more are read ahead."""
        places = ((job.input, job.input_ref) for job in claimed)
        reader, group, size = InputReader(), list[PredictJob](), 0
        with closing(self._payloads.load_all(places)) as payloads:
            for job, data in zip(claimed, payloads, strict=True):
                group.append(PredictJob.decode(job, data, reader.read, loaded))
                size += 0 if isinstance(data, Exception) else max(len(data), loaded.nbytes_read(group[-1].rows))
                if size > GROUP_BYTES:
                    yield group
                    group, size = [], 0
            if group:
                yield group

    def _run_jobs(
        self, loaded: LoadedModel, jobs: Sequence[PredictJob], attempts: Attempts, stops: StopRequests
    ) -> Summary:
        """Run every row; write complete jobs in a thread while the next batch runs, the last ones before returning."""
        ready = [job for job in jobs if not job.unfinished]
        written: list[Future[Summary]] = []
        ran, committed = Summary(), time.perf_counter()

        def stop_some() -> bool:
            if attempts.stopping:
                return True
            lost = attempts.find_lost(job.claimed for job in jobs if job.open)
            if lost:
                for job in jobs:
                    job.lost = job.lost or job.claimed.id in lost
            stopped = stops.stop(jobs)
            if stopped:  # at once: the batch that runs may take minutes
                written.append(self._writer.submit(self._finish, stopped, attempts))
            return bool(lost or stopped)

        ready += stops.stop(jobs)
        rows = [JobRow(job, i, row) for job in jobs if job.open for i, row in enumerate(job.rows)]
        batches = self._engine.run_rows(
            loaded, rows, _row, alone=_alone, recut=stop_some, skip=lambda row: attempts.stopping or not row.job.open,
            tell=self._tell,
        )  # fmt: skip
        with closing(batches):
            for batch in batches:
                ran += Summary(
                    rows=len(batch.items), batches=bool(batch.items), tokens=batch.tokens, padded=batch.padded
                )
                ready += [
                    r.job
                    for r, made in zip(batch.items, batch.outputs, strict=True)
                    if not isinstance(made, Interrupted) and r.job.take(r.i, made, loaded)
                ]
                if batch.items and self._drift.due(loaded.spec):
                    made = [r.job.outputs[r.i] for r in batch.items]
                    self._drift.rows(loaded.spec, [r.job.given[r.i] for r in batch.items], made)
                if ready and time.perf_counter() - committed > COMMIT_EVERY_S:
                    written.append(self._writer.submit(self._finish, list(ready), attempts))
                    ready.clear()
                    committed = time.perf_counter()
                if attempts.stopping:
                    break
        attempts.add(ran)
        total = ran + self._finish(ready, attempts) if ready else ran
        return sum((future.result() for future in written), total)

    def _tell(self, text: Sequence[tuple[JobRow, Piece]]) -> None:
        """Send text to those clients that asked for it."""
        wanted: dict[str, list[TextPiece]] = {}
        for row, piece in text:
            job = row.job.claimed
            if row.job.stream and job.client:
                told = TextPiece(job.id, row.i, piece.choice, piece.start, piece.text)
                wanted.setdefault(job.client, []).append(told)
        for client, pieces in wanted.items():
            self._announcer.announce_text(client, pieces)

    def _finish(self, jobs: Sequence[PredictJob], attempts: Attempts) -> Summary:
        """Write how these ended: first of those that need no blob, which wait for none."""
        outcomes = [job.outcome(self._payloads) for job in jobs]
        small = [o for o in outcomes if not isinstance(o, LargeResult)]
        total = attempts.finish(jobs[0].claimed, small) if small else Summary()
        large = [o for o in outcomes if isinstance(o, LargeResult)]
        return total + self._large.store(large) if large and self._large is not None else total


@dataclass(slots=True)
class PredictJob:
    """A claimed job on its way: its rows, as given and as the model's batches take them, an output for each, how many are
    unfinished, its usage if that is to be told, whether its client wants the text as it comes, and its first error.

    `ending` is how it ends when it was stopped. It is `lost` once another worker has been given it.
    """

    claimed: ClaimedJob
    batched: bool = False
    given: list[Row] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    unfinished: int = 0
    usage: dict[str, Any] | None = None
    stream: bool = False
    error: Exception | None = None
    ending: Transition | None = None
    lost: bool = False

    @property
    def open(self) -> bool:
        return self.unfinished > 0 and not self.lost

    @property
    def begun(self) -> bool:
        return self.unfinished < len(self.rows)

    @classmethod
    def decode(
        cls, job: ClaimedJob, data: bytes | Exception, read: Callable[[bytes], PackedRows], loaded: LoadedModel
    ) -> PredictJob:
        """The job with its rows, or with the error that reading them gave."""
        if isinstance(data, Exception):
            return cls(job, error=data)
        try:
            packed = read(data)
            rows = loaded.preprocess(packed.rows)
            usage = {"usage": {"tokens": loaded.count_tokens(rows)}} if packed.usage else None
        except Exception as error:  # noqa: BLE001 - a job that cannot be read fails alone
            return cls(job, error=without_frames(error))
        return cls(job, packed.batched, packed.rows, rows, [None] * len(rows), len(rows), usage, packed.stream)

    def take(self, i: int, made: Any, loaded: LoadedModel) -> bool:
        """Note the output or exception of row i; whether all rows are finished now."""
        self.unfinished -= 1
        try:
            self.outputs[i] = loaded.output(made)
        except Exception as error:  # noqa: BLE001 - this row's own error
            self.error = self.error or without_frames(error)
        return self.unfinished == 0

    def stop(self, ending: Transition) -> None:
        self.ending, self.unfinished = ending, 0

    def outcome(self, payloads: Payloads) -> Finished | Postponed | LargeResult:
        """What to write: the result, or the error; or that the job is to be tried again later."""
        job, error = self.claimed, self.error
        if self.ending is not None:
            return Finished(job.id, job.attempt, ending=self.ending)
        if error is None:
            try:
                value = join_rows(self.outputs) if self.batched else self.outputs[0]
                parts = codec.encode_parts(value if self.usage is None else {"output": value} | self.usage)
                small = payloads.fits_inline(*parts)
                return Finished(job.id, job.attempt, b"".join(parts)) if small else LargeResult(job, parts)
            except Exception as failure:  # noqa: BLE001 - an output that cannot be encoded fails its job alone
                error = failure
        return outcome_of_error(job, error, passing=isinstance(error, Transient))


class JobRow(NamedTuple):
    """Row `i` of a job: what batches are made of."""

    job: PredictJob
    i: int
    row: Row


def _row(item: JobRow) -> Row:
    return item.row


def _alone(item: JobRow) -> Hashable | None:
    """Only this job's rows may share a batch with a job under which a process has died before."""
    return item.job.claimed.id if item.job.claimed.crashes else None


class StopRequests:
    """Which of the claimed jobs must not go on: a user asked to cancel them, or their deadline came before they were begun.

    Asked between batches. It reads the ledger at most twice a second; a claim gives no job whose cancel was asked for, so jobs
    that are done within half a second cost no read at all.
    """

    def __init__(self, attempts: Attempts, claimed: Sequence[ClaimedJob]) -> None:
        self._attempts = attempts
        self._checked = time.monotonic()
        self._canceled: set[str] = set()
        self._first_deadline = min((job.deadline_at for job in claimed if job.deadline_at is not None), default=inf)

    def stop(self, jobs: Sequence[PredictJob]) -> list[PredictJob]:
        """Stop those of the jobs that must not go on; which ones these are."""
        self._check()
        now = self._attempts.now() if self._first_deadline < inf else -inf
        if not self._canceled and now < self._first_deadline:
            return []
        stopped = []
        for job in jobs:
            ending = self._ending(job, now) if job.open else None
            if ending is not None:
                job.stop(ending)
                stopped.append(job)
        return stopped

    def _ending(self, job: PredictJob, now: float) -> Transition | None:
        if job.claimed.id in self._canceled:
            return Transition.CANCEL
        deadline = job.claimed.deadline_at
        return Transition.EXPIRE if deadline is not None and not job.begun and now >= deadline else None

    def _check(self) -> None:
        if time.monotonic() - self._checked < CANCEL_CHECK_S:
            return
        self._checked = time.monotonic()
        try:
            self._canceled = self._attempts.cancel_requested()
        except LedgerUnavailable as error:  # the work itself needs no ledger
            log.warning("cancel_unknown", worker=self._attempts.worker, error=str(error))
