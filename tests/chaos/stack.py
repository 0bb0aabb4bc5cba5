"""What chaos starts: a queue, a ledger, and workers as users run them, each `forebay worker` a process tree of its own.

Everything a worker starts carries the run's mark in its environment, so that what a killed supervisor leaves behind is
found and ended, as `forebay up` and systemd do. Breaking things is faults.py's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import structlog

from chaos import evidence
from chaos.network import Network
from chaos.schedule import lease_for
from forebay.contract.errors import ForebayError, InvalidInput, LedgerUnavailable
from forebay.contract.job import JobState
from forebay.contract.settings import CONFIG_FILE, Settings
from forebay.stack.valkey import Valkey
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.worker.parent.processes import ManagedProcess, Mark, ProcessSupervisor
from support.servers import PostgresServer, find_postgres

TESTS = Path(__file__).parents[1]  # where workers find the model
log = structlog.get_logger()

MARK = "STARTED_BY_CHAOS"
READY_S = 120
STOP_S = 90  # a worker's own grace is 60
RESTART_S = 1.0  # before `forebay worker` is started again, as a service manager would


class Stack:
    """Queue, ledger and workers of one run, all in `home` but PostgreSQL, which may not look into it."""

    def __init__(
        self, home: Path, workers: int, database: str, seconds: float, seed: int = 1, trains: bool = False
    ) -> None:
        """`database` is `sqlite`, `postgres`, or the address of an empty one. InvalidInput when it cannot be had. One that
        `trains` has a further worker, the last.
        """  # fmt: skip
        self.home = home
        self.valkey = Valkey(home / "valkey")
        self.postgres = _postgres() if database == "postgres" else None
        self._given = database not in ("sqlite", "postgres")
        self.redis_network = Network(self.valkey.url, seed)
        own = f"{self.postgres.url}/postgres" if self.postgres else f"sqlite:///{home / 'ledger.db'}"
        self._database = database if self._given else own  # as chaos itself reaches it
        self.database_network = Network(own, seed) if self.postgres else None
        self.settings = self._settings(seconds)
        queues = ["cpu"] * workers + ["train"] * trains
        self.workers = [self._worker(f"worker-{i}", each) for i, each in enumerate(queues)]
        mark = Mark(MARK, str(home))
        self._supervisor = ProcessSupervisor(self.workers, mark, backoff_s=[RESTART_S], overlap=True)
        self._ledger: Ledger | None = None

    def _settings(self, seconds: float) -> Settings:
        lease = lease_for(seconds)
        config = self.home / CONFIG_FILE  # empty, so that no other forebay.toml is read
        config.touch()
        network = self.database_network
        return Settings.load(
            {}, config=config, home=self.home, broker=self.redis_network.url, database=network.url if network else self._database,
            lease_s=lease, heartbeat_s=lease / 5, sweep_s=lease / 5, resend_s=lease / 2, torch_threads=1,
            max_inline_bytes=4096, allowed_python_models="chaos.model", preload=",",
        )  # fmt: skip

    @property
    def ledger(self) -> Ledger:
        """The ledger, once it has been started."""
        assert self._ledger is not None
        return self._ledger

    def start(self) -> None:
        """Start everything; return when every worker can take jobs."""
        self.valkey.start()
        if self.postgres is not None:
            self.postgres.start()
        direct = Settings.load({}, config=self.home / CONFIG_FILE, home=self.home, database=self._database)
        self._ledger = Ledger(direct.database, create=True)
        upgrade(self._ledger)
        evidence.install_write_trigger(self._ledger)
        for worker in self.workers:  # one after the other: each looks which names are taken
            worker.start()
            self._await_worker(worker)

    def _worker(self, name: str, queues: str) -> ManagedProcess:
        """`forebay worker`, with all that it starts below it."""
        env = self.settings.child_environment(**{MARK: str(self.home), "PYTHONPATH": str(TESTS)})
        command = [sys.executable, "-m", "forebay", "worker", "--queues", queues]
        return ManagedProcess(name, command, env, self.home, self.home / "logs" / f"{name}.log")

    def _await_worker(self, worker: ManagedProcess) -> None:
        """Until the worker says that its child can take jobs; by then its name is taken in the ledger."""
        assert worker.output is not None
        deadline = time.monotonic() + READY_S
        while "event=child_ready" not in (output := worker.output.read_text(encoding="utf-8", errors="replace")):
            if worker.pid is None or time.monotonic() > deadline:
                raise ForebayError(f"{worker.name} did not start: {output[-1000:]}")
            time.sleep(0.05)

    def check(self) -> None:
        """Start again what has ended, and end what it left behind."""
        self._supervisor.check()

    def works(self, worker: psutil.Process) -> bool:
        """Whether this worker process holds running jobs, by the ledger."""
        try:
            name = worker.environ().get("FOREBAY_WORKER_NAME")
            return any(
                job.worker == name for job in JobStore(self.ledger).queries.find(state=[JobState.RUNNING], limit=1000)
            )
        except (psutil.Error, LedgerUnavailable):
            return False

    def stop_workers(self, grace_s: float = STOP_S) -> None:
        """Stop every worker; one that has not stopped after `grace_s` is killed, which is logged."""
        self._supervisor.stop(grace_s)

    def stop(self) -> None:
        """End everything that still runs, the servers last."""
        self.stop_workers(0)
        if self._ledger is not None:
            self._leave_ledger(self._ledger)
        for network in filter(None, (self.redis_network, self.database_network)):
            network.close()
        self.valkey.stop()
        if self.postgres is not None:
            self.postgres.stop()

    def _leave_ledger(self, ledger: Ledger) -> None:
        try:
            if self._given:
                evidence.remove_write_trigger(ledger)
        except ForebayError as error:
            log.warning("write_trigger_left", error=str(error))
        finally:
            ledger.close()


def check_database(database: str) -> str:
    """`sqlite`, `postgres`, or an address that Settings takes; InvalidInput otherwise."""
    if database in ("sqlite", "postgres"):
        return database
    if "://" not in database:
        raise InvalidInput(f"--database {database!r}: write sqlite, postgres, or the address of an empty database")
    return database


def _postgres() -> PostgresServer:
    programs = find_postgres()
    if programs is None:
        raise InvalidInput(
            "no PostgreSQL on this machine: neither /usr/lib/postgresql/*/bin nor PATH has initdb and postgres; "
            "install Debian's package postgresql, or name an empty database: --database postgresql://user@host/name"
        )
    return PostgresServer(programs)
