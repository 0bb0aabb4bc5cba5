"""The heartbeat: a thread that says in the ledger that this worker lives, and renews the leases of what its children hold.

Celery's loop must not wait for the ledger, and a heartbeat must not wait for a sweep that a half-dead Redis holds up.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import structlog

from forebay.contract.runtimes import installed_runtimes
from forebay.worker.parent.context import ParentContext

log = structlog.get_logger()

JOIN_S = 30.0  # for a beat that is under way when the worker stops


class Heartbeat:
    """`start` it before the first job, `stop` it after the last. `in_flight` gives the ids that were handed to children."""

    def __init__(self, context: ParentContext, queues: tuple[str, ...], in_flight: Callable[[], list[str]]) -> None:
        self._context, self._queues, self._in_flight = context, queues, in_flight
        self._runtimes = installed_runtimes()
        self._history = HeartbeatHistory(context.settings.heartbeat_s)
        self._started_at = context.store.ledger.now()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.last_beat = time.monotonic()  # the last attempt, successful or not

    def start(self) -> None:
        """Beat once, so that the worker is known before it takes a job, and go on in the background."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and say that the worker has stopped."""
        self._stopped.set()
        self._thread.join(timeout=JOIN_S)
        self._context.tolerate("leave", lambda: self._context.workers.remove(self._context.settings.worker_name))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def is_steady(self) -> bool:
        """Whether this process may say that others have let their leases lapse."""
        return self._history.is_steady(time.monotonic())

    def _run(self) -> None:
        while not self._stopped.wait(self._context.settings.heartbeat_s):
            self._beat()

    def _beat(self) -> None:
        begun = time.monotonic()
        held = [*self._in_flight(), *self._context.children.held()]
        renewed = not held or self._context.tolerate("renew", lambda: self._renew(held))
        beaten = self._context.tolerate("beat", self._write)
        self.last_beat = time.monotonic()
        if renewed and beaten:
            self._history.add(begun, self.last_beat)

    def _renew(self, held: list[str]) -> None:
        settings = self._context.settings
        kept = self._context.store.renew(held, settings.claimant, settings.lease_s)
        if len(kept) < len(set(held)):  # mostly jobs that have ended or are not claimed yet: the child looks
            self._context.children.doubt_leases()

    def _write(self) -> None:
        settings, host = self._context.settings, socket.gethostname()
        try:
            stats = self._context.metrics.as_json()
        except Exception:  # figures that cannot be had must not keep a worker from saying that it lives
            log.exception("housekeeping_failed", what="statistics", worker=settings.worker_name)
            stats = "{}"
        self._context.workers.heartbeat(
            settings.worker_name, host, settings.device, self._queues, self._started_at, stats, self._runtimes
        )


class HeartbeatHistory:
    """Whether the beats have gone through on time.

    While nobody can write to the ledger, no lease is renewed, and afterwards all look lapsed. A process that has just missed
    beats of its own waits for two more before it frees anything, so that every living worker has renewed by then.
    """

    def __init__(self, heartbeat_s: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._last: float | None = None
        self._unsteady_until = 0.0

    def add(self, begun: float, done: float) -> None:
        """A beat went through; when it was begun and done."""
        late = self._last is not None and done - self._last > 2.5 * self._heartbeat_s
        if late or done - begun > self._heartbeat_s:
            self._unsteady_until = done + 2 * self._heartbeat_s
        self._last = done

    def is_steady(self, now: float) -> bool:
        missing = self._last is None or now - self._last > 2.5 * self._heartbeat_s
        return not missing and now >= self._unsteady_until
