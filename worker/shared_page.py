"""A page of memory that a parent shares with one of its children.

The parent writes "stop" and "a lease was not renewed"; the child writes by when its present step has to be done, and which
shards it holds. A child that hangs in C or is dead cannot answer messages, but its page can still be read.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from forebay.contract.errors import ForebayError
from forebay.contract.places import OTHERS

NAMESPACE = Path("/proc/self/ns/pid")
WATCHED = NAMESPACE.exists()  # on Linux; elsewhere a child has a page of its own, and nobody watches it
FOLDER, SOCKET = "pages", "children"
CONNECT_TIMEOUT_S = 10  # for a parent that is slow to answer
SIZE = mmap.PAGESIZE
TIMEOUT, LOAD, STORE = 1.0, 2.0, 3.0  # which time limit a step has
LIMITS = {TIMEOUT: "timeout_s", LOAD: "load_timeout_s", STORE: "store_timeout_s"}

# Doubles, each written by one side only. From MAIN on, three for each step in progress: its deadline (0: none), its limit in
# seconds, and which limit that is. At LEDGER, since when a call to the ledger waits.
STOPPING, DOUBTS, MAIN, PREPARE, READ, WRITE, LEDGER = 0, 1, 2, 5, 8, 11, 14

# Shards that the child holds, behind the doubles: id and attempt; attempt 0 is a free slot.
HELD_AT, SLOT, SLOTS = 1024, struct.Struct("=32sq"), 32


@dataclass(frozen=True, slots=True)
class Overdue:
    """A step that should be done by now: which limit it has exceeded, and of how many seconds."""

    limit: str
    seconds: float


class SharedPage:
    """One page, shared by two processes; a child without a parent has one of its own."""

    def __init__(self, fd: int = -1, clock: Callable[[], float] = time.monotonic) -> None:
        self._page = mmap.mmap(fd, SIZE)
        self._cells = memoryview(self._page).cast("d")
        self._clock = clock  # CLOCK_MONOTONIC is the same for all processes of a machine
        self._doubts_seen = 0.0
        self._lock = threading.Lock()

    # The parent writes, the child reads.

    def stop(self) -> None:
        """Ask the child to begin nothing more."""
        self._cells[STOPPING] = 1.0

    @property
    def stopping(self) -> bool:
        """Whether the child is to give back what it has not begun."""
        return self._cells[STOPPING] != 0.0

    def doubt(self) -> None:
        """Tell the child that some lease was not renewed; the ledger knows which ones it still holds."""
        self._cells[DOUBTS] += 1.0

    def doubted(self) -> bool:
        """Whether some lease was not renewed since this was last called."""
        doubts = self._cells[DOUBTS]
        fresh, self._doubts_seen = doubts != self._doubts_seen, doubts
        return fresh

    # The child writes, the parent reads.

    @contextmanager
    def limit(self, seconds: float | None, which: float = TIMEOUT, line: int = MAIN) -> Iterator[None]:
        """The parent kills this process unless the block is done in so many seconds. None: no limit."""
        if seconds is None:
            yield
            return
        cells = self._cells
        cells[line + 1], cells[line + 2] = seconds, which
        cells[line] = self._clock() + seconds  # last: from here on it counts
        try:
            yield
        finally:
            cells[line] = 0.0

    def wait_for_ledger(self, since: float) -> None:
        """Tell since when, by the monotonic clock, a call of this process to the ledger has been waiting; 0: none is."""
        self._cells[LEDGER] = since

    def extend(self, seconds: float, line: int = MAIN) -> None:
        """The block in progress has so many seconds from now on."""
        self._cells[line] = self._clock() + seconds

    def hold(self, job: str, attempt: int) -> None:
        """Tell the parent, once, of a job that this process has claimed itself. When all slots are taken the parent is not told:
        should the process die, the job is free again when its lease lapses.
        """  # fmt: skip
        with self._lock:
            slots = {at: SLOT.unpack_from(self._page, at) for at in _slots()}
            free = next((at for at, (_, held) in slots.items() if not held), None)
            if free is not None and (job.encode(), attempt) not in slots.values():
                struct.pack_into("=32s", self._page, free, job.encode())
                struct.pack_into("=q", self._page, free + 32, attempt)  # last: from here on it counts

    def let_go(self, job: str, attempt: int) -> None:
        """It no longer holds this job; one that it has claimed once more meanwhile it does."""
        with self._lock:
            for at in _slots():
                if SLOT.unpack_from(self._page, at) == (job.encode(), attempt):
                    struct.pack_into("=q", self._page, at + 32, 0)

    def held(self) -> dict[str, int]:
        """The jobs that it has claimed itself and holds, with their attempts; also once it is dead."""
        slots = (SLOT.unpack_from(self._page, at) for at in _slots())
        return {job.rstrip(b"\0").decode(): attempt for job, attempt in slots if attempt}

    def ledger_wait_s(self) -> float:
        """How long a call of the child to the ledger has been waiting."""
        since = self._cells[LEDGER]
        return self._clock() - since if since else 0.0

    def overdue(self) -> Overdue | None:
        """The step that takes too long, if there is one."""
        now = self._clock()
        for line in (MAIN, PREPARE, READ, WRITE):
            deadline = self._cells[line]
            if deadline and now > deadline:
                return Overdue(LIMITS.get(self._cells[line + 2], "?"), self._cells[line + 1])
        return None


def _slots() -> range:
    return range(HELD_AT, HELD_AT + SLOTS * SLOT.size, SLOT.size)


class TimeLimitedModel:
    """A model whose steps have a time limit: forward passes, and what its runtime does to rows before and after.

    It has the attributes that the model has. `prepare` runs beside a forward pass, so it is timed by itself.
    """

    def __init__(self, model: Any, page: SharedPage, seconds: float) -> None:
        self._model, self._page, self._seconds = model, page, seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if name == "run_each":  # rows that take too long it ends itself: here only its steps are limited
            return lambda *given: _TimeLimitedRows(found(*given), self._limited)
        if name == "differentiable":
            return lambda rows: replace(d := found(rows), forward=self._limited(d.forward, MAIN))
        if name in ("predict", "predict_columns", "run", "preprocess", "postprocess", "prepare", "count_tokens"):
            return self._limited(found, PREPARE if name == "prepare" else MAIN)
        return found

    def _limited(self, step: Callable[..., Any], line: int) -> Callable[..., Any]:
        def limited(*args: Any) -> Any:
            with self._page.limit(self._seconds, line=line):
                return step(*args)

        return limited


class _TimeLimitedRows:
    def __init__(self, running: Any, limited: Callable[[Callable[..., Any], int], Callable[..., Any]]) -> None:
        self.wait, self.cancel, self.close = limited(running.wait, MAIN), running.cancel, running.close
        if hasattr(running, "add"):
            self.add, self.places = limited(running.add, MAIN), running.places


class PageRefused(ForebayError):
    """Parent and child cannot meet, so nobody could end a child that hangs."""


def page_folder(home: Path, parent: int) -> Path:
    """Where a parent gives pages to its children: in the home, which may be shared by containers and machines."""
    return home / FOLDER / f"{_prefix()}{parent}"


@contextmanager
def page_address(folder: Path) -> Iterator[str]:
    """The path of the socket in that folder, which has to be ours alone; short, as a socket's must be, for a deep home too."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        found = os.fstat(fd)
        if found.st_uid != os.getuid() or found.st_mode & OTHERS:
            raise PermissionError(f"{folder} belongs to another user, or others may enter it: remove it")
        yield f"/proc/self/fd/{fd}/{SOCKET}"
    finally:
        os.close(fd)


