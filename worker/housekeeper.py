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
from forebay.storage.jobs import JobStore
from forebay.storage.workers import WorkerRegistry
from forebay.worker.feeder import InFlight
from forebay.worker.meter import Meter
from forebay.worker.sweeper import Sweeper

log = structlog.get_logger()

STOP_S = 30  # for a sweep that is under way when the worker stops
FORGET_AFTER_S = 3600  # a worker that was killed stays listed as silent this long


class Housekeeper:
    """Two threads. `start` it before the first job, `stop` it after the last."""

    def __init__(
        self, settings: Settings, queues: tuple[str, ...], store: JobStore, workers: WorkerRegistry, sweeper: Sweeper
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._store = store
        self._workers = workers
        self._sweeper = sweeper
        self._lost: queue.SimpleQueue[tuple[list[str], str] | None] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._beat_on, name="heartbeat", daemon=True),
            threading.Thread(target=self._sweep_on, name="sweeper", daemon=True),
        ]
        self.in_flight: InFlight | None = None
        self.meter = Meter(settings.device)
        self.turned_at = time.monotonic()  # when the heartbeat last came round

    def start(self) -> None:
        """Beat once, so that the worker is known before it takes a job, and go on in the background."""
        self._beat()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Finish what is being done, say that the worker has stopped, and end."""
        self._stopped.set()
        self._lost.put(None)
        for thread in self._threads:
            thread.join(timeout=STOP_S)
        self._try("leave", lambda: self._workers.leave(self._settings.worker_name))

    def child_lost(self, ids: list[str], reason: str) -> None:
        """A child died with these jobs; called from Celery's loop, returns at once."""
        self._lost.put((ids, reason))

    def _beat_on(self) -> None:
        while not self._stopped.wait(self._settings.heartbeat_s):
            self._beat()

    def _beat(self) -> None:
        settings = self._settings
        held = self.in_flight.ids() if self.in_flight else []
        stats = self._statistics()
        if held:
            self._try("renew", lambda: self._store.renew(held, settings.worker_name, settings.lease_s))
        self._try(
            "beat",
            lambda: self._workers.beat(
                settings.worker_name, socket.gethostname(), settings.device, self._queues, stats
            ),
        )
        self.turned_at = time.monotonic()

    def _statistics(self) -> str:
        try:
            return self.meter.as_json()
        except Exception:  # figures that cannot be had must not keep a worker from saying that it lives
            log.exception("housekeeping_failed", what="statistics", worker=self._settings.worker_name)
            return "{}"

    def _sweep_on(self) -> None:
        next_sweep = time.monotonic()
        while True:
            try:
                item = self._lost.get(timeout=max(0.0, next_sweep - time.monotonic()))
                if item is None:
                    return
                self._report(*item)
            except queue.Empty:
                self._try("sweep", self._sweep)
                self._try("forget", lambda: self._workers.forget(FORGET_AFTER_S))
                next_sweep = time.monotonic() + self._settings.sweep_s

    def _sweep(self) -> None:
        for action, jobs in asdict(self._sweeper.once()).items():
            self.meter.count("sweeper_jobs_total", action, by=jobs)

    @property
    def alive(self) -> bool:
        """Whether both threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def _report(self, ids: list[str], reason: str) -> None:
        self.meter.count("child_deaths_total")
        if not self._try("lost", lambda: self._sweeper.lost(ids, self._settings.worker_name, reason)):
            log.error("lost_unreported", jobs=len(ids), reason=reason)  # their leases lapse, and a sweep frees them

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
        self.meter.count("housekeeping_failures_total", what)
        return False
