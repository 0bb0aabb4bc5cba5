"""What a child does with job ids: claim those it can, and hand them to the handlers of their kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forebay.contract.drift.sketch import Served
from forebay.contract.errors import MissingExtra
from forebay.contract.job import JobError, JobKind
from forebay.contract.metrics.statistics import Statistics
from forebay.storage.jobs.records import ClaimedJob, Finished
from forebay.worker.child.kinds import HANDLERS, Handler, HandlerSpec
from forebay.worker.execution.attempts import Attempts
from forebay.worker.execution.context import ChildContext
from forebay.worker.execution.summary import Summary

CLAIM_AT_ONCE = 1024  # all that a child gets at once: rows of like length are found among all of them


class Runner:
    """Runs the jobs of one child, one pool task at a time."""

    def __init__(self, context: ChildContext, specs: Mapping[JobKind, HandlerSpec] = HANDLERS) -> None:
        self._context = context
        self._specs = specs
        self._attempts = Attempts(context.jobs, context.announcer, context.page, context.metrics, context.settings)
        self._handlers: dict[HandlerSpec, Handler] = {}

    def warm(self, model: str, version: int) -> None:
        """Load a version now, so that its first job need not wait for it."""
        self._context.models.load(model, version)

    @property
    def loads(self) -> int:
        """How many models have been loaded so far."""
        return self._context.cache.loads

    def report(self) -> tuple[Statistics, tuple[Served, ...]]:
        """What was counted and sketched since this was last called, and what the cache holds."""
        counts = self._context.metrics.take(self._context.cache.sizes(), self._context.cache.budget)
        return counts, self._context.drift.take()

    def run(self, ids: Sequence[str]) -> Summary:
        """Run those of the jobs that can be claimed; each ends in the ledger, or keeps its lease if this process dies.

        The ledger decides which model a job wants: what a message says of it may be forged.
        """
        self._attempts.take_summary()  # of a pool task that failed
        for start in range(0, len(ids), CLAIM_AT_ONCE):
            if self._attempts.stopping:
                self._attempts.add(Summary(released=tuple(ids[start:])))
                break
            by_handler: dict[HandlerSpec, list[ClaimedJob]] = {}
            for job in self._attempts.claim(ids[start : start + CLAIM_AT_ONCE]):
                by_handler.setdefault(self._specs[job.kind], []).append(job)
            for spec, jobs in by_handler.items():
                self._run_claimed(spec, jobs)
        return self._attempts.take_summary()

    def _run_claimed(self, spec: HandlerSpec, claimed: Sequence[ClaimedJob]) -> None:
        if self._attempts.stopping:
            self._attempts.release_all(claimed)
            return
        try:
            if spec not in self._handlers:
                self._handlers[spec] = spec.make(self._context)
        except MissingExtra as error:
            failed = JobError("MissingExtra", str(error))
            self._attempts.finish(claimed[0], [Finished(job.id, job.attempt, error=failed) for job in claimed])
        else:
            self._handlers[spec].run(claimed, self._attempts)
