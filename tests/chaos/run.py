"""One run of chaos, from an empty folder to findings: start, break while a client submits, settle, stop, audit.

Everything that was started is ended, also after Ctrl-C; the folder goes too, unless something is to be looked at in it.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from chaos import evidence, load, schedule
from chaos.audit import Accepted, Findings, audit
from chaos.faults import Faults
from chaos.load import Load
from chaos.model import INPUTS, TARGET, write_artifact
from chaos.stack import Stack, check_database
from forebay.contract.errors import InvalidInput, LedgerUnavailable
from forebay.contract.job import FINAL
from forebay.contract.logs import configure_logs
from forebay.contract.settings import Settings
from forebay.producer.client import Client
from forebay.storage.blobs.payloads import Payloads
from forebay.storage.blobs.store import BlobStore
from forebay.storage.jobs.store import JobStore

log = structlog.get_logger()

TICK_S = 0.05
LOOK_S = 0.5  # how often the ledger is asked how many jobs have ended
LATE = 1.5  # times the length of the run: until then faults strike that had to wait for their target
BUSY = 0.5  # of the workers' time is taken by the model, so that faults find work under way
Tell = Callable[[str, int], None]
Say = Callable[[str, bool], None]  # a line, and whether everyone is to see it


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `home` None is a temporary folder; `keep` leaves the folder there."""

    jobs: int = 5000
    workers: int = 2
    seed: int = 1
    seconds: float = 60.0
    database: str = "sqlite"
    home: Path | None = None
    keep: bool = False

    @property
    def settle_s(self) -> float:
        """How long after the last fault a job may take to end before it counts as lost."""
        return max(120.0, 3 * self.seconds)


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `home` is where everything lies, if it was kept."""

    options: Options
    findings: Findings
    injected: dict[str, int]
    refused: int
    given_up: int
    client_faults: list[str]
    settled_s: float
    took_s: float
    home: Path | None

    @property
    def sound(self) -> bool:
        """Whether every promise was kept."""
        return self.findings.sound and not self.client_faults

    def as_dict(self) -> dict[str, Any]:
        """The report as one flat JSON object."""
        f, runs = self.findings, self.findings.executions
        return {
            "seed": self.options.seed, "database": _kind(self.options.database), "jobs": self.options.jobs,
            "workers": self.options.workers, "seconds": self.options.seconds, "accepted": f.accepted,
            "succeeded": f.succeeded, "failed": f.failed, "canceled": f.canceled, "lost": f.lost,
            "written_twice": f.written_twice, "wrong": f.wrong, "over_max_attempts": f.over_max_attempts,
            "executions": {str(n): runs[n] for n in sorted(runs)}, "most_executions": max(runs, default=0),
            "submits_refused": self.refused, "jobs_given_up": self.given_up, "unacknowledged": f.unacknowledged,
            "faults": self.injected, "settled_s": round(self.settled_s, 1), "took_s": round(self.took_s, 1),
            "problems": [*self.client_faults, *f.problems], "home": str(self.home) if self.home else None,
        }  # fmt: skip


def run(options: Options, say: Say, tell: Tell) -> Report:
    """One run. `say` gets lines about what goes on, `tell` what is going on and how many jobs have ended."""
    check_database(options.database)
    home = _home(options.home)
    keep = options.home is not None or options.keep
    try:
        with _terminable(), _logging(home):
            report = _Run(options, home, say, tell).go()
        keep = keep or not report.sound
    except InvalidInput:  # nothing has run
        raise
    except BaseException:
        keep = True
        raise
    finally:
        if keep:
            say(f"ledger, logs and executions of this run are in {home}", True)
        else:
            shutil.rmtree(home, ignore_errors=True)
    return report if keep else replace(report, home=None)


class _Run:
    """The steps of a run, and what they share."""

    def __init__(self, options: Options, home: Path, say: Say, tell: Tell) -> None:
        self._options = options
        self._home = home
        self._say = say
        self._tell = tell
        self._executions = home / "executions.log"
        self._begun = time.monotonic()

    def go(self) -> Report:
        options = self._options
        self._tell("starting queue, ledger and workers", 0)
        stack = Stack(self._home, options.workers, options.database, options.seconds, options.seed)
        try:
            stack.start()
            faults = Faults(stack, self._schedule(stack))
            with Client(stack.settings) as client:
                submitted = Load(client, self._register(client), load.draw(options.seed, options.jobs, options.seconds))
                self._break(stack, faults, submitted)
            settled = self._settle(stack, submitted)
            self._tell("stopping the workers", 0)
            stack.stop_workers()
            self._tell("auditing", 0)
            payloads = Payloads(BlobStore(stack.settings.blobs), stack.settings)
            seen = evidence.gather(stack.ledger, payloads, self._executions)
        finally:
            stack.stop()
            if stack.postgres is not None:
                self._keep_log(stack.postgres.folder)
                stack.postgres.close()
        findings = audit(submitted.accepted, seen, is_right)
        injected = {str(kind): count for kind, count in sorted(faults.injected.items())}
        return Report(
            options, findings, injected, submitted.refused, submitted.given_up, submitted.faults, settled,
            time.monotonic() - self._begun, self._home,
        )  # fmt: skip

    def _schedule(self, stack: Stack) -> list[schedule.Fault]:
        options = self._options
        drawn = schedule.draw(options.seed, options.seconds, options.workers, postgres=stack.postgres is not None)
        for fault in drawn:
            self._say(str(fault), False)
            log.info("fault_scheduled", at=fault.at, kind=str(fault.kind), worker=fault.worker, lasts_s=fault.lasts_s)
        return drawn

    def _register(self, client: Client) -> str:
        """The model, loaded by a worker and answering."""
        options = self._options
        pause = BUSY * options.workers * options.seconds / options.jobs  # seconds per row
        artifact = write_artifact(self._home / "model.json", self._executions, pause)
        model = client.models.register(
            "chaos", artifact, runtime="python", options={"class": TARGET}, inputs=INPUTS, max_batch_size=32
        )
        return model.ref

    def _break(self, stack: Stack, faults: Faults, submitted: Load) -> None:
        """The faults, while the client submits."""
        begun, looked = time.monotonic(), 0.0
        submitted.start()
        while (elapsed := time.monotonic() - begun) < self._options.seconds or faults.waiting:
            if elapsed > LATE * self._options.seconds:
                break
            faults.tick(elapsed)
            stack.check()
            if elapsed - looked > LOOK_S:
                looked = elapsed
                self._tell(f"{sum(faults.injected.values())} faults", self._ended(stack))
            time.sleep(TICK_S)
        faults.end()
        while not submitted.join(TICK_S):  # a client that was refused is still at it
            stack.check()

    def _settle(self, stack: Stack, submitted: Load) -> float:
        """Wait until all that was accepted has ended, or the time for it is up; the seconds it took."""
        begun, looked = time.monotonic(), 0.0
        while (elapsed := time.monotonic() - begun) < self._options.settle_s:
            stack.check()
            if elapsed - looked > LOOK_S:
                looked = elapsed
                counts = self._counts(stack)
                self._tell("all quiet, waiting", self._ended(stack))
                if counts and not any(count for state, count in counts.items() if state not in FINAL):
                    return elapsed
            time.sleep(TICK_S)
        log.error("not_settled", after_s=self._options.settle_s, accepted=len(submitted.accepted))
        return self._options.settle_s

    def _counts(self, stack: Stack) -> dict[Any, int]:
        try:
            return JobStore(stack.ledger).queries.counts()
        except LedgerUnavailable:
            return {}

    def _ended(self, stack: Stack) -> int:
        return sum(count for state, count in self._counts(stack).items() if state in FINAL)

    def _keep_log(self, folder: Path) -> None:
        if (folder / "log").exists():
            shutil.copyfile(folder / "log", self._home / "logs" / "postgres.log")


def is_right(job: Accepted, result: Any) -> bool:
    """Whether a result is that of this job's input, and of no other's."""
    try:
        numbers, y = result["job"], result["y"]
    except (TypeError, KeyError, IndexError):
        return False
    return bool(np.all(np.asarray(numbers) == job.number)) and np.array_equal(
        y, load.truth(job.number, job.rows, job.size)
    )


def _home(given: Path | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="forebay-chaos-"))
    home = given.expanduser().absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise InvalidInput(f"--home {given}: chaos needs a folder that is empty or not there yet")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home


def _kind(database: str) -> str:
    return database.partition(":")[0].partition("+")[0]


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does: with everything it started."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _logging(home: Path) -> Iterator[None]:
    """This process' own log lines go to a file: the client's warnings are what chaos is about, and no news."""
    (home / "logs").mkdir(exist_ok=True)
    configure_logs(Settings.load({}, home=home))
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    with (home / "logs" / "chaos.log").open("w", encoding="utf-8") as file:
        handler.setStream(file)
        try:
            yield
        finally:
            handler.setStream(sys.stderr)
