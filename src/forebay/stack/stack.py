"""`forebay up`: the embedded queue, the ledger, a worker, HTTP and the dashboard as one thing that starts and stops together.

What is configured already (FOREBAY_BROKER, FOREBAY_DATABASE) is used instead of being started. Everything this starts it
also ends, by pid, and it ends nothing else. `<home>/stack.json` describes what runs, for this user's eyes only.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import structlog
from filelock import FileLock, Timeout

from forebay.contract.errors import ForebayError, InvalidInput
from forebay.contract.places import DASHBOARD_TOKEN, keep_token, make_private_folder, read_token
from forebay.contract.settings import STACK_FILE, Settings
from forebay.stack.valkey import Valkey, free_port
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.processes import (
    ManagedProcess,
    Mark,
    ProcessSupervisor,
    await_end,
    has_ended,
    stop_signal,
)

log = structlog.get_logger()

READY_S = 120  # a first start imports torch from a cold disk
PARTS_STOP_S = 25  # beyond shutdown_grace_s, for a worker and its supervisor to end what is left
STOP_S = 20  # beyond that, for the rest of the stack
MARK = "STARTED_BY_FOREBAY"  # the home, in the environment of everything the stack starts


class StackError(ForebayError):
    """The embedded stack cannot be started or stopped."""


class StackState(msgspec.Struct, frozen=True):
    """The content of `<home>/stack.json`. `api` and `dashboard` are addresses, "" without one."""

    pid: int
    started: float  # of that process, by the system's clock: another one may get its pid
    ready: bool
    broker: str
    database: str
    blobs: str
    home: str
    api: str
    dashboard: str  # with its token
    stop_s: float  # how long stopping may take
    processes: dict[str, int]


OnReady = Callable[[StackState], object]


class Stack:
    """The embedded stack of one home, run by this process until it is told to stop."""

    def __init__(
        self, home: Path, *, dashboard: bool, api: bool, queues: str | None = None, concurrency: int = 1
    ) -> None:
        self._home = home
        self._file = home / STACK_FILE
        self._mark = Mark(MARK, str(home))
        self._queues = {name.strip() for name in queues.split(",") if name.strip()} if queues else None
        self._worker = self._part(
            "worker", "--concurrency", str(concurrency), *(["--queues", queues] if queues else [])
        )
        self._optional = {
            name: self._part(command, name=name)
            for name, command, wanted in (("api", "serve", api), ("dashboard", "dashboard", dashboard))
            if wanted
        }
        self._parts = [self._worker, *self._optional.values()]
        self._supervisor = ProcessSupervisor(self._parts, self._mark)
        self._valkey: Valkey | None = None
        self._api = self._dashboard = ""
        self._parts_stop_s = float(PARTS_STOP_S)

    def run(self, on_ready: OnReady) -> int:
        """Start everything, call `on_ready`, watch until SIGTERM or SIGINT, stop everything."""
        make_private_folder(self._home)
        try:
            with FileLock(self._home / "stack.lock", blocking=False):
                self._run(on_ready)
        except Timeout:
            raise _runs_already(self._home) from None
        return 0

    def _run(self, on_ready: OnReady) -> None:
        self._file.unlink(missing_ok=True)
        os.environ.update({MARK: str(self._home), "FOREBAY_HOME": str(self._home)})
        self._stop = stop_signal()
        try:
            self._mark.end_orphans()  # of a stack of this home that was killed
            settings = self._start()
            if self._await_worker(settings):
                on_ready(self._describe(settings, ready=True))
            while not self._stop.wait(0.5):
                self._check(settings)
        finally:
            self._supervisor.stop(self._parts_stop_s)  # before the queue, so that workers can still reach it
            if self._valkey is not None:
                self._valkey.stop()
            self._file.unlink(missing_ok=True)

    def _part(self, *arguments: str, name: str = "") -> ManagedProcess:
        name, command = name or arguments[0], [sys.executable, "-m", "forebay", *arguments]
        return ManagedProcess(name, command, output=self._home / "logs" / f"{name}.log")

    def _start(self) -> Settings:
        settings = Settings.load(home=self._home)
        if not settings.broker:
            self._valkey = Valkey(self._home / "valkey")
            self._valkey.start()
            settings = Settings.load(home=self._home, broker=self._valkey.url)
        self._parts_stop_s = settings.shutdown_grace_s + PARTS_STOP_S
        os.environ.update({"FOREBAY_BROKER": settings.broker, "FOREBAY_DATABASE": settings.database})
        if "api" in self._optional:
            port = free_port(settings.api_host, settings.api_port)
            os.environ["FOREBAY_API_PORT"] = str(port)
            self._api = f"http://{settings.api_host}:{port}"
        if "dashboard" in self._optional:
            port = free_port(settings.dashboard_host, settings.dashboard_port)
            os.environ["FOREBAY_DASHBOARD_PORT"] = str(port)
            self._dashboard = f"http://{settings.dashboard_host}:{port}"
            keep_token(self._home / DASHBOARD_TOKEN)  # the dashboard takes it away where it has a login
        ledger = Ledger(settings.database, create=True)
        try:
            upgrade(ledger)
        finally:
            ledger.close()
        self._describe(settings, ready=False)
        self._supervisor.check()
        return settings

    def _await_worker(self, settings: Settings) -> bool:
        """Until workers for all queues that any machine can serve have sent a heartbeat; False when told to stop meanwhile.

        StackError with the end of their log when they do not come up.
        """
        wanted = self._queues or {queue.name for queue in settings.served_by_default(0)}
        ledger, host = Ledger(settings.database), socket.gethostname()
        started, deadline = ledger.now(), time.monotonic() + READY_S
        try:
            while not self._stop.wait(0.05):
                alive = WorkerRegistry(ledger).alive(READY_S)  # a killed worker's row, its start too, may be taken over
                here = [w for w in alive if w.host == host and w.heartbeat_at.timestamp() >= started]
                if here and wanted <= {name for w in here for name in w.queues}:
                    return True
                if self._worker.pid is None:
                    raise StackError(f"the worker did not start:\n{tail(self._home / 'logs' / 'worker.log')}")
                if time.monotonic() > deadline:
                    raise StackError(f"no worker after {READY_S} s:\n{tail(self._home / 'logs' / 'worker.log')}")
        finally:
            ledger.close()
        return False

    def _check(self, settings: Settings) -> None:
        queue_died = self._valkey is not None and self._valkey.pid is None
        if self._valkey is not None and queue_died:
            log.error("queue_died", again_in_s=0)
            self._valkey.start()
        if self._supervisor.check() or queue_died:
            self._describe(settings, ready=True)

    def _describe(self, settings: Settings, *, ready: bool) -> StackState:
        pids = {part.name: part.pid for part in self._parts}
        if self._valkey is not None:
            pids = {"queue": self._valkey.pid} | pids
        token = read_token(self._home / DASHBOARD_TOKEN) if self._dashboard else ""
        address = f"{self._dashboard}/?token={token}" if token else self._dashboard
        state = StackState(
            os.getpid(), psutil.Process().create_time(), ready, settings.broker, settings.database, settings.blobs,
            str(self._home), self._api, address, self._parts_stop_s + STOP_S,
            {name: pid for name, pid in pids.items() if pid is not None},
        )  # fmt: skip
        temporary = self._file.with_suffix(".tmp")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.encode(state))
        temporary.replace(self._file)
        return state


def read_stack(home: Path) -> StackState | None:
    """The state of this home's stack, if it runs."""
    try:
        state = msgspec.json.decode((home / STACK_FILE).read_bytes(), type=StackState)
        process = psutil.Process(state.pid)
        same = abs(process.create_time() - state.started) < 1
    except (OSError, msgspec.MsgspecError, psutil.Error):
        return None
    return state if same and not has_ended(process) else None


