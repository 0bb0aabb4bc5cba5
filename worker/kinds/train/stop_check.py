"""Whether an attempt of a training job must stop before its trainer has ended, and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

import structlog

from forebay.contract.errors import LedgerUnavailable
from forebay.storage.jobs.records import ClaimedJob
from forebay.worker.execution.context import ChildContext

log = structlog.get_logger()

ASK_EVERY_S = 1.0


class StopReason(StrEnum):
    """Why a trainer is ended by its worker."""

    WORKER_STOPS = "the worker stops"
    CANCELED = "a user canceled the job"
    LEASE_LOST = "the lease was lost"
    SILENT = "nothing was heard of it"
    RUN_ENDED = "the run has ended"  # of a node job
    PEER_LOST = "another machine of the run was lost"
    PEER_LEFT = "another machine of the run stopped"
    YIELDS = "an older run waits for machines too"
    TOO_FEW_NODES = "not all machines came"
    PRUNED = "the other trials of its tune do better"


class StopCheck:
    """Asks the ledger once a second, and when the parent has doubts about a lease."""

    def __init__(
        self,
        context: ChildContext,
        job: ClaimedJob,
        further: Callable[[], StopReason | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`further` is asked after the ledger, and may give a reason of its own."""
        self._page, self._jobs, self._worker = context.page, context.jobs, context.settings.claimant
        self._job, self._further, self._clock = job, further, clock
        self._asked_at = clock()
        self._unanswered = False

    def reason(self) -> StopReason | None:
        """Why it must stop now, if it must."""
        if self._page.stopping:
            return StopReason.WORKER_STOPS
        if self._page.doubted() or self._clock() - self._asked_at >= ASK_EVERY_S:
            self._asked_at = self._clock()
            return self._ask()
        return None

    def _ask(self) -> StopReason | None:
        job = self._job
        try:
            if self._jobs.queries.attempts([job.id]).get(job.id) != job.attempt:
                return StopReason.LEASE_LOST
            if job.id in self._jobs.queries.cancel_requested(self._worker):
                return StopReason.CANCELED
            reason = self._further()
        except LedgerUnavailable as error:  # the training itself needs no ledger
            if not self._unanswered:
                log.warning("cancel_unknown", worker=self._worker, error=str(error))
            self._unanswered = True
            return None
        self._unanswered = False
        return reason
