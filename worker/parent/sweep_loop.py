"""The thread that sweeps, and that settles what children left: jobs of one that died, and jobs given back unrun."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import structlog

from forebay.contract.errors import LedgerUnavailable, OutcomeUnknown
from forebay.storage.models.drift import DriftStore
from forebay.worker.parent.children import ChildDeath
from forebay.worker.parent.context import ParentContext
from forebay.worker.parent.heartbeat import Heartbeat
from forebay.worker.parent.sweeper import Sweeper

log = structlog.get_logger()

JOIN_S = 30.0  # for a sweep that is under way when the worker stops
SEND_DUE_EVERY_S = 1.0  # what waits after a transient error is sent at most this long after its time has come
FORGET_AFTER_S = 3600  # a worker that was killed stays listed as silent this long


class SweepLoop:
    """`start` it before the first job, `stop` it after the last; `after_sweep` is called after each sweep."""

    def __init__(self, context: ParentContext, sweeper: Sweeper, heartbeat: Heartbeat) -> None:
        self._context, self._sweeper, self._heartbeat = context, sweeper, heartbeat
        self._drift = DriftStore(context.store.ledger)
        self._reports: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self.after_sweep: Callable[[], object] = lambda: None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what was reported and what is being done, give back what the children, which have ended, still held, and end."""
        self._reports.put(None)
        self._thread.join(timeout=JOIN_S)
        self._context.tolerate("drift", self._write_served)
        self._context.tolerate(
            "give_back",
            lambda: self._sweeper.give_back(self._context.children.left(), self._context.settings.claimant),
        )

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def child_lost(self, ids: list[str], reason: str, pid: int) -> None:
        """The child `pid` died with these jobs. Called from Celery's loop: returns at once, as does `jobs_returned`."""
        self._reports.put(lambda: self._settle_death(ids, reason, pid))

    def jobs_returned(self, ids: list[str]) -> None:
        """These jobs were given back unrun and have no message any more."""
        self._reports.put(lambda: self._context.tolerate("resend", lambda: self._sweeper.send_queued(ids)))

    def _run(self) -> None:
        tolerate = self._context.tolerate
        next_sweep = time.monotonic()
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, min(SEND_DUE_EVERY_S, next_sweep - time.monotonic())))
            except queue.Empty:
                if time.monotonic() < next_sweep:
                    tolerate("send_due", self._send_due)
                    continue
                tolerate("sweep", self._sweep)
                tolerate("drift", self._write_served)
                tolerate("forget", lambda: self._context.workers.remove_silent(FORGET_AFTER_S))
                tolerate("watchdog", self.after_sweep)
                next_sweep = time.monotonic() + self._context.settings.sweep_s
            else:
                if report is None:
                    return
                report()

    def _sweep(self) -> None:
        for action, jobs in asdict(self._sweeper.sweep(free_lapsed=self._heartbeat.is_steady())).items():
            self._context.metrics.count("sweeper_jobs_total", action, by=jobs)

    def _write_served(self) -> None:
        """Add what the children have sketched to the ledger. Whether that was done is not always known: then it is dropped, for
        what is added twice would mislead, and what is missing is a sample the smaller.
        """  # fmt: skip
        if not (served := self._context.metrics.take_served()):
            return
        try:
            self._drift.add(served)
        except OutcomeUnknown:
            raise
        except LedgerUnavailable:
            self._context.metrics.add_served(served)
            raise

    def _send_due(self) -> None:
        self._context.metrics.count("sweeper_jobs_total", "due", by=self._sweeper.send_due())

    def _settle_death(self, ids: list[str], reason: str, pid: int) -> None:
        self._context.metrics.count("child_deaths_total")
        death = self._context.children.death(pid, reason)
        if not self._context.tolerate("child_lost", lambda: self._settle(death, ids)):
            log.error("child_loss_unrecorded", jobs=len(ids), reason=reason)  # the leases lapse, and a sweep frees them

    def _settle(self, death: ChildDeath, ids: list[str]) -> None:
        held, worker = self._held_by(death, ids), self._context.settings.claimant
        if death.at_shutdown:
            self._sweeper.release(held, worker, death.evidence)
        else:
            self._sweeper.count_crash(held, worker, death.evidence, suspect=not death.store_timeout)

    def _held_by(self, death: ChildDeath, ids: list[str]) -> list[str]:
        """What the dead child may have held: what it was given, and the shards that it had claimed itself.

        Another child of this worker may hold what this one has given back meanwhile: that is not touched.
        """
        attempts = self._context.store.queries.attempts(list(death.held)) if death.held else {}
        own = [job for job, attempt in death.held.items() if attempts.get(job) == attempt]
        others = self._context.children.held()
        return list(dict.fromkeys([*own, *(id for id in ids if id not in others)]))