def start_detached(home: Path, arguments: list[str]) -> StackState:
    """Start `forebay up` in the background and return once it is ready; StackError with the reason when it is not."""
    if read_stack(home) is not None:
        raise _runs_already(home)
    output = make_private_folder(home / "logs") / "up.log"
    command = [sys.executable, "-m", "forebay", "up", "--home", str(home), *arguments]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
    deadline = time.monotonic() + READY_S + 30
    while time.monotonic() < deadline:
        state = read_stack(home)
        if state is not None and state.ready and state.pid == process.pid:
            return state
        if process.poll() is not None:
            if state is not None:  # two were started at once, and the other one came first
                raise _runs_already(home)
            raise StackError(f"the stack did not start:\n{tail(output)}")
        time.sleep(0.1)
    process.terminate()
    raise StackError(f"the stack was not ready after {READY_S + 30} s:\n{tail(output)}")


def stop_stack(home: Path) -> bool:
    """Stop the stack of this home and wait until it has stopped; False when none runs."""
    state = read_stack(home)
    if state is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process, stop_s = psutil.Process(state.pid), state.stop_s
        process.terminate()
        if await_end([process], stop_s):
            raise StackError(
                f"the stack (pid {process.pid}) has not stopped after {stop_s:g} s; its workers may be busy"
            )
    return True


def tail(path: Path, lines: int = 15) -> str:
    try:
        return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"


def _runs_already(home: Path) -> InvalidInput:
    return InvalidInput(f"a stack runs in {home} already; look at it with `forebay status --home {home}`")
