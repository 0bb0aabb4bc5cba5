"""The parent's eye on its children: what they say on stderr, how long their steps take, and the end of one that hangs.

One thread, beside Celery's loop, which must wait for nothing. Every line of a child goes on to this process's stderr; the last
ones are kept, so that a death can be explained by them. Linux only: elsewhere children say what they say, and nobody looks.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import signal
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import structlog

from forebay.contract.settings import Settings, mask_password
from forebay.worker.shared_page import LIMITS, SIZE, STORE, SharedPage, page_path, remove_stale_pages

log = structlog.get_logger()

TICK_S = 0.2
KEPT_LINES, TOLD_LINES, LINE_LENGTH, EVIDENCE_LENGTH = 60, 20, 300, 4000
LAST_WORDS_S = 1.0  # for what a dead child wrote to be read
REMEMBER = 64  # dead children whose words are kept
WITHOUT_CHILDREN_S = 10  # from the end of the children to this process's own, when a stop hangs
AT_ONCE = 1 << 16


@dataclass(slots=True)
class Child:
    """One child as its parent sees it: its page, its last lines, and why it was killed if it was."""

    pid: int
    connection: socket.socket
    page: SharedPage
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_LINES))
    part: bytes = b""
    gone: threading.Event = field(default_factory=threading.Event)
    killed_for: str | None = None
    given_up: bool = False  # killed because the worker had to stop: its jobs are not to blame
    stuck: bool = False  # killed because a store did not answer


@dataclass(frozen=True, slots=True)
class Death:
    """What is known of a child's end, and which jobs it held that it had claimed itself, with their attempts.

    When it was `stuck`, waiting for a store, its jobs are no suspects.
    """

    evidence: str
    given_up: bool = False
    stuck: bool = False
    held: Mapping[str, int] = field(default_factory=dict)


class Children:
    """All children of this process. `start` it before Celery's pool, `stop` it after."""

    def __init__(self, settings: Settings, supervisor: int | None = None) -> None:
        """`supervisor` is the process without which this one has to stop."""
        self._worker, self._grace_s = settings.worker_name, settings.shutdown_grace_s
        self._supervisor = supervisor
        self._children: dict[int, Child] = {}
        self._lock = threading.Lock()
        self._selector = selectors.DefaultSelector()
        self._listener: socket.socket | None = None
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._look_on, name="children", daemon=True)
        self._ended = False
        self._stop_at: float | None = None  # when the children that still work are killed
        self._patient_until = 0.0

    def start(self) -> None:
        """Be there before the first child looks for its parent."""
        remove_stale_pages()
        try:
            self._listen()
        except OSError as error:
            log.warning("children_unseen", worker=self._worker, error=str(error))
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """Read what is left, and end."""
        self._ended = True
        self._waker.send(b"x")
        self._thread.join(5)
        shutil.rmtree(page_path(os.getpid()).parent, ignore_errors=True)

    def shut_down(self) -> None:
        """This process was told to stop: no child may begin anything. Safe in a signal handler."""
        if self._stop_at is None:
            self._stop_at = time.monotonic() + self._grace_s
        for child in list(self._children.values()):
            child.page.stop()

    @property
    def stopping(self) -> bool:
        """Whether this process was told to stop."""
        return self._stop_at is not None

    def doubt_leases(self) -> None:
        """Some lease was not renewed: whichever child holds the job is to look into the ledger."""
        for child in list(self._children.values()):
            child.page.doubt()

    def death(self, pid: int, words: str) -> Death:
        """What to say of a child that has died; `words` are Celery's. May wait a moment for the child's last lines."""
        child = self._children.get(pid)
        if child is None:
            return Death(f"{how_it_ended(words)}, child {pid}")
        child.gone.wait(LAST_WORDS_S)
        how = child.killed_for or how_it_ended(words)
        lines = last_words(list(child.lines))
        said = f"; its last lines:\n{lines}" if lines else ""
        return Death(f"{how}, child {pid} of {self._worker}{said}", child.given_up, child.stuck, child.page.held())

    def held(self) -> dict[str, int]:
        """The jobs that the living children have claimed themselves and hold, with their attempts."""
        living = [child for child in list(self._children.values()) if not child.gone.is_set()]
        return {job: attempt for child in living for job, attempt in child.page.held().items()}

    def _listen(self) -> None:
        place = page_path(os.getpid())
        with suppress(FileExistsError):
            place.parent.mkdir(mode=0o700)
        if place.parent.is_symlink() or place.parent.stat().st_uid != os.getuid():
            raise OSError(f"{place.parent} belongs to somebody else")
        place.unlink(missing_ok=True)  # of a process that had this one's number before
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(place))
        listener.listen(16)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ)

    def _look_on(self) -> None:
        last = time.monotonic()
        while not self._ended:
            for key, _ in self._selector.select(TICK_S):
                try:
                    self._hear(key)
                except Exception:
                    log.exception("child_unheard", worker=self._worker)
            now = time.monotonic()
            if now - last > 1.0 + TICK_S:  # this process was frozen, and its children perhaps too
                self._patient_until = now + (now - last)
            last = now
            self._look(now)

    def _hear(self, key: selectors.SelectorKey) -> None:
        if key.fileobj is self._listener:
            self._meet()
        elif key.fileobj is self._wake:
            self._wake.recv(64)
        else:
            self._read(key.data)

    def _meet(self) -> None:
        assert self._listener is not None  # noqa: S101 - it is what was selected
        connection, _ = self._listener.accept()
        who = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _ = struct.unpack("3i", who)
        if uid != os.getuid():
            connection.close()
            return
        memory = os.memfd_create("forebay-board")
        os.ftruncate(memory, SIZE)
        child = Child(pid, connection, SharedPage(memory))
        if self.stopping:
            child.page.stop()
        with self._lock:
            self._children[pid] = child
            for old in [c.pid for c in self._children.values() if c.gone.is_set()][:-REMEMBER]:
                del self._children[old]
        self._selector.register(connection, selectors.EVENT_READ, child)
        socket.send_fds(connection, [b"b"], [memory])
        os.close(memory)

    def _read(self, child: Child) -> None:
        try:
            data = child.connection.recv(AT_ONCE)
        except OSError:
            data = b""
        *whole, child.part = (child.part + data).split(b"\n")
        if (not data or len(child.part) > AT_ONCE) and child.part:
            whole, child.part = [*whole, child.part], b""
        if whole:
            child.lines.extend(line[:LINE_LENGTH].decode("utf-8", "replace") for line in whole if line.strip())
            _pass_on(b"".join(line + b"\n" for line in whole))
        if not data:
            self._selector.unregister(child.connection)
            child.connection.close()
            child.gone.set()

    def _look(self, now: float) -> None:
        for child in [c for c in self._children.values() if not c.gone.is_set() and c.killed_for is None]:
            if now < self._patient_until:
                continue
            overdue = child.page.overdue()
            if overdue is not None:
                child.stuck = overdue.limit == LIMITS[STORE]
                self._kill(child, f"{overdue.limit} of {overdue.seconds:g} s exceeded: killed by its worker (SIGKILL)")
        if self._stop_at is not None and now > self._stop_at:
            self._end_everything(now - self._stop_at)
        if self._supervisor is not None and os.getppid() != self._supervisor:
            log.error("supervisor_gone", worker=self._worker, supervisor=self._supervisor)
            self._supervisor = None
            os.kill(os.getpid(), signal.SIGTERM)

    def _end_everything(self, late_s: float) -> None:
        for child in [c for c in self._children.values() if not c.gone.is_set() and c.killed_for is None]:
            child.given_up = True
            self._kill(
                child, f"not done within shutdown_grace_s of {self._grace_s:g} s: killed by its worker (SIGKILL)"
            )
        if late_s > WITHOUT_CHILDREN_S:
            log.error("worker_gave_up", worker=self._worker, grace_s=self._grace_s)
            os._exit(1)

    def _kill(self, child: Child, why: str) -> None:
        child.killed_for = why
        log.error("child_killed", worker=self._worker, pid=child.pid, reason=why)
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)


def last_words(lines: list[str]) -> str:
    """The lines to tell of a dead child: the last ones, or those around the place where Python says that it was fatal."""
    fatal = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
    first = max(0, len(lines) - TOLD_LINES if fatal is None else fatal - 3)
    told = "\n".join(mask_password(line) for line in lines[first : first + TOLD_LINES])
    return told[-EVIDENCE_LENGTH:] if fatal is None else told[:EVIDENCE_LENGTH]


def how_it_ended(words: str) -> str:
    """Celery's words without what they say of its own bookkeeping: `signal 9 (SIGKILL)`, `exitcode 70`."""
    found = re.search(r"Worker exited prematurely: (.*?)\.? Job: .*", words, flags=re.DOTALL)
    return found[1] if found else words


def _pass_on(data: bytes) -> None:
    with suppress(OSError):  # whoever read this process's stderr has gone
        while data:
            data = data[os.write(2, data) :]
