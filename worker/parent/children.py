"""Watches the children: reads their stderr, kills one whose step takes too long, and ends all when a stop takes too long.

One thread, beside Celery's loop, which must wait for nothing. Every line of a child goes on to this process's stderr; the last
ones are kept, so that a death can be explained by them.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from forebay.contract.settings import Settings
from forebay.worker.last_lines import MAX_LINE, last_lines
from forebay.worker.parent.page_server import PageServer
from forebay.worker.shared_page import LIMITS, STORE, WATCHED, SharedPage

log = structlog.get_logger()

TICK_S = 0.2
LINES_KEPT = 60
LAST_LINES_S = 1.0  # for what a dead child wrote to be read
DEAD_KEPT = 64
EXIT_S = 10  # from the end of the children to this process's own, when a stop hangs
READ_BYTES = 1 << 16


@dataclass(slots=True)
class Child:
    pid: int
    connection: socket.socket
    page: SharedPage
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))
    partial_line: bytes = b""
    gone: threading.Event = field(default_factory=threading.Event)
    kill_reason: str | None = None
    at_shutdown: bool = False  # killed because the worker had to stop
    store_timeout: bool = False  # killed because a store did not answer


@dataclass(frozen=True, slots=True)
class ChildDeath:
    """What is known of a child's end, and which jobs it held that it had claimed itself, with their attempts.

    Of one that was killed `at_shutdown` or for a `store_timeout` the jobs are not to blame.
    """

    evidence: str
    at_shutdown: bool = False
    store_timeout: bool = False
    held: Mapping[str, int] = field(default_factory=dict)


class ChildMonitor:
    """All children of this process. `start` it before Celery's pool, `stop` it after."""

    def __init__(self, settings: Settings, supervisor: int | None = None) -> None:
        """`supervisor` is the process without which this one has to stop."""
        self._worker, self._grace_s = settings.worker_name, settings.shutdown_grace_s
        self._supervisor = supervisor
        self._children: dict[int, Child] = {}
        self._server = PageServer(settings.home)
        self._selector = selectors.DefaultSelector()
        self._thread = threading.Thread(target=self._run, name="children", daemon=True)
        self._ended = False
        self._kill_at: float | None = None  # when the children that still work are killed
        self._lenient_until = 0.0

    def start(self) -> None:
        """Be there before the first child looks for its parent; PageRefused when they cannot meet."""
        if WATCHED:
            self._selector.register(self._server.listen(), selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and end."""
        self._ended = True
        self._thread.join(5)
        self._server.close()

    def shut_down(self) -> None:
        """This process was told to stop: no child may begin anything. Safe in a signal handler."""
        if self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace_s
        for child in list(self._children.values()):
            child.page.stop()

    def doubt_leases(self) -> None:
        """Some lease was not renewed: whichever child holds the job is to look into the ledger."""
        for child in list(self._children.values()):
            child.page.doubt()

    def death(self, pid: int, message: str) -> ChildDeath:
        """What to say of a child that has died; `message` is Celery's. May wait a moment for the child's last lines."""
        child = self._children.get(pid)
        if child is None:
            return ChildDeath(f"{exit_reason(message)}, child {pid}")
        child.gone.wait(LAST_LINES_S)
        reason = child.kill_reason or exit_reason(message)
        lines = last_lines(list(child.lines))
        evidence = f"{reason}, child {pid} of {self._worker}" + (f"; its last lines:\n{lines}" if lines else "")
        return ChildDeath(evidence, child.at_shutdown, child.store_timeout, child.page.held())

    def ledger_wait_s(self) -> float:
        """How long the call to the ledger has been waiting that waits longest, of the living children's."""
        return max((child.page.ledger_wait_s() for child in self._working()), default=0.0)

    def held(self) -> dict[str, int]:
        """The jobs that the living children have claimed themselves and hold, with their attempts."""
        return self._held(child for child in list(self._children.values()) if not child.gone.is_set())

    def left(self) -> dict[str, int]:
        """The same of all children, living or not: when they have stopped, what they have left."""
        return self._held(list(self._children.values()))

    def _held(self, children: Iterable[Child]) -> dict[str, int]:
        return {job: attempt for child in children for job, attempt in child.page.held().items()}

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ended:
            for key, _ in self._selector.select(TICK_S):
                try:
                    if key.data is None:  # the server's socket
                        self._accept()
                    else:
                        self._read(key.data)
                except Exception:
                    log.exception("child_output_unread", worker=self._worker)
            now = time.monotonic()
            if now - last > 1.0 + TICK_S:  # this process was frozen, and its children perhaps too
                self._lenient_until = now + (now - last)
            last = now
            self._check(now)

    def _accept(self) -> None:
        accepted = self._server.accept()
        if accepted is None:
            return
        child = Child(*accepted)
        self._children[child.pid] = child
        for dead in [c.pid for c in self._children.values() if c.gone.is_set()][:-DEAD_KEPT]:
            del self._children[dead]
        if self._kill_at is not None:
            child.page.stop()
        self._selector.register(child.connection, selectors.EVENT_READ, child)

    def _read(self, child: Child) -> None:
        try:
            data = child.connection.recv(READ_BYTES)
        except OSError:
            data = b""
        *whole, child.partial_line = (child.partial_line + data).split(b"\n")
        if (not data or len(child.partial_line) > READ_BYTES) and child.partial_line:
            whole, child.partial_line = [*whole, child.partial_line], b""
        if whole:
            child.lines.extend(line[:MAX_LINE].decode("utf-8", "replace") for line in whole if line.strip())
            _write_stderr(b"".join(line + b"\n" for line in whole))
        if not data:
            self._selector.unregister(child.connection)
            child.connection.close()
            child.gone.set()

    def _working(self) -> list[Child]:
        return [
            child for child in list(self._children.values()) if not child.gone.is_set() and child.kill_reason is None
        ]

    def _check(self, now: float) -> None:
        for child in self._working() if now >= self._lenient_until else ():
            overdue = child.page.overdue()
            if overdue is not None:
                child.store_timeout = overdue.limit == LIMITS[STORE]
                self._kill(child, f"{overdue.limit} of {overdue.seconds:g} s exceeded")
        if self._kill_at is not None and now > self._kill_at:
            for child in self._working():
                child.at_shutdown = True
                self._kill(child, f"not done within shutdown_grace_s of {self._grace_s:g} s")
            if now > self._kill_at + EXIT_S:
                log.error("shutdown_hung", worker=self._worker, grace_s=self._grace_s)
                os._exit(1)
        if self._supervisor is not None and os.getppid() != self._supervisor:
            log.error("supervisor_gone", worker=self._worker, supervisor=self._supervisor)
            self._supervisor = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _kill(self, child: Child, reason: str) -> None:
        child.kill_reason = f"{reason}: killed by its worker (SIGKILL)"
        log.error("child_killed", worker=self._worker, pid=child.pid, reason=child.kill_reason)
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)


def exit_reason(message: str) -> str:
    """Celery's message without what it says of its own bookkeeping: `signal 9 (SIGKILL)`, `exitcode 70`."""
    found = re.search(r"Worker exited prematurely: (.*?)\.? Job: .*", message, flags=re.DOTALL)
    return found[1] if found else message


def _write_stderr(data: bytes) -> None:
    with suppress(OSError):  # nobody reads this process's stderr any more
        while data:
            data = data[os.write(2, data) :]
