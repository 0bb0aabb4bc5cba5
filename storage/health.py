"""What is wrong now, each thing with the next step to take. The dashboard and `forebay status` show what is decided here.

A queue that hangs still accepts connections, and a worker that is frozen still has its process: both are known by silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from forebay.contract.errors import LedgerUnavailable
from forebay.contract.job import first_line
from forebay.contract.setting_kinds import mask_password
from forebay.contract.settings import Settings
from forebay.contract.wire.celery_app import ping_redis
from forebay.storage.jobs.overview import CurrentLoad, Overview
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.statement import Statement
from forebay.storage.workers import WorkerRegistry, WorkerReport

STATEMENT_LIMIT_S = 5.0
HOUR_S, DAY_S = 3600.0, 86_400.0
MOST_FAILURES = 10_000
MOST_NAMED = 5  # of a list within a sentence
# Of those submitted last, by an index: a bounded number of rows, however many have failed.
FAILURES = Statement("""
SELECT model, version, error_type, count(*) AS jobs, max(id) AS latest FROM (
    SELECT id, model, version, error_type, finished_at FROM jobs
    WHERE state IN ('failed', 'canceled', 'expired') AND state = 'failed' ORDER BY id DESC LIMIT :limit) AS recent
WHERE finished_at >= :since GROUP BY model, version, error_type""")
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
    return Health(problems, _by_type(_failures(ledger, HOUR_S)))


def failures_by_model(ledger: Ledger, window_s: float = DAY_S) -> dict[tuple[str, int], tuple[Failures, ...]]:
    """Of each model version with failures in the last day: by type, the most frequent first."""
    found: dict[tuple[str, int], list[Failures]] = {}
    for model, version, failures in _failures(ledger, window_s):
        found.setdefault((model, version), []).append(failures)
    return {key: tuple(sorted(some, key=_order)) for key, some in found.items()}


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


def _failures(ledger: Ledger, window_s: float) -> list[tuple[str, int, Failures]]:
    """Of each model version and type of error."""
    rows = ledger.rows(FAILURES, since=ledger.now() - window_s, limit=MOST_FAILURES)
    latest = ledger.rows(MESSAGES, ids=[row.latest for row in rows]) if rows else []
    messages = {row.id: first_line(row.error_message or "") for row in latest}
    return [
        (
            row.model,
            row.version,
            Failures(row.error_type or "unknown", row.jobs, messages.get(row.latest, ""), row.latest),
        )
        for row in rows
    ]


def _by_type(found: Sequence[tuple[str, int, Failures]]) -> tuple[Failures, ...]:
    types: dict[str, list[Failures]] = {}
    for _, _, failures in found:
        types.setdefault(failures.type, []).append(failures)
    latest = [(max(some, key=lambda each: each.latest), sum(each.count for each in some)) for some in types.values()]
    return tuple(sorted((replace(each, count=count) for each, count in latest), key=_order))


def _order(failures: Failures) -> tuple[int, str]:
    return -failures.count, failures.type


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
