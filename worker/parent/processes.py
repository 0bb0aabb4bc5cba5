"""Processes that are kept running: started again after a pause that grows, stopped with a grace period, then killed.

`forebay worker` keeps its workers so, and `forebay up` its parts. A mark in the environment of everything that was started
finds what a killed process has left behind; nothing without it is ever signalled.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from forebay.contract.places import make_private_folder

log = structlog.get_logger()

BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before a process that keeps dying is started again
STEADY_S = 60.0  # one that ran this long is started again at once
ORPHAN_GRACE_S = 10.0


@dataclass
class ManagedProcess:
    """A command, and the process that runs it. Its output is appended to the file `output`, or goes where ours goes."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str] | None = None  # None: this process's own
    cwd: Path | None = None
    output: Path | None = None
    popen: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0  # in a row
    due: float = 0.0

    @property
    def pid(self) -> int | None:
        return self.popen.pid if self.popen is not None and self.popen.poll() is None else None

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C reaches this process only, which then stops the others in order."""
        if self.output is not None:
            make_private_folder(self.output.parent)
        with self.output.open("ab") if self.output is not None else nullcontext() as output:
            self.popen = subprocess.Popen(
                self.command, env=self.env, cwd=self.cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self.started_at = time.monotonic()
        log.info("process_started", name=self.name, pid=self.popen.pid)


@dataclass(frozen=True)
class Mark:
    """An environment variable that everything started here inherits."""

    variable: str
    value: str

    def orphans(self) -> list[psutil.Process]:
        """The living processes of this machine with this mark that do not descend from this one."""
        marked = [p for p in psutil.process_iter() if _variable(p, self.variable) == self.value and not has_ended(p)]
        ours = {os.getpid(), *(p.pid for p in psutil.Process().children(recursive=True))}
        return [p for p in marked if p.pid not in ours]

    def terminate_orphans(self) -> list[psutil.Process]:
        """Ask them to end; those that were asked."""
        orphans = self.orphans()
        for process in orphans:
            log.warning("orphan_ended", pid=process.pid)
        _signal(orphans, signal.SIGTERM)
        return orphans

    def end_orphans(self) -> None:
        """The same, and kill those that have not ended after some seconds."""
        _signal(await_end(self.terminate_orphans(), ORPHAN_GRACE_S), signal.SIGKILL)


class ProcessSupervisor:
    """Keeps processes running. With a `mark`, a process starts again only when what the last one left behind has ended.

    With `overlap` it does not wait for that.
    """

    def __init__(
        self,
        processes: Sequence[ManagedProcess],
        mark: Mark | None = None,
        *,
        backoff_s: Sequence[float] = BACKOFF_S,
        overlap: bool = False,
    ) -> None:
        self.processes = processes
        self._mark, self._backoff_s, self._overlap = mark, backoff_s, overlap
        self._orphans: list[psutil.Process] = []
        self._kill_orphans_at = 0.0

    def check(self) -> bool:
        """Start what does not run and is due; whether anything was started. Call it several times a second."""
        now = time.monotonic()
        for process in self.processes:
            if process.popen is not None and process.popen.poll() is not None:
                self._note_death(process, now)
        self._orphans = [p for p in self._orphans if not has_ended(p)]
        if now > self._kill_orphans_at:
            _signal(self._orphans, signal.SIGKILL)
        due = [p for p in self.processes if p.popen is None and now >= p.due]
        if not due or (self._orphans and not self._overlap):
            return False
        for process in due:
            process.start()
        return True

    def stop(self, grace_s: float) -> bool:
        """End all, and all they left behind; whether none had to be killed."""
        running = [(process, process.popen) for process in self.processes if process.popen is not None]
        for _, popen in running:
            popen.terminate()
        deadline = time.monotonic() + grace_s
        killed = [process for process, popen in running if not await_exit(popen, max(0.1, deadline - time.monotonic()))]
        for process in killed:
            log.error("process_killed", name=process.name, grace_s=grace_s)
        if self._mark is not None:
            self._mark.end_orphans()
        return not killed

    def _note_death(self, process: ManagedProcess, now: float) -> None:
        assert process.popen is not None  # noqa: S101 - it has died
        process.failures = 0 if now - process.started_at > STEADY_S else process.failures + 1
        pause = self._backoff_s[min(process.failures, len(self._backoff_s)) - 1] if process.failures else 0.0
        log.error("process_died", name=process.name, status=process.popen.returncode, again_in_s=pause)
        process.popen, process.due = None, now + pause
        if self._mark is not None:
            self._orphans, self._kill_orphans_at = self._mark.terminate_orphans(), now + ORPHAN_GRACE_S


def stop_signal() -> threading.Event:
    """An event that SIGTERM and SIGINT set from now on."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def await_exit(process: subprocess.Popen[bytes], grace_s: float) -> bool:
    """Wait for a process, and kill it after `grace_s`; whether that was not needed."""
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def stop_process(process: subprocess.Popen[bytes] | None, grace_s: float, how: int = signal.SIGTERM) -> None:
    """Ask a process to end, if it runs, and kill it after `grace_s`."""
    if process is not None and process.poll() is None:
        process.send_signal(how)
        await_exit(process, grace_s)


def await_end(processes: Sequence[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Those that still run after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while (left := [p for p in processes if not has_ended(p)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def has_ended(process: psutil.Process) -> bool:
    """Whether it is gone, or will be once its parent looks."""
    try:  # a container's first process may never reap what has ended
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _signal(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with suppress(psutil.Error):  # it is gone already
            process.send_signal(number)


def _variable(process: psutil.Process, name: str) -> str | None:
    try:
        return process.environ().get(name)
    except psutil.Error:  # gone, or another user's
        return None
