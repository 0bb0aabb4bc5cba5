"""`forebay up`: the embedded queue, the ledger, a worker and the dashboard as one thing that starts and stops together.

What is configured already (FOREBAY_BROKER, FOREBAY_DATABASE) is used instead of being started. Everything this starts it
also ends, by pid, and it ends nothing else: its processes carry a mark in their environment, so that those which a killed
parent left behind are found. `<home>/stack.json` says what runs, for this user's eyes only.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil
import structlog

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.settings import STACK_FILE, Settings
from forebay.stack.processes import await_end, ended, kill, marked, terminate
from forebay.stack.valkey import Valkey, free_port
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.workers import WorkerRegistry

log = structlog.get_logger()

READY_S = 120  # a first start imports torch from a cold disk
PART_STOP_S = 25  # beyond shutdown_grace_s, for a worker and its supervisor to end what is left
STOP_S = 20  # beyond that, for the rest of the stack
RESTART_S = 2.0
LEFT_OVER_S = 10  # for what a killed parent left behind to finish
MARK = "FOREBAY_STACK"  # the home, in the environment of everything the stack starts


class StackError(ForebayError):
    """The embedded stack cannot be started or stopped."""


@dataclass
class Part:
    """One process of the stack, and how to start it again."""

    name: str
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    due: float = field(default=0.0)


class Stack:
    """The embedded stack of one home, run by this process until it is told to stop."""

    def __init__(self, home: Path, *, dashboard: bool, queues: str | None = None, concurrency: int = 1) -> None:
        self._home = home
        self._file = home / STACK_FILE
        self._stop = threading.Event()
        self._valkey: Valkey | None = None
        worker = ["worker", "--concurrency", str(concurrency), *(["--queues", queues] if queues else [])]
        self._queues = {name.strip() for name in queues.split(",") if name.strip()} if queues else None
        self._dashboard = ""
        self._part_stop_s = float(PART_STOP_S)
        self._parts = [Part("worker", worker), *([Part("dashboard", ["dashboard"])] if dashboard else [])]

    def run(self, on_ready: Any = None) -> int:
        """Start everything, call `on_ready(description)`, watch until SIGTERM or SIGINT, stop everything."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._home / "stack.lock").open("w") as lock:
            _lock(lock, self._home)
            self._file.unlink(missing_ok=True)
            os.environ.update({MARK: str(self._home), "FOREBAY_HOME": str(self._home)})
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: self._stop.set())
            try:
                self._end_left_over()
                settings = self._start()
                if self._await_worker(settings):
                    self._describe(settings, ready=True)
                    if on_ready is not None:
                        on_ready(read_stack(self._home))
                while not self._stop.wait(0.5):
                    self._tend(settings)
            finally:
                self._shut_down()
        return 0

    def _start(self) -> Settings:
        settings = Settings.load(home=self._home)
        if not settings.broker:
            self._valkey = Valkey(self._home / "valkey")
            self._valkey.start()
            settings = Settings.load(home=self._home, broker=self._valkey.url)
        self._part_stop_s = settings.shutdown_grace_s + PART_STOP_S
        os.environ.update({"FOREBAY_BROKER": settings.broker, "FOREBAY_DATABASE": settings.database})
        if any(part.name == "dashboard" for part in self._parts):
            port = free_port(settings.dashboard_host, settings.dashboard_port)
            os.environ["FOREBAY_DASHBOARD_PORT"] = str(port)
            self._dashboard = f"http://{settings.dashboard_host}:{port}"
        ledger = Ledger(settings.database, create=True)
        try:
            upgrade(ledger)
        finally:
            ledger.close()
        self._describe(settings, ready=False)
        for part in self._parts:
            self._launch(part)
        return settings

    def _launch(self, part: Part) -> None:
        logs = self._home / "logs"
        logs.mkdir(exist_ok=True)
        part.log = part.log or (logs / f"{part.name}.log").open("ab")
        command = [sys.executable, "-m", "forebay", *part.command]
        # A session of its own: Ctrl-C reaches this process only, which then stops the parts in order.
        part.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=part.log, stderr=part.log, start_new_session=True
        )

    def _await_worker(self, settings: Settings) -> bool:
        """Until workers for all queues that any machine can serve have beaten; StackError with the end of their log when they do
        not come up.
        """  # fmt: skip
        wanted = self._queues or {queue.name for queue in settings.queues.values() if not queue.capacity.gpu}
        ledger, worker = Ledger(settings.database), self._parts[0]
        host, started, deadline = socket.gethostname(), ledger.now(), time.monotonic() + READY_S
        try:
            while not self._stop.is_set():  # by the heartbeat: a killed worker's row, its start too, may be taken over
                alive = WorkerRegistry(ledger).alive(READY_S)
                here = [w for w in alive if w.host == host and w.heartbeat_at.timestamp() >= started]
                if here and wanted <= {name for w in here for name in w.queues}:
                    return True
                if worker.process is not None and worker.process.poll() is not None:
                    raise StackError(f"the worker did not start:\n{tail(self._home / 'logs' / 'worker.log')}")
                if time.monotonic() > deadline:
                    raise StackError(f"no worker after {READY_S} s:\n{tail(self._home / 'logs' / 'worker.log')}")
                self._stop.wait(0.05)
        finally:
            ledger.close()
        return False

    def _tend(self, settings: Settings) -> None:
        """Start again whatever has died."""
        if self._valkey is not None and self._valkey.pid is None:
            log.error("queue_died", again="now")
            self._valkey.start()
            self._describe(settings, ready=True)
        for part in self._parts:
            if part.process is not None and part.process.poll() is not None:
                log.error("part_died", part=part.name, status=part.process.returncode, again_in_s=RESTART_S)
                self._end_left_over()
                part.process, part.due = None, time.monotonic() + RESTART_S
            if part.process is None and time.monotonic() >= part.due:
                self._launch(part)
                self._describe(settings, ready=True)

    def _describe(self, settings: Settings, *, ready: bool) -> None:
        content = {
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "ready": ready,
            "broker": settings.broker,
            "database": settings.database,
            "home": str(self._home),
            "dashboard": self._dashboard,
            "stop_s": self._part_stop_s + STOP_S,
            "processes": self._processes(),
        }
        temporary = self._file.with_suffix(".tmp")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file)
        temporary.replace(self._file)

    def _processes(self) -> dict[str, int]:
        queue = {"queue": self._valkey.pid} if self._valkey is not None and self._valkey.pid is not None else {}
        return queue | {p.name: p.process.pid for p in self._parts if p.process is not None}

    def _shut_down(self) -> None:
        """Workers first, so that they can still reach the queue; the queue last."""
        for part in self._parts:
            if part.process is not None and part.process.poll() is None:
                part.process.terminate()
        for part in self._parts:
            if part.process is not None:
                _end(part.process, self._part_stop_s)
            if part.log is not None:
                part.log.close()
        if self._valkey is not None:
            self._valkey.stop()
        self._end_left_over()
        self._file.unlink(missing_ok=True)

    def _end_left_over(self) -> None:
        """End what a killed part, or a killed stack of this home, has left running: marked, but no child of ours."""
        ours = {p.pid for p in psutil.Process().children(recursive=True)}
        left = [p for p in marked(MARK, str(self._home)) if p.pid not in ours]
        for process in left:
            log.warning("left_over_ended", pid=process.pid)
        terminate(left)
        kill(await_end(left, LEFT_OVER_S))


