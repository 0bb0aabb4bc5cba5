"""The thread of a server that takes batches on, whichever server they were sent to."""

from __future__ import annotations

import secrets
import threading
import time

import structlog

from forebay.api.openai.batch_steps import BatchSteps, HeldBatch
from forebay.contract.errors import ForebayError, QueueFull
from forebay.producer.session import Session
from forebay.storage.request_batches import BatchTaken, RequestBatches

log = structlog.get_logger()

AT_ONCE = 16  # batches that one server holds
OPEN_S, IDLE_S = 0.25, 2.0  # between two looks, while this server holds a batch and while it holds none
RETRY_S, FULL_S = 5.0, 1.0  # after a step that met an error, or a full queue
DROP_S = 600.0  # between two looks for batches that are older than retention keeps them
STOP_S = 15.0


class Stopped(Exception):
    """The server is being stopped."""


class BatchLoop:
    """Takes on the batches that it holds, one after the other, a bounded piece of work at a time.

    `wake` is set when there is a batch to look at. A server that dies leaves its batches to whoever looks next once its leases
    have lapsed: what a step has not written is done again, and comes to the same.
    """

    def __init__(self, session: Session, wake: threading.Event) -> None:
        self._wake, self._stop = wake, threading.Event()
        self._store = RequestBatches(session.ledger)
        self._steps = BatchSteps(session, self._store, self._check_stop)
        self._lease_s, self._retention_s = session.settings.lease_s, session.settings.retention_s
        self._holder = secrets.token_hex(8)
        self._retry_at: dict[str, float] = {}
        self._drop_at = 0.0
        self._thread = threading.Thread(target=self._run, name="forebay-batches", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the line that is under way, and leave the batches to others at once."""
        self._stop.set()
        self._wake.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            pause = IDLE_S
            try:
                pause = self._turn()
            except Stopped:
                break
            except ForebayError as error:
                log.warning("request_batches_wait", error=f"{type(error).__name__}: {error}")
            except Exception:
                log.exception("request_batches_failed")
            self._wake.wait(pause)
        try:
            self._store.give_back(self._holder)
        except ForebayError as error:
            log.warning("request_batches_wait", error=f"{type(error).__name__}: {error}")

    def _turn(self) -> float:
        """A step of each batch; how long to wait for the next turn."""
        if time.monotonic() >= self._drop_at:
            self._store.drop_ended(self._retention_s)
            self._drop_at = time.monotonic() + DROP_S
        taken = self._store.take(self._holder, self._lease_s, AT_ONCE)
        held = [HeldBatch(self._store, stored, self._holder, self._lease_s) for stored in taken]
        self._retry_at = {one.batch.id: at for one in held if (at := self._retry_at.get(one.batch.id)) is not None}
        moved = [self._advance(one) for one in held if time.monotonic() >= self._retry_at.get(one.batch.id, 0.0)]
        return 0.0 if any(moved) else OPEN_S if held else IDLE_S

    def _advance(self, held: HeldBatch) -> bool:
        retry_s = RETRY_S
        try:
            return self._steps.advance(held)
        except BatchTaken:
            self._steps.forget(held.batch.id)
            return True
        except Stopped:
            raise
        except ForebayError as error:
            if isinstance(error, QueueFull):
                retry_s = FULL_S
            else:  # a read that met an error does not go on
                self._steps.forget(held.batch.id)
            log.warning("request_batch_waits", batch=held.batch.id, error=f"{type(error).__name__}: {error}")
        except Exception:
            log.exception("request_batch_failed", batch=held.batch.id)
            self._steps.forget(held.batch.id)
        self._retry_at[held.batch.id] = time.monotonic() + retry_s
        return False

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Stopped
