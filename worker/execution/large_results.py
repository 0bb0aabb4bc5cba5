"""Results that need a blob: one that finds no room in the store waits beside the child's further jobs, and holds up none."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from forebay.contract.errors import BlobStoreFull, ForebayError, Transient
from forebay.contract.job import Transition
from forebay.contract.wire.codec import Parts
from forebay.storage.blobs.payloads import Payloads, size_of
from forebay.storage.jobs.records import ClaimedJob, Finished, Postponed
from forebay.worker.execution.attempts import Attempts, outcome_of_error
from forebay.worker.execution.summary import Summary

log = structlog.get_logger()

MAX_WAITING, MAX_WAITING_BYTES = 16, 256 << 20  # at once; the jobs of further results are postponed, and run again
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0  # before a full store is tried again
TICK_S = 0.1  # between two looks whether this process has to stop


@dataclass(frozen=True, slots=True, eq=False)
class LargeResult:
    """The encoded result of a claimed job, too large for its row, in parts."""

    job: ClaimedJob
    parts: Parts

    @property
    def nbytes(self) -> int:
        return size_of(self.parts)


class LargeResults:
    """Stores large results and ends their jobs. Thread-safe.

    What waits is held as a shard is: the parent renews its lease, and gives it back when the worker stops.
    """

    def __init__(self, payloads: Payloads, attempts: Attempts, timeout_s: float) -> None:
        """A result waits up to `timeout_s` seconds for room; its job is then tried again, or fails."""
        self._payloads, self._attempts, self._timeout_s = payloads, attempts, timeout_s
        self._waiting: dict[LargeResult, float] = {}  # since when
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def store(self, results: Sequence[LargeResult]) -> Summary:
        """Store results and end their jobs, in one commit; what became of them. Those that wait are counted later."""
        outcomes: list[Finished | Postponed] = []
        for result in results:
            try:
                outcomes.append(self._put(result))
            except BlobStoreFull as error:
                if not self._keep(result):
                    outcomes.append(outcome_of_error(result.job, error, passing=True, counted=False))
        summary = self._attempts.finish(results[0].job, outcomes) if outcomes else Summary()
        ended = {outcome.id for outcome in outcomes}
        for result in results:
            if result.job.id in ended:  # it may have been held before it came here
                self._attempts.let_go(result.job)
        return summary

    def _put(self, result: LargeResult) -> Finished | Postponed:
        job = result.job
        try:
            return Finished(job.id, job.attempt, *self._payloads.store(*result.parts))
        except BlobStoreFull:
            raise
        except Exception as error:  # noqa: BLE001 - a result that cannot be stored fails its job alone
            return outcome_of_error(job, error, passing=isinstance(error, Transient))

    def _keep(self, result: LargeResult) -> bool:
        size = result.nbytes
        with self._lock:
            total = sum(waiting.nbytes for waiting in self._waiting) + size
            if len(self._waiting) >= MAX_WAITING or total > MAX_WAITING_BYTES:
                return False
            result = LargeResult(result.job, [b"".join(result.parts)])  # views would hold a whole batch's arrays
            self._attempts.hold(result.job)
            self._waiting[result] = time.monotonic()
            if self._thread is None:
                log.warning("blobs_full", job=result.job.id, bytes=size, outage_timeout_s=self._timeout_s)
                self._thread = threading.Thread(target=self._run, name="large-results", daemon=True)
                self._thread.start()
            return True

    def _run(self) -> None:
        wait_s = FIRST_WAIT_S
        while self._sleep(random.uniform(0.5, 1.0) * wait_s):
            stored = self._try_all()
            wait_s = FIRST_WAIT_S if stored else min(2 * wait_s, LONGEST_WAIT_S)
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return

    def _sleep(self, seconds: float) -> bool:
        """Whether to go on then: not when this process has to stop. What waits stays held, so that the parent finds it."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._attempts.stopping:
            time.sleep(TICK_S)
        return not self._attempts.stopping

    def _try_all(self) -> bool:
        """Try the smallest first, and none that is larger than what has found no room. Whether one is done."""
        with self._lock:
            waiting = sorted(self._waiting.items(), key=lambda item: item[0].nbytes)
        full: BlobStoreFull | None = None
        done = False
        try:
            lost = self._attempts.find_lost((result.job for result, _ in waiting), ask=True)
            canceled = self._attempts.cancel_requested()
            for result, since in waiting:
                job, waited_s = result.job, time.monotonic() - since
                outcome: Finished | Postponed | None = None
                if job.id in canceled:
                    outcome = Finished(job.id, job.attempt, ending=Transition.CANCEL)
                elif job.id not in lost and full is None:
                    try:
                        outcome = self._put(result)
                    except BlobStoreFull as error:
                        full = error
                if full is not None and outcome is None and waited_s > self._timeout_s:
                    outcome = outcome_of_error(job, full, passing=True)
                if outcome is not None or job.id in lost:
                    self._settle(result, outcome, waited_s)
                    done = True
        except ForebayError as error:  # the ledger is away
            log.warning("large_results_delayed", error=str(error))
        return done

    def _settle(self, result: LargeResult, outcome: Finished | Postponed | None, waited_s: float) -> None:
        """End the job, unless it has been lost."""
        if outcome is not None:
            summary = self._attempts.finish(result.job, [outcome], waited_s)
            log.info("large_result_done", job=result.job.id, waited_s=round(waited_s, 1), succeeded=summary.succeeded)
        with self._lock:
            del self._waiting[result]
        self._attempts.let_go(result.job)