def remove_stale_pages(home: Path) -> None:
    """Remove the folders that killed parents left behind."""
    for folder in (home / FOLDER).glob(f"{_prefix()}*"):
        number = folder.name.removeprefix(_prefix())
        if number.isdecimal() and not psutil.pid_exists(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def peer(connection: socket.socket) -> tuple[int, int]:
    """The process at the other end, and its user, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", credentials)
    return pid, uid


def attach_to_parent(home: Path) -> SharedPage:
    """Have the parent read this process's stderr, and share a page with it; PageRefused when it cannot be had.

    What is written to stderr then lies in the kernel until the parent has read it, also when this process is killed.
    """
    page = _take_page(home, os.getppid()) if WATCHED else SharedPage()
    with suppress(OSError, ValueError, RuntimeError):  # no stderr
        faulthandler.enable(2, all_threads=False)  # a segfault's stack is part of what the parent reads
    return page


def _take_page(home: Path, parent: int) -> SharedPage:
    folder = page_folder(home, parent)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            with page_address(folder) as address:
                connection.connect(address)
            if peer(connection) != (parent, os.getuid()):
                raise PermissionError(f"another process than {parent} listens there")
            _, fds, _, _ = socket.recv_fds(connection, 1, 1)
            page = SharedPage(fds[0])
            os.close(fds[0])
        except (OSError, IndexError) as error:
            raise PageRefused(f"no memory to share with the worker process at {folder}: {error}") from error
        connection.settimeout(None)
        os.dup2(connection.fileno(), 2)
    return page


def _prefix() -> str:
    """The same for all processes that see one another by their numbers, and no others."""
    return f"{socket.gethostname()}-{NAMESPACE.stat().st_ino}-"
