"""Predict jobs: many of one model version at once, their rows in batches.

While a batch is on the device the next one is prepared and the last one's results are written, several jobs to a commit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from operator import attrgetter
from typing import TypeAlias

import structlog

from forebay.contract.errors import Transient
from forebay.contract.wire.messages import TextPiece
from forebay.contract.wire.payload import InputReader
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.attempts import Attempts, outcome_of_error
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.engine import Engine
from forebay.worker.execution.large_results import LargeResult, LargeResults
from forebay.worker.execution.model_cache import LoadedModel
from forebay.worker.execution.summary import Summary
from forebay.worker.kinds.joining import JoiningJobs
from forebay.worker.kinds.row_jobs import JobRow, PredictJob, StopRequests
from forebay.worker.runtimes import Meanwhile, Piece

log = structlog.get_logger()

COMMIT_EVERY_S = 0.05  # finished jobs wait at most about this long for the commit they share
QUICK_S = 0.1
GROUP_BYTES = 128 << 20  # of payloads: about twice as much is in memory while their rows run

Split: TypeAlias = "Callable[[LoadedModel, list[PredictJob]], Iterable[tuple[LoadedModel, list[PredictJob]]]]"


class PredictHandler:
    """Runs the predict jobs of one child, or others of rows: by `split` some of them share a model that is made of theirs."""

    def __init__(
        self, context: ChildContext, engine: Engine | None = None, split: Split = lambda loaded, jobs: [(loaded, jobs)]
    ) -> None:
        self._context, self._models = context, context.models
        self._engine = engine or context.engine
        self._split = split
        self._payloads = context.payloads
        self._announcer = context.announcer
        self._drift = context.drift if engine is None else None  # explanations are no predictions
        self._outage_timeout_s = context.settings.outage_timeout_s
        self._joins = engine is None  # what is explained is no text that grows
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
            if passing:
                log.warning("model_away", model=ref, jobs=len(claimed), error=repr(error))
            else:
                log.error("model_unusable", model=ref, jobs=len(claimed), error=repr(error))
            outcomes = [outcome_of_error(job, error, passing=passing, counted=not passing) for job in claimed]
            attempts.finish(first, outcomes)
            return
        left, total, joining = list(claimed), Summary(), JoiningJobs(self._context, attempts, first)
        try:
            for jobs in self._decoded(claimed, loaded):
                del left[: len(jobs)]
                for model, some in self._split(loaded, jobs):
                    total += self._run_jobs(model, some, attempts, stops, joining)
                if attempts.stopping:
                    attempts.release_all([*(job.claimed for job in jobs if job.unfinished and not job.lost), *left])
                    break
                del jobs  # frees their rows before the next ones are read
        finally:
            joining.let_go_all()
        seconds = time.perf_counter() - started
        quick = seconds < QUICK_S and total.succeeded == len(claimed)
        if quick and not logging.getLogger().isEnabledFor(logging.DEBUG):
            return  # metrics count it; a line would cost as much as the job
        (log.debug if quick else log.info)(
            "batch_done", model=ref, queue=first.queue, worker=attempts.worker, jobs=len(claimed) + joining.count,
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
        self, loaded: LoadedModel, jobs: list[PredictJob], attempts: Attempts, stops: StopRequests, joining: JoiningJobs
    ) -> Summary:
        """Run every row, and those of jobs that join, which are added to `jobs`; write complete jobs in a thread while the next
        batch runs, the last ones before returning.
        """  # fmt: skip
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
                written.append(self._writer.submit(self._finish, stopped, attempts, joining))
            return bool(lost or stopped)

        def more(places: int) -> list[JobRow]:
            claimed = joining.claim(places) if self._joins else []
            stops.add(claimed)
            new = [job for group in self._decoded(claimed, loaded) for job in group] if claimed else []
            jobs.extend(new)
            ready.extend(job for job in new if not job.unfinished)
            return [JobRow(job, i, row) for job in new for i, row in enumerate(job.rows)]

        ready += stops.stop(jobs)
        wanted = () if attempts.stopping else jobs
        rows = [JobRow(job, i, row) for job in wanted if job.open for i, row in enumerate(job.rows)]
        batches = self._engine.run_rows(
            loaded, rows, attrgetter("row"), alone=_alone, recut=stop_some, meanwhile=Meanwhile(self._tell, more),
            skip=lambda row: attempts.stopping or not row.job.open,
        )  # fmt: skip
        with closing(batches):
            for batch in batches:
                ran += Summary(
                    rows=len(batch.items), batches=bool(batch.items), tokens=batch.tokens, padded=batch.padded
                )
                ready += [
                    r.job for r, made in zip(batch.items, batch.outputs, strict=True) if r.job.take(r.i, made, loaded)
                ]
                if batch.items and self._drift is not None and self._drift.due(loaded.spec):
                    made = [r.job.outputs[r.i] for r in batch.items]
                    self._drift.rows(loaded.spec, [r.job.given[r.i] for r in batch.items], made)
                if ready and time.perf_counter() - committed > COMMIT_EVERY_S:
                    written.append(self._writer.submit(self._finish, list(ready), attempts, joining))
                    ready.clear()
                    committed = time.perf_counter()
                if attempts.stopping:
                    break
        attempts.add(ran)
        total = ran + self._finish(ready, attempts, joining) if ready else ran
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

    def _finish(self, jobs: Sequence[PredictJob], attempts: Attempts, joining: JoiningJobs) -> Summary:
        """Write how these ended: first of those that need no blob, which wait for none."""
        outcomes = [job.outcome(self._payloads) for job in jobs]
        small = [o for o in outcomes if not isinstance(o, LargeResult)]
        total = attempts.finish(jobs[0].claimed, small) if small else Summary()
        joining.ended(o.id for o in small)
        large = [o for o in outcomes if isinstance(o, LargeResult)]
        if large and self._large is not None:
            total += self._large.store(large)
            joining.forget(o.job.id for o in large)
        return total


def _alone(item: JobRow) -> Hashable | None:
    """Only this job's rows may share a batch with a job under which a process has died before."""
    return item.job.claimed.id if item.job.claimed.crashes else None
