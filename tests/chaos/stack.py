"""What chaos starts: a queue, a ledger, and workers as users run them, each `forebay worker` a process tree of its own.

Everything a worker tree holds carries the run's mark in its environment, so that what a killed supervisor leaves behind is
found and ended, as `forebay up` and systemd do. Breaking things is faults.py's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil
import structlog

from chaos import evidence
from chaos.schedule import lease_for
from forebay.contract.errors import ForebayError, InvalidInput, LedgerUnavailable
from forebay.contract.job import JobState
from forebay.contract.settings import CONFIG_FILE, Settings
from forebay.stack.processes import await_end, kill, marked, terminate
from forebay.stack.valkey import Valkey
from forebay.storage.jobs.store import JobStore
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.worker.shared_page import remove_stale_pages
from support.servers import PostgresServer, find_postgres

TESTS = Path(__file__).parents[1]  # where workers find the model
log = structlog.get_logger()

MARK, NUMBER = "FOREBAY_CHAOS", "FOREBAY_CHAOS_WORKER"
READY_S = 120
STOP_S = 90  # a worker's own grace is 60
AGAIN_S = 1.0  # before `forebay worker` is started again, as a service manager would
LEFT_OVER_S = 10.0  # for what a killed supervisor left behind to finish


@dataclass
class Tree:
    """One `forebay worker` with all that it starts."""

    number: int
    log: IO[bytes]
    process: subprocess.Popen[bytes] | None = None
    due: float = 0.0
    orphans: list[psutil.Process] = field(default_factory=list)
    orphans_until: float = 0.0


class Stack:
    """Queue, ledger and workers of one run, all in `home` but PostgreSQL, which may not look into it."""

    def __init__(self, home: Path, workers: int, database: str, seconds: float) -> None:
        """`database` is `sqlite`, `postgres`, or the address of an empty one. InvalidInput when it cannot be had."""
        self.home = home
        self.valkey = Valkey(home / "valkey")
        self.postgres = _postgres() if database == "postgres" else None
        self._given = database not in ("sqlite", "postgres")
        self.settings = self._settings(database, seconds)
        self._logs = home / "logs"
        self._logs.mkdir(exist_ok=True)
        self.trees = [Tree(i, (self._logs / f"worker-{i}.log").open("ab")) for i in range(workers)]
        self._ledger: Ledger | None = None

    def _settings(self, database: str, seconds: float) -> Settings:
        lease = lease_for(seconds)
        config = self.home / CONFIG_FILE  # empty, so that no other forebay.toml is read
        config.touch()
        own = f"{self.postgres.url}/postgres" if self.postgres else f"sqlite:///{self.home / 'ledger.db'}"
        return Settings.load(
            {}, config=config, home=self.home, broker=self.valkey.url, database=database if self._given else own,
            lease_s=lease, heartbeat_s=lease / 5, sweep_s=lease / 5, resend_s=lease / 2, torch_threads=1,
            max_inline_bytes=4096, allowed_python_models="chaos.model",
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
        self._ledger = Ledger(self.settings.database, create=True)
        upgrade(self._ledger)
        evidence.install_witness(self._ledger)
        for tree in self.trees:  # one after the other: each looks which names are taken
            self._launch(tree)
            self._await_worker(tree)

    def _launch(self, tree: Tree) -> None:
        marks = {MARK: str(self.home), NUMBER: f"{self.home} {tree.number}", "PYTHONPATH": str(TESTS)}
        command = [sys.executable, "-m", "forebay", "worker", "--queues", "cpu"]
        tree.process = subprocess.Popen(
            command, cwd=self.home, env=self.settings.child_environment(**marks),
            stdin=subprocess.DEVNULL, stdout=tree.log, stderr=tree.log, start_new_session=True,
        )  # fmt: skip

    def _await_worker(self, tree: Tree) -> None:
        """Until the worker says that its child can take jobs; by then its name is taken in the ledger."""
        deadline, said = time.monotonic() + READY_S, Path(tree.log.name)
        while "event=child_ready" not in (words := said.read_text(encoding="utf-8", errors="replace")):
            ended = tree.process is None or tree.process.poll() is not None
            if ended or time.monotonic() > deadline:
                raise ForebayError(f"worker {tree.number} did not start: {words[-1000:]}")
            time.sleep(0.05)

    def tend(self) -> None:
        """Start again whatever supervisor has ended, and end what it left behind."""
        now = time.monotonic()
        for tree in self.trees:
            if tree.process is not None and tree.process.poll() is not None:
                log.info("supervisor_ended", worker=tree.number, status=tree.process.returncode)
                tree.process, tree.due = None, now + AGAIN_S
                tree.orphans, tree.orphans_until = self.processes(tree), now + LEFT_OVER_S
                terminate(tree.orphans)
            if tree.process is None and now >= tree.due:
                self._launch(tree)
            if tree.orphans and now > tree.orphans_until:
                kill(tree.orphans)
                tree.orphans = []

    def processes(self, tree: Tree) -> list[psutil.Process]:
        """Everything that was started for a tree, whoever its parent is now."""
        return marked(NUMBER, f"{self.home} {tree.number}")

    def works(self, worker: psutil.Process) -> bool:
        """Whether this worker process holds running jobs, by the ledger."""
        try:
            name = worker.environ().get("FOREBAY_WORKER_NAME")
            return any(job.worker == name for job in JobStore(self.ledger).find(state=[JobState.RUNNING], limit=1000))
        except (psutil.Error, LedgerUnavailable):
            return False

    def stop_workers(self) -> None:
        """Stop every worker in good order; what does not stop is killed and said to be so."""
        trees = [tree.process for tree in self.trees if tree.process is not None]
        for process in trees:
            process.terminate()
        terminate([process for tree in self.trees for process in tree.orphans])
        deadline = time.monotonic() + STOP_S
        for process in trees:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.error("worker_killed", pid=process.pid)
                process.kill()
                process.wait()
        left = marked(MARK, str(self.home))
        terminate(left)
        kill(await_end(left, LEFT_OVER_S))

    def kill_workers(self) -> None:
        """End every worker at once."""
        for tree in self.trees:
            if tree.process is not None:
                tree.process.kill()
                tree.process.wait()
        left = marked(MARK, str(self.home))
        kill(left)
        await_end(left, LEFT_OVER_S)

    def stop(self) -> None:
        """End everything that still runs, the servers last."""
        self.kill_workers()
        remove_stale_pages()
        for tree in self.trees:
            tree.log.close()
        if self._ledger is not None:
            self._leave_ledger(self._ledger)
        self.valkey.stop()
        if self.postgres is not None:
            self.postgres.stop()

    def _leave_ledger(self, ledger: Ledger) -> None:
        try:
            if self._given:
                evidence.remove_witness(ledger)
        except ForebayError as error:
            log.warning("witness_left", error=str(error))
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
