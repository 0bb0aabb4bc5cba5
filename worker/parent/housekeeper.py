"""The parent's threads beside Celery's loop: one says that the worker lives and renews leases, one sweeps and reports losses.

Celery's loop must not wait for the ledger, and a heartbeat must not wait for a sweep that a half-dead Redis holds up: its
leases would lapse. An outage is logged and tried again at the next beat.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import structlog

from forebay.contract.errors import ForebayError
from forebay.contract.settings import Settings
from forebay.storage.jobs.store import JobStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.celery.feeder import InFlight
from forebay.worker.parent.children import Children, Death
from forebay.worker.parent.metrics import WorkerMetrics
from forebay.worker.parent.sweeper import Sweeper

log = structlog.get_logger()

STOP_S = 30  # for a sweep that is under way when the worker stops
SEND_DUE_EVERY_S = 1.0  # what waits after a transient error is sent at most this long after its time has come
FORGET_AFTER_S = 3600  # a worker that was killed stays listed as silent this long


class Housekeeper:
    """Two threads. `start` it before the first job, `stop` it after the last."""

    def __init__(
        self,
        settings: Settings,
        queues: tuple[str, ...],
        store: JobStore,
        workers: WorkerRegistry,
        sweeper: Sweeper,
        children: Children,
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._store = store
        self._workers = workers
        self._sweeper = sweeper
        self._children = children
        self._reports: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._steadiness = Steadiness(settings.heartbeat_s)
        self._threads = [
            threading.Thread(target=self._beat_on, name="heartbeat", daemon=True),
            threading.Thread(target=self._sweep_on, name="sweeper", daemon=True),
        ]
        self._started = store.ledger.now()
        self.in_flight: InFlight | None = None
        self.metrics = WorkerMetrics(settings.device)
        self.turned_at = time.monotonic()  # when the heartbeat last came round
        self.each_sweep: Callable[[], object] = lambda: None

    def start(self) -> None:
        """Beat once, so that the worker is known before it takes a job, and go on in the background."""
        self._beat()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being done, say that the worker has stopped, and end."""
        self._stopped.set()
        self._reports.put(None)
        for thread in self._threads:
            thread.join(timeout=STOP_S)
        self._try("leave", lambda: self._workers.leave(self._settings.worker_name))

    def child_lost(self, ids: list[str], reason: str, pid: int) -> None:
        """A child died with these jobs; called from Celery's loop, returns at once."""
        self._reports.put(lambda: self._report_lost(ids, reason, pid))

    def jobs_left(self, ids: list[str]) -> None:
        """These jobs were given back unrun and have no message any more; returns at once."""
        self._reports.put(lambda: self._report_left(ids))

    def _beat_on(self) -> None:
        while not self._stopped.wait(self._settings.heartbeat_s):
            self._beat()

    def _beat(self) -> None:
        settings, started = self._settings, time.monotonic()
        held = [*(self.in_flight.ids() if self.in_flight else []), *self._children.held()]
        stats = self._statistics()
        renewed = not held or self._try("renew", lambda: self._renew(held))
        said = self._try(
            "beat",
            lambda: self._workers.beat(
                settings.worker_name, socket.gethostname(), settings.device, self._queues, self._started, stats
            ),
        )
        self.turned_at = time.monotonic()
        if renewed and said:
            self._steadiness.beaten(started, time.monotonic())

    def _renew(self, held: list[str]) -> None:
        kept = self._store.renew(held, self._settings.worker_name, self._settings.lease_s)
        if len(kept) < len(set(held)):  # mostly jobs that have ended or are not claimed yet: the child looks
            self._children.doubt_leases()

    def _sweep_on(self) -> None:
        next_sweep = time.monotonic()
        while True:
            try:
                report = self._reports.get(timeout=max(0.0, min(SEND_DUE_EVERY_S, next_sweep - time.monotonic())))
                if report is None:
                    return
                report()
            except queue.Empty:
                if time.monotonic() < next_sweep:
                    self._try("send_due", self._send_due)
                    continue
                self._try("sweep", self._sweep)
                self._try("forget", lambda: self._workers.forget(FORGET_AFTER_S))
                self._try("listen", self.each_sweep)
                next_sweep = time.monotonic() + self._settings.sweep_s

    def _sweep(self) -> None:
        for action, jobs in asdict(self._sweeper.once(judge=self._steadiness.holds(time.monotonic()))).items():
            self.metrics.count("sweeper_jobs_total", action, by=jobs)

    def _send_due(self) -> None:
        self.metrics.count("sweeper_jobs_total", "due", by=self._sweeper.send_due())

    def _statistics(self) -> str:
        try:
            return self.metrics.as_json()
        except Exception:  # figures that cannot be had must not keep a worker from saying that it lives
            log.exception("housekeeping_failed", what="statistics", worker=self._settings.worker_name)
            return "{}"

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def _report_lost(self, ids: list[str], reason: str, pid: int) -> None:
        self.metrics.count("child_deaths_total")
        death = self._children.death(pid, reason)
        if not self._try("lost", lambda: self._tell(death, ids)):
            log.error("lost_unreported", jobs=len(ids), reason=reason)  # their leases lapse, and a sweep frees them

    def _tell(self, death: Death, ids: list[str]) -> None:
        held, worker = self._held_by(death, ids), self._settings.worker_name
        if death.given_up:
            self._sweeper.given_up(held, worker, death.evidence)
        else:
            self._sweeper.lost(held, worker, death.evidence, suspect=not death.stuck)

    def _held_by(self, death: Death, ids: list[str]) -> list[str]:
        """What the dead child may have held: what it was given, and the shards that it had claimed itself.

        Another child of this worker may hold what this one has given back meanwhile: that is not touched.
        """
        attempts = self._store.attempts(list(death.held)) if death.held else {}
        own = [job for job, attempt in death.held.items() if attempts.get(job) == attempt]
        others = self._children.held()
        return list(dict.fromkeys([*own, *(id for id in ids if id not in others)]))

    def _report_left(self, ids: list[str]) -> None:
        self._try("left", lambda: self._sweeper.left(ids))

    def _try(self, what: str, action: Callable[[], object]) -> bool:
        try:
            action()
        except ForebayError as error:
            log.warning("housekeeping_failed", what=what, worker=self._settings.worker_name, error=str(error))
        except Exception:
            # A thread that ends here would leave a worker whose leases lapse while it works.
            log.exception("housekeeping_failed", what=what, worker=self._settings.worker_name)
        else:
            return True
        self.metrics.count("housekeeping_failures_total", what)
        return False


class Steadiness:
    """Whether this process may say that others have let their leases lapse.

    While nobody can write to the ledger, no lease is renewed, and afterwards all look lapsed. Who has just missed beats of
    its own waits two more of them before it frees anything, so that every living worker has renewed by then.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._last: float | None = None
        self._unsteady_until = 0.0

    def beaten(self, begun: float, done: float) -> None:
        """A beat went through; when it was begun and done."""
        late = self._last is not None and done - self._last > 2.5 * self._heartbeat_s
        if late or done - begun > self._heartbeat_s:
            self._unsteady_until = done + 2 * self._heartbeat_s
        self._last = done

    def holds(self, now: float) -> bool:
        """Whether the beats have gone through as they should."""
        missing = self._last is None or now - self._last > 2.5 * self._heartbeat_s
        return not missing and now >= self._unsteady_until
