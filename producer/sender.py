"""Sending committed jobs to Redis: at once when it is quiet, gathered for a moment under load.

A message costs both ends far more than one more id in it. So a submit after a pause sends its own jobs, and what is
submitted within the next GATHER_S is left to a thread, which sends it together. A Redis that is down is not an error here:
the ledger has the jobs, and the sweeper sends what this could not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import structlog

from forebay.contract.errors import ForebayError
from forebay.contract.wire.celery_app import SEND_TIMEOUT_S
from forebay.contract.wire.dispatch import Dispatcher
from forebay.contract.wire.messages import IDS_PER_MESSAGE, BatchWait, JobMessage, RoutedJob, job_messages
from forebay.storage.jobs.store import JobStore

log = structlog.get_logger()

GATHER_S = 0.003
HUNG_S = 5.0  # a Redis that hung is not tried again for so long: each try would hold up a submit
LINGER_S = 0.05  # the gathering thread ends after so long without work, and so never keeps a program from ending
MIN_IDS = 32  # below this, a message costs more than the balance between workers it buys
# Of a submit that takes several messages the first would go to an idle child alone, as a batch unsorted and with nothing
# prepared beside it. The others are a moment behind: a worker waits for so many of them, and for no longer than that.
FIRST_MESSAGES, FIRST_MESSAGES_S = 4, 0.004


@dataclass(frozen=True, slots=True)
class PendingSend:
    """Jobs of one submit that are committed and not yet sent, how many ids each message takes, and what it waits for."""

    routed_jobs: Sequence[RoutedJob]
    ids_per_message: int
    wait: BatchWait | None

    @classmethod
    def of(cls, routed_jobs: Sequence[RoutedJob], batch_size: int, wait_s: float) -> PendingSend:
        """For a model that runs `batch_size` rows at once: a message carries about that many ids, so that two workers share
        a small backlog. A worker holds the messages back for up to `wait_s` seconds for a batch to fill.
        """  # fmt: skip
        size = min(max(batch_size, MIN_IDS), IDS_PER_MESSAGE)
        wait = None
        if wait_s:
            wait = BatchWait(wait_s, batch_size)
        elif len(routed_jobs) > size:
            wait = BatchWait(FIRST_MESSAGES_S, min(len(routed_jobs), FIRST_MESSAGES * size))
        return cls(routed_jobs, size, wait)


class Sender:
    """Sends what was committed. Thread-safe."""

    def __init__(self, store: JobStore, dispatcher: Dispatcher) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._pending: list[PendingSend] = []
        self._changed = threading.Condition()
        self._sending = False
        self._thread: threading.Thread | None = None
        self._quiet_at = 0.0
        self._last = ""
        self._hung_until = 0.0

    def send(self, pending: PendingSend) -> None:
        """Send the jobs, now or within a few milliseconds. Never raises."""
        if time.monotonic() < self._hung_until:
            self.mark_unsent([job.id for job in pending.routed_jobs], "it has just timed out")
            return
        with self._changed:
            self._pending.append(pending)
            if self._sending or time.monotonic() < self._quiet_at:
                self._wake_thread()
                return
            batch = self._take_pending()
        self._send_all(batch)

    def note_ended(self, ids: Collection[str]) -> None:
        """These jobs have ended. When what was sent last is among them, the workers wait for more: nothing is gathered then."""
        if self._last in ids:
            self._quiet_at = 0.0

    def mark_unsent(self, ids: list[str], reason: str) -> None:
        """Have the next sweep send these jobs, which Redis did not take. Never raises: they are durable."""
        log.warning("send_failed", jobs=len(ids), error=reason, next="the sweeper sends them when Redis is back")
        try:
            self._store.mark_unsent(ids)
        except ForebayError as failure:  # the sweeper finds them a little later, by their age
            log.warning("ledger_unavailable", jobs=len(ids), error=str(failure))

    def close(self) -> None:
        """Return once everything has been sent."""
        with self._changed:
            thread = self._thread
            self._changed.notify()
        if thread is not None:
            thread.join()

    def _wake_thread(self) -> None:
        if self._thread is None:  # no daemon: a program that ends without close() waits for it, a moment
            self._thread = threading.Thread(target=self._gather, name="forebay-send", daemon=False)
            self._thread.start()
        elif len(self._pending) == 1:
            self._changed.notify()

    def _gather(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: self._pending, LINGER_S):
                    self._thread = None
                    return
            time.sleep(max(0.0, self._quiet_at - time.monotonic()))
            with self._changed:
                self._changed.wait_for(lambda: not self._sending)
                batch = self._take_pending() if self._pending else []
            if batch:
                self._send_all(batch)

    def _take_pending(self) -> list[PendingSend]:
        batch, self._pending = self._pending, []
        self._sending = True
        return batch

    def _send_all(self, batch: list[PendingSend]) -> None:
        messages = list(_messages(batch))
        self._last = messages[-1].args.ids[-1]
        started = time.monotonic()
        try:
            self._dispatcher.send(messages)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the jobs are durable and the sweeper sends them
            if time.monotonic() - started > SEND_TIMEOUT_S / 2:
                self._hung_until = time.monotonic() + HUNG_S
            self.mark_unsent([id for message in messages for id in message.args.ids], str(error))
        finally:
            with self._changed:
                self._sending = False
                self._quiet_at = time.monotonic() + GATHER_S
                self._changed.notify()


def _messages(batch: Iterable[PendingSend]) -> Iterable[JobMessage]:
    alike: dict[tuple[int, BatchWait | None], list[RoutedJob]] = {}
    for pending in batch:
        alike.setdefault((pending.ids_per_message, pending.wait), []).extend(pending.routed_jobs)
    for (size, wait), routed_jobs in alike.items():
        yield from job_messages(routed_jobs, size, wait)
