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
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from chaos import evidence, plan, schedule
from chaos.audit import Retries, audit
from chaos.faults import Faults
from chaos.load import Load
from chaos.model import INPUTS, OUTPUTS, TARGET, write_artifact
from chaos.plan import Submission
from chaos.report import Options, Report
from chaos.stack import Stack, check_database
from forebay.contract.errors import InvalidInput, LedgerUnavailable
from forebay.contract.job import FINAL, JobKind
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
SHARES = {JobKind.PREDICT: 0.5, JobKind.BATCH: 0.4, JobKind.EVALUATE: 0.1}  # of that
Tell = Callable[[str, int], None]
Say = Callable[[str, bool], None]  # a line, and whether everyone is to see it


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
        stack = Stack(
            self._home, options.workers, options.database, options.seconds, options.seed, JobKind.TRAIN in options.kinds
        )
        try:
            stack.start()
            faults = Faults(stack, self._schedule(stack))
            with Client(stack.settings) as client:
                drawn = plan.draw(options.seed, options.jobs, options.seconds, options.kinds)
                submitted = Load(client, self._register(client, drawn), self._home, drawn)
                self._break(stack, faults, submitted)
                settled = self._settle(stack, submitted)
                submitted.stop()
            self._tell("stopping the workers", 0)
            stack.stop_workers()
            self._tell("auditing", 0)
            payloads = Payloads(BlobStore(stack.settings.blobs), stack.settings)
            seen = evidence.gather(stack.ledger, payloads, self._executions)
            seen = evidence.read_outputs(seen, submitted.accepted, stack.settings, self._home)
        finally:
            stack.stop()
            if stack.postgres is not None:
                self._keep_log(stack.postgres.folder)
                stack.postgres.close()
        findings = audit(submitted.accepted, seen, Retries(submitted.retried, frozenset(submitted.doubtful)))
        injected = {str(kind): count for kind, count in sorted(faults.injected.items())}
        return Report(
            options, findings, injected, submitted.refused, submitted.given_up, submitted.faults, settled,
            time.monotonic() - self._begun, self._home,
        )  # fmt: skip

    def _schedule(self, stack: Stack) -> list[schedule.Fault]:
        options = self._options
        drawn = schedule.draw(
            options.seed, options.seconds, len(stack.workers), postgres=stack.postgres is not None,
            trains=JobKind.TRAIN in options.kinds,
        )  # fmt: skip
        for fault in drawn:
            self._say(str(fault), False)
            log.info("fault_scheduled", at=fault.at, kind=str(fault.kind), worker=fault.worker, lasts_s=fault.lasts_s)
        return drawn

    def _register(self, client: Client, drawn: Sequence[Submission]) -> dict[JobKind, str]:
        """A model for each kind that needs one: it takes so long for a row that the rows of a kind take their share of time."""
        rows = Counter[JobKind]()
        for submission in drawn:
            rows[submission.kind] += sum(max(1, spec.rows) for spec in submission.specs if submission.kind in SHARES)
        share, models = sum(SHARES[kind] for kind in rows if kind in SHARES), {}
        for kind in sorted(rows.keys() & SHARES.keys()):
            busy = BUSY * self._options.workers * self._options.seconds * SHARES[kind] / share
            artifact = write_artifact(self._home / f"{kind}.json", self._executions, busy / rows[kind])
            models[kind] = client.models.register(
                f"chaos-{kind}", artifact, runtime="python", options={"class": TARGET}, inputs=INPUTS, outputs=OUTPUTS,
                max_batch_size=32,
            ).ref  # fmt: skip
        return models

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
                retrying = submitted.retrying  # asked first: what it has retried is among the counts
                counts = self._counts(stack)
                self._tell("all quiet, waiting", self._ended(stack))
                open_jobs = any(count for state, count in counts.items() if state not in FINAL)
                if counts and not (retrying or open_jobs):
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


def _home(given: Path | None) -> Path:
    if given is None:
        return Path(tempfile.mkdtemp(prefix="forebay-chaos-"))
    home = given.expanduser().absolute()
    if home.exists() and (not home.is_dir() or any(home.iterdir())):
        raise InvalidInput(f"--home {given}: chaos needs a folder that is empty or not there yet")
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return home


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
