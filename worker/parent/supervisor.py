"""`forebay worker`: one worker process per device of this machine, others for training, and a new one when one dies.

Knows processes only. Each worker gets all its settings through the environment. SIGTERM and SIGINT are handed on once; each
worker then finishes what is on its device.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from forebay.contract.settings import Settings
from forebay.storage.ledger.connection import Ledger
from forebay.storage.workers import WorkerRegistry
from forebay.worker.parent.devices import Plan, count_gpus, plan

log = structlog.get_logger()

BACKOFF_S = (1, 2, 5, 10, 30)  # before a worker that keeps dying is started again
STEADY_S = 60  # a worker that ran this long is started again at once
MARGIN_S = 15  # beyond shutdown_grace_s, in which a worker ends its children and itself


@dataclass
class Charge:
    """One worker: what to start, and the process that runs."""

    name: str
    plan: Plan
    children: int = 1
    metrics_port: int = 0
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    deaths: int = 0
    due: float = field(default=0.0)


class Supervisor:
    """Keeps one worker per device running, and those that train, until told to stop."""

    def __init__(self, settings: Settings, queues: list[str] | None, concurrency: int) -> None:
        """DeviceNotFound when a queue asked for needs a device this machine lacks; InvalidInput for an unknown queue."""
        specs = [settings.queue(name) for name in queues] if queues else list(settings.queues.values())
        gpus = count_gpus() if any(q.capacity.gpu for q in specs) else 0
        if not queues:  # without a choice: whatever this machine can serve
            specs = [q for q in specs if q.capacity.gpu <= gpus]
        self._settings = settings
        self._stop = threading.Event()
        self._charges = [
            Charge(
                name,
                made,
                concurrency if made.stem == "cpu" else 1,
                settings.metrics_port and settings.metrics_port + i,
            )
            for i, (name, made) in enumerate(_named(settings, plan(specs, gpus)))
        ]

    def run(self) -> int:
        """Start all, watch, and return 0 after a stop; 1 when a worker had to be killed."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        while not self._stop.is_set():
            for charge in self._charges:
                self._tend(charge)
            self._stop.wait(0.2)
        return self._shut_down()

    def _tend(self, charge: Charge) -> None:
        now = time.monotonic()
        if charge.process is not None:
            status = charge.process.poll()
            if status is None:
                return
            charge.deaths = 0 if now - charge.started > STEADY_S else charge.deaths + 1
            wait = BACKOFF_S[min(charge.deaths, len(BACKOFF_S)) - 1] if charge.deaths else 0
            log.error("worker_died", worker=charge.name, status=status, again_in_s=wait)
            charge.process, charge.due = None, now + wait
        if now >= charge.due:
            charge.process, charge.started = self._start(charge), now

    def _start(self, charge: Charge) -> subprocess.Popen[bytes]:
        children, device = charge.children, charge.plan.device
        threads = self._settings.torch_threads or max(1, (os.cpu_count() or 1) // children)
        own = {
            "FOREBAY_DEVICE": device,
            "FOREBAY_WORKER_NAME": charge.name,
            "FOREBAY_TORCH_THREADS": str(threads),
            "FOREBAY_METRICS_PORT": str(charge.metrics_port),
        }
        # OMP_NUM_THREADS before torch is imported: set_num_threads alone leaves its pool at the number of cores.
        env = self._settings.child_environment(**own, OMP_NUM_THREADS=str(threads))
        queues = ",".join(charge.plan.queues)
        command = [sys.executable, "-m", "forebay.worker", queues, str(children), str(os.getpid())]
        process = subprocess.Popen(command, env=env, start_new_session=True)
        log.info("worker_started", worker=charge.name, device=device, queues=queues, pid=process.pid)
        return process

    def _shut_down(self) -> int:
        running: list[subprocess.Popen[Any]] = [c.process for c in self._charges if c.process is not None]
        for process in running:
            process.terminate()
        grace = self._settings.shutdown_grace_s + MARGIN_S
        deadline = time.monotonic() + grace
        killed = 0
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker_killed", pid=process.pid, grace_s=grace)
                process.kill()
                process.wait()
                killed = 1
        return killed


def _named(settings: Settings, plans: Sequence[Plan]) -> list[tuple[str, Plan]]:
    """A name for each worker that no live worker has: cpu@host, gpu0@host, train@host; a second one here is cpu-2@host.

    A name that is set is the first worker's, and the end of the others'.
    """
    host = socket.gethostname()
    ledger = Ledger(settings.database)
    try:
        taken = {w.name for w in WorkerRegistry(ledger).alive(3 * settings.heartbeat_s)}
    finally:
        ledger.close()
    named: list[tuple[str, Plan]] = []
    for made in plans:
        names = (f"{made.stem}{suffix}@{host}" for suffix in ["", *(f"-{n}" for n in range(2, 1000))])
        given = settings.worker_name and (f"{made.stem}-{settings.worker_name}" if named else settings.worker_name)
        name = given or next(n for n in names if n not in taken)
        taken.add(name)
        named.append((name, made))
    return named
