"""What is wrong now, each thing with the next step to take. The dashboard and `forebay status` show what is decided here.

A queue that hangs still accepts connections, and a worker that is frozen still has its process: both are known by silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import ping_redis
from forebay.storage.jobs.overview import CurrentLoad, Overview
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from forebay.storage.workers import WorkerRegistry, WorkerReport

STATEMENT_LIMIT_S = 5.0
WINDOW_S = 3600.0  # how far back failures are counted
MOST_FAILURES = 10_000
MOST_NAMED = 5  # of a list within a sentence
# Of those submitted last, by an index: a bounded number of rows, however many have failed.
FAILURES = Statement("""
SELECT error_type, count(*) AS jobs, max(id) AS latest FROM (
    SELECT id, error_type, finished_at FROM jobs
    WHERE state IN ('failed', 'canceled', 'expired') AND state = 'failed' ORDER BY id DESC LIMIT :limit) AS recent
WHERE finished_at >= :since GROUP BY error_type ORDER BY 2 DESC, 1""")
MESSAGES = Statement("SELECT id, error_message FROM jobs WHERE id = ANY(:ids)")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and what to do about it."""

    what: str
    next_step: str = ""  # commands in it stand between backticks


@dataclass(frozen=True, slots=True)
class Failures:
    """How many jobs failed with one type of error, the first line of the latest one's message, and that job."""

    type: str
    count: int
    message: str
    latest: str


@dataclass(frozen=True, slots=True)
class Health:
    """What is wrong now, and the failures of the last hour by type, the most frequent first."""

    problems: tuple[Problem, ...] = ()
    failures: tuple[Failures, ...] = ()


def check_health(settings: Settings) -> Health:
    """All of it at once, for a command: Redis is asked, where there is one, and the ledger read."""
    queue = redis_problems(ping_redis(settings) if settings.broker else None, settings)
    try:
        with closing(Ledger(settings.database, statement_limit_s=STATEMENT_LIMIT_S)) as ledger:
            found = ledger_health(ledger, settings)
    except LedgerUnavailable as error:
        return Health((*queue, Problem(str(error), "Start the ledger's database, or check FOREBAY_DATABASE.")))
    return Health((*queue, *found.problems), found.failures)


def redis_problems(reason: str | None, settings: Settings) -> tuple[Problem, ...]:
    """What `ping_redis` found."""
    if reason is None:
        return ()
    what = f"Redis {reason}. Jobs wait in the ledger and are sent once it answers again."
    address = mask_password(settings.broker)
    if "hangs" not in reason:
        return (Problem(what, f"Start it, or check FOREBAY_BROKER: {address}."),)
    stopped = "if it is stopped (state T in `ps`), `kill -CONT PID` lets it go on; else restart it"
    return (Problem(what, f"Look at the process behind {address}: {stopped}."),)


def ledger_health(ledger: Ledger, settings: Settings) -> Health:
    """What the ledger tells of workers, queues and failures."""
    reports, load = WorkerRegistry(ledger).reports(), Overview(ledger).load()
    silent = [report for report in reports if report.age_s > settings.alive_s]
    serving = [report for report in reports if report.age_s <= settings.alive_s]
    problems = (*_silent_workers(silent, load), *_unserved_queues(load, serving, silent, settings))
    return Health(problems, _failures(ledger, load.at))


def _silent_workers(silent: Sequence[WorkerReport], load: CurrentLoad) -> Iterator[Problem]:
    if not silent:
        return
    held = sum(load.running_by_worker.get(report.info.name, 0) for report in silent)
    names = _listed([f"{report.info.name} for {_since(report.age_s)}" for report in silent])
    jobs = f"; {_jobs(held)} {'runs' if held == 1 else 'run'} there until another worker frees them" if held else ""
    hosts = _listed(sorted({report.info.host for report in silent}))
    yield Problem(
        f"{_count(len(silent), 'worker')} fell silent: {names}{jobs}.",
        f"On {hosts} look at `ps -eo pid,stat,etime,args | grep forebay`: state T is stopped (`kill -CONT PID`); a process "
        "that is not there, or does not come back, is started again with `forebay worker`.",
    )


def _unserved_queues(
    load: CurrentLoad, serving: Sequence[WorkerReport], silent: Sequence[WorkerReport], settings: Settings
) -> Iterator[Problem]:
    for backlog in load.queues:
        name = backlog.queue
        if not backlog.waiting or any(name in report.info.queues for report in serving):
            continue
        frozen = [report.info.name for report in silent if name in report.info.queues]
        why = f"only {_listed(frozen)}, silent" if frozen else "no worker serves it"
        oldest = "" if backlog.oldest_age_s is None else f", the oldest for {_since(backlog.oldest_age_s)}"
        declare = "" if name in settings.queues else f" Declare {name!r} in FOREBAY_QUEUES first."
        waits = "waits" if backlog.waiting == 1 else "wait"
        yield Problem(
            f"{_jobs(backlog.waiting)} {waits} in queue {name}{oldest}: {why}.",
            f"Start one: `forebay worker --queues {name}`.{declare}",
        )


def _failures(ledger: Ledger, now: float) -> tuple[Failures, ...]:
    rows = ledger.rows(FAILURES, since=now - WINDOW_S, limit=MOST_FAILURES)
    latest = ledger.rows(MESSAGES, ids=[row.latest for row in rows[:MOST_NAMED]]) if rows else []
    messages = {row.id: row.error_message or "" for row in latest}
    return tuple(
        Failures(row.error_type or "unknown", row.jobs, first_line(messages.get(row.latest, "")), row.latest)
        for row in rows
    )


def first_line(message: str) -> str:
    """The first line of a message that says something, of an error that may have many."""
    return next((line.strip() for line in message.splitlines() if line.strip()), "")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _jobs(count: int) -> str:
    return _count(count, "job")


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _since(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds // 10 * 10:.0f} s"  # in steps: a live page must not speak up every second
