"""Processor time by role: what a job costs each of the processes it passes through. Steadier than the clock on a busy machine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psutil

ROLES = ("client", "worker", "child", "redis")
Seconds = dict[str, float]


def processor_s(roots: list[int]) -> Seconds:
    """Seconds of processor by role: of this process, the client, and of those below `roots`."""
    used = dict.fromkeys(ROLES, 0.0)
    for role, process in processes(roots):
        try:
            times = process.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        used[role] += times.user + times.system
    return used


def processes(roots: list[int]) -> Iterator[tuple[str, psutil.Process]]:
    """Each process with its role: this one, the client, and those below `roots`."""
    yield "client", psutil.Process(os.getpid())
    for pid in roots:
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            words = " ".join(process.cmdline())
            if "valkey-server" in words or (process is root and "redis" in words):
                yield "redis", process
            elif "spawn_main" in words or (process is not root and process.parent() == root and "celery" in words):
                yield "child", process
            elif "forebay.worker" in words or "celery" in words:
                yield "worker", process
