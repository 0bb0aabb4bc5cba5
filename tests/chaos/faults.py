"""Breaks a running stack as the schedule says, and puts right again what is to last only a while."""

from __future__ import annotations

import heapq
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count

import psutil
import redis
import structlog

from chaos.schedule import ON_NETWORK, ON_POSTGRES, Fault, FaultKind
from chaos.stack import Stack
from forebay.worker.parent.processes import ManagedProcess, has_ended

log = structlog.get_logger()

LATE_AFTER_S = 2.0  # a worker is struck while it holds jobs; one that gets none in this time, without
ZOMBIE_S = 1.0  # a worker that was frozen is left in peace for so long, for it is to try to write what it has


class Faults:
    """Carries the schedule out. `tick` it often; `waiting` are the faults to come, `injected` counts those that have struck."""

    def __init__(self, stack: Stack, schedule: Sequence[Fault]) -> None:
        self._stack = stack
        self.waiting = list(schedule)
        self._undo: list[tuple[float, int, Callable[[], object]]] = []  # a heap by the time when it is due
        self._order = count()
        self._frozen_until: dict[str, float] = {}  # by worker
        self.injected: Counter[FaultKind] = Counter()

    def tick(self, elapsed_s: float) -> None:
        """Inject what is due by now, put right what is over. A fault waits for a target that is just being started."""
        while self._undo and self._undo[0][0] <= time.monotonic():
            heapq.heappop(self._undo)[2]()
        for fault in [fault for fault in self.waiting if fault.at <= elapsed_s]:
            if self._inject(fault, late=elapsed_s > fault.at + LATE_AFTER_S):
                self.waiting.remove(fault)
                self.injected[fault.kind] += 1
                log.info("fault_injected", kind=str(fault.kind), worker=fault.worker, lasts_s=fault.lasts_s)

    def end(self) -> None:
        """Inject nothing more, and put right at once whatever is still broken."""
        for fault in self.waiting:
            log.info("fault_dropped", kind=str(fault.kind), worker=fault.worker, reason="its target was never there")
        self.waiting = []
        while self._undo:
            heapq.heappop(self._undo)[2]()

    def _inject(self, fault: Fault, late: bool) -> bool:
        """False when there is nothing that the fault could strike now."""
        if fault.worker is not None:
            return self._on_worker(fault, self._stack.workers[fault.worker], late)
        if fault.kind in ON_NETWORK:
            network = self._stack.database_network if fault.kind in ON_POSTGRES else self._stack.redis_network
            if network is None:
                return False
            self._later(fault.lasts_s, network.inject(fault.kind))
            return True
        if fault.kind is FaultKind.RESTART_POSTGRES:
            return self._restart_postgres(fault.lasts_s)
        return self._on_redis(fault)

    def _on_worker(self, fault: Fault, supervisor: ManagedProcess, late: bool) -> bool:
        if time.monotonic() < self._frozen_until.get(supervisor.name, 0.0) + ZOMBIE_S:
            return False
        if fault.kind is FaultKind.KILL_SUPERVISOR:
            return supervisor.pid is not None and _signal(supervisor.pid, signal.SIGKILL)
        parent = _parent(supervisor)
        child = _child(parent) if parent is not None else None
        if parent is None or child is None:  # no child yet: the worker is still starting
            return False
        if not late and not self._stack.works(parent):
            return False
        if fault.kind is FaultKind.KILL_CHILD:
            return _signal(child.pid, signal.SIGKILL)
        if fault.kind is FaultKind.KILL_PARENT:
            return _signal(parent.pid, signal.SIGKILL)
        if fault.kind is FaultKind.KILL_TRAINER:
            trainer = _below(child, "forebay.worker.trainer")
            return trainer is not None and _signal(trainer.pid, signal.SIGKILL)
        struck = [p for p in (parent, *_all_below(parent)) if _signal(p.pid, signal.SIGSTOP)]
        self._frozen_until[supervisor.name] = time.monotonic() + fault.lasts_s
        self._later(fault.lasts_s, lambda: _thaw(struck))
        return bool(struck)

    def _on_redis(self, fault: Fault) -> bool:
        valkey = self._stack.valkey
        if valkey.pid is None:
            return False
        if fault.kind is FaultKind.KILL_REDIS:
            os.kill(valkey.pid, signal.SIGKILL)
            self._later(fault.lasts_s, valkey.start)
            return True
        try:
            with redis.Redis.from_url(valkey.url) as client:
                client.flushall()
        except redis.RedisError:  # still loading what it had written
            return False
        return True

    def _restart_postgres(self, lasts_s: float) -> bool:
        postgres = self._stack.postgres
        if postgres is None or postgres.pid is None:
            return False
        postgres.stop(signal.SIGQUIT)  # the next start recovers from the log
        self._later(lasts_s, postgres.start)
        return True

    def _later(self, seconds: float, undo: Callable[[], object]) -> None:
        heapq.heappush(self._undo, (time.monotonic() + seconds, next(self._order), undo))


def _parent(supervisor: ManagedProcess) -> psutil.Process | None:
    """The worker process below this supervisor."""
    if supervisor.pid is None:
        return None
    with suppress(psutil.Error):
        return next((p for p in psutil.Process(supervisor.pid).children() if _runs(p, "forebay.worker")), None)
    return None


def _child(parent: psutil.Process) -> psutil.Process | None:
    """The process that runs models; billiard's semaphore tracker beside it runs none."""
    return _below(parent, "spawn_main")


def _below(process: psutil.Process, word: str) -> psutil.Process | None:
    return next((p for p in _all_below(process) if _runs(p, word)), None)


def _all_below(process: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return process.children(recursive=True)
    return []


def _runs(process: psutil.Process, word: str) -> bool:
    with suppress(psutil.Error):
        return word in " ".join(process.cmdline()) and not has_ended(process)
    return False


def _signal(pid: int, how: signal.Signals) -> bool:
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return False
    return True


def _thaw(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(signal.SIGCONT)