def read_stack(home: Path) -> dict[str, Any] | None:
    """What `<home>/stack.json` says, if the process that wrote it still runs."""
    try:
        content: dict[str, Any] = json.loads((home / STACK_FILE).read_text(encoding="utf-8"))
        process = psutil.Process(content["pid"])
        # A pid may have been given to another process since: its start time tells.
        same = abs(process.create_time() - content["started"]) < 1
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return content if same and not ended(process) else None


def start_detached(home: Path, arguments: list[str]) -> dict[str, Any]:
    """Start `forebay up` in the background and return once it is ready; StackError with the reason when it is not."""
    if read_stack(home) is not None:
        raise _runs_already(home)
    (home / "logs").mkdir(parents=True, exist_ok=True)
    output = home / "logs" / "up.log"
    command = [sys.executable, "-m", "forebay", "up", "--home", str(home), *arguments]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + READY_S + 30
    while time.monotonic() < deadline:
        content = read_stack(home)
        if content is not None and content["ready"] and content["pid"] == process.pid:
            return content
        if process.poll() is not None:
            if content is not None:  # two were started at once, and the other one came first
                raise _runs_already(home)
            raise StackError(f"the stack did not start:\n{tail(output)}")
        time.sleep(0.1)
    process.terminate()
    raise StackError(f"the stack was not ready after {READY_S + 30} s:\n{tail(output)}")


def stop_stack(home: Path) -> bool:
    """Stop the stack of this home and wait until it has stopped; False when none runs."""
    content = read_stack(home)
    if content is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process, stop_s = psutil.Process(content["pid"]), content.get("stop_s", 90)
        process.terminate()
        if await_end([process], stop_s):
            raise StackError(
                f"the stack (pid {process.pid}) has not stopped after {stop_s:g} s; its workers may be busy"
            )
    return True


def tail(path: Path, lines: int = 15) -> str:
    """The end of a log file."""
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def _lock(file: IO[str], home: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise _runs_already(home) from None


def _runs_already(home: Path) -> InvalidInput:
    return InvalidInput(f"a stack runs in {home} already; look at it with `forebay status --home {home}`")


def _end(process: subprocess.Popen[bytes], within_s: float) -> None:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        log.error("part_killed", pid=process.pid)
        process.kill()
        process.wait()
