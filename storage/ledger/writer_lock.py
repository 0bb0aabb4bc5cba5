"""The lock of a SQLite ledger's writers."""

from __future__ import annotations

import fcntl
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

    def __enter__(self) -> None:
        self._threads.acquire()
        try:
            self._file = open(self._path, "ab")  # noqa: PTH123 - closed, and so given back, in __exit__
            self._lock(self._file)
        except BaseException:
            self._release()
            raise

    def __exit__(self, *_: object) -> None:
        self._release()

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

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._threads.release()
