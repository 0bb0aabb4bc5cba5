"""Processes that the composition root has started: found again by a mark in their environment, and ended by their ids.

The mark is what finds those whose parent was killed. Nothing without it is ever signalled.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil


def marked(variable: str, value: str) -> list[psutil.Process]:
    """Every process of this machine but this one and what only waits to be reaped, whose `variable` has this value."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and _mark(p, variable) == value and not ended(p)]


def terminate(processes: Sequence[psutil.Process]) -> None:
    """Ask each to end; those that are gone already are passed over."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()


def kill(processes: Sequence[psutil.Process]) -> None:
    """End each at once."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def await_end(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that still run after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (left := [p for p in processes if not ended(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def ended(process: psutil.Process) -> bool:
    """Whether it is gone, or will be once its parent looks."""
    try:  # a container's first process may never reap what has ended
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _mark(process: psutil.Process, variable: str) -> str | None:
    try:
        return process.environ().get(variable)
    except psutil.Error:  # gone, or another user's
        return None
