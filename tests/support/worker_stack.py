"""A folder with a ledger, a queue and real worker processes: `python -m forebay.worker`, told everything by environment.

Processes are stopped by their own ids. What a worker says lands in `<name>.log`.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import make_app
from forebay.producer.client import Client
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.workers import WorkerRegistry
from support.models import HELD, HOLD, RUNS
from support.waiting import wait_until

TESTS = Path(__file__).parents[1]
# Most models of these tests are plain Python: a child need not spend a second and more on torch before one asks for it.
QUICK = {"LEASE_S": "3", "HEARTBEAT_S": "0.5", "SWEEP_S": "0.5", "RESEND_S": "1", "PRELOAD": ","}
START_S = 180  # a fresh interpreter imports torch, on a machine that may be busy


class Worker:
    """One worker process in a process group of its own."""

    def __init__(self, stack: "WorkerStack", name: str, queues: str = "cpu", children: int = 1, **more: str) -> None:
        self.name = name
        self.log = stack.folder / f"{name}.log"
        self._ledger = stack.ledger
        env = os.environ | stack.settings.as_environment() | {
            "FOREBAY_WORKER_NAME": f"{name}@test", "FOREBAY_TORCH_THREADS": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)]),
        } | {f"FOREBAY_{key}": value for key, value in more.items()}  # fmt: skip
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "forebay.worker", queues, str(children)],
                cwd=stack.folder, env=env, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip

    def ready(self) -> "Worker":
        """Come back when its child waits for work."""
        wait_until(lambda: "child_ready" in self.said() or not self.alive, f"{self.name} is ready", START_S)
        assert self.alive, self.said()
        return self

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def children(self) -> list[int]:
        """The processes that own models; billiard's semaphore tracker owns none."""
        spawned = psutil.Process(self.process.pid).children(recursive=True)
        return [p.pid for p in spawned if "spawn_main" in " ".join(p.cmdline())]

    def terminate(self) -> int:
        """Ask it to stop, as `forebay worker` and Docker do; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)

    def kill(self) -> None:
        """End it as the kernel would; its children follow by themselves."""
        gone = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait(120)
        _, left = psutil.wait_procs(gone, timeout=60)
        for process in left:
            process.kill()

    def freeze(self) -> None:
        """Stop it and its children where they are, but not amid a write to SQLite: with its lock they would stop everyone."""
        with self._ledger.write():
            os.killpg(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on as if nothing had happened."""
        os.killpg(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Leave nothing behind, whatever state it is in."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(120)


class WorkerStack:
    """Ledger, queue and workers of one test, or of one module's tests."""

    def __init__(self, folder: Path, broker: str, database: str | None = None, **more: str) -> None:
        self.folder = folder
        given = QUICK | {"ALLOWED_PYTHON_MODELS": "support.models", "HOME": str(folder / "home")} | more
        given |= {"BROKER": broker, "DATABASE": database or f"sqlite:///{folder / 'ledger.db'}"}
        self.settings = Settings.load({f"FOREBAY_{name}": value for name, value in given.items()})
        self.ledger = Ledger(self.settings.database, create=True)
        upgrade(self.ledger)
        self.store = JobStore(self.ledger)
        self.client = Client(self.settings)
        self.workers: list[Worker] = []
        self._supervisors: list[subprocess.Popen[bytes]] = []

    def worker(self, name: str = "w1", queues: str = "cpu", children: int = 1, **more: str) -> Worker:
        """A new worker process, not waited for; `more` are settings of its own."""
        worker = Worker(self, name, queues, children, **more)
        self.workers.append(worker)
        return worker

    def supervisor(self, queues: str = "cpu") -> subprocess.Popen[bytes]:
        """`forebay worker`, alone, in a process group of its own."""
        env = os.environ | self.settings.as_environment() | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}  # fmt: skip
        with (self.folder / "supervisor.log").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "forebay", "worker", "--queues", queues],
                cwd=self.folder, env=env, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._supervisors.append(process)
        return process

    def worker_of(self, supervisor: psutil.Process) -> psutil.Process | None:
        """The worker process that this supervisor has started."""
        found = [p for p in supervisor.children() if "forebay.worker" in " ".join(p.cmdline())]
        return found[0] if found else None

    def model(self, kind: str, name: str | None = None, **more: Any) -> str:
        """Register a class of models_for_tests; its reference."""
        options = {"class": f"support.models:{kind}"}
        return self.client.models.register(name or kind.lower(), runtime="python", options=options, **more).ref

    def hold(self) -> None:
        """Make models wait in the middle of a forward pass."""
        (self.folder / HELD).unlink(missing_ok=True)
        (self.folder / HOLD).touch()

    def wait_until_held(self) -> None:
        """Come back when a model waits: its job is not only claimed, it runs."""
        wait_until((self.folder / HELD).exists, "a model is held")

    def go_on(self) -> None:
        """Let models go on."""
        (self.folder / HOLD).unlink(missing_ok=True)

    def runs(self) -> list[int]:
        """The numbers of the rows that Recorders have run, in order."""
        return [n for _, n in self._lines()]

    def runs_by_worker(self, numbers: range) -> Counter[int]:
        """How many of these rows each worker has run, by the id of its parent process."""
        return Counter(pid for pid, n in self._lines() if n in numbers)

    def _lines(self) -> list[tuple[int, int]]:
        path = self.folder / RUNS
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(line.split()[0]), int(line.split()[1])) for line in lines]

    def states(self) -> dict[str, int]:
        """How many jobs stand in each state."""
        return dict(Counter(str(info.state) for info in self.client.jobs(limit=10_000)))

    def known(self, name: str) -> bool:
        """Whether a worker of this name is registered as living."""
        return any(w.name == f"{name}@test" for w in WorkerRegistry(self.ledger).alive(30))

    def inspect(self, **kwargs: Any) -> Any:
        """Celery's remote control, as Flower uses it."""
        return make_app(self.settings).control.inspect(timeout=2, **kwargs)

    def close(self) -> None:
        """Stop every worker and close every connection."""
        self.go_on()
        for worker in self.workers:
            worker.stop()
        for process in self._supervisors:
            for left in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                left.kill()
            process.kill()
            process.wait(120)
        self.client.close()
        self.ledger.close()
