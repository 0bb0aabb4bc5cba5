"""The lock of a SQLite ledger's writers."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import IO

from sqlalchemy.engine import make_url

from forebay.contract.errors import LedgerUnavailable


class WriterLock:
    """One writer at a time among all threads and processes that share a SQLite file.

    SQLite has one writer anyway, but whoever finds it busy sleeps for up to 100 ms before looking again. Here threads queue
    on a lock that wakes at once, and one thread of each process looks again within a millisecond.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._path = f"{make_url(url).database}-writer"
        self._threads = threading.Lock()
        self._file: IO[bytes] | None = None
        self._pid = 0

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            if self._file is None or self._pid != os.getpid():  # a forked process must not share its parent's hold
                self._file, self._pid = open(self._path, "ab"), os.getpid()  # noqa: PTH123 - kept open
            self._lock(self._file)
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        assert self._file is not None  # noqa: S101 - __enter__ has opened it
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._threads.release()

    def close(self, timeout_s: float = 0.0) -> None:
        """Close the file, unless it is in use for longer than that: a forked process would share it."""
        if self._threads.acquire(timeout=timeout_s):
            file, self._file = self._file, None
            if file is not None:
                file.close()
            self._threads.release()

    def _lock(self, file: IO[bytes]) -> None:
        deadline, pause = time.monotonic() + self._timeout_s, 0.0001
        while True:
            try:
                return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LedgerUnavailable(
                        f"{self._path}: another process has held it for {self._timeout_s:g} s"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 1.5, 0.001)
