"""How long the ledger's reports take among a million jobs, and what 2,000 jobs cost to add, claim and finish there.

`python -m bench.reports DATABASE` fills an empty ledger as million_jobs says, if it holds no job yet, asks every report
of JobStore and all that the dashboard asks several times, and prints the medians. It knows storage only.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

from sqlalchemy import text

from bench.million_jobs import DAYS, LARGE, MODELS, RARE, fill
from forebay.contract.job import JobKind, JobState, new_ids
from forebay.storage.batches.views import BatchViews
from forebay.storage.jobs.overview import Overview
from forebay.storage.jobs.records import Finished, NewJob
from forebay.storage.jobs.store import JobStore
from forebay.storage.jobs.views import JobFilter, JobViews
from forebay.storage.ledger.connection import Ledger
from forebay.storage.ledger.migrate import upgrade
from forebay.storage.training.queries import TrainingQueries

LIMIT_MS = 300.0
BATCH = 2_000


def reports(store: JobStore) -> dict[str, Callable[[], object]]:
    """Every report there is, with each of its filters, by a name for the table."""
    page = store.queries.find(limit=100)
    some = [job.id for job in page]
    middle = f"{int((store.ledger.now() - 86400 * DAYS / 2) * 1000):012x}" + "0" * 20
    found: dict[str, Callable[[], object]] = {
        "get": lambda: store.queries.get(some[0]),
        "find": store.queries.find,
        "find before (middle)": lambda: store.queries.find(before=middle),
        "counts": store.queries.counts,
        "counts of a model": lambda: store.queries.counts(model=MODELS[3]),
        "counts of a rare model": lambda: store.queries.counts(model=RARE),
        "depths": store.queries.depths,
        "queues_waiting": lambda: store.queries.queues_with_unsent(10.0),
        "outcomes of 100": lambda: store.queries.outcomes(some),
        "states of 100": lambda: store.queries.states(some),
    }
    for state in JobState:
        found[f"find state={state}"] = lambda state=state: store.queries.find(state=[state])  # type: ignore[misc]
    for kind in JobKind:
        found[f"find kind={kind}"] = lambda kind=kind: store.queries.find(kind=kind)  # type: ignore[misc]
    for name, model in {"common": MODELS[0], "rare": RARE, "unknown": "none"}.items():
        found[f"find model ({name})"] = lambda model=model: store.queries.find(model=model)  # type: ignore[misc]
    return found | _more(store) | _dashboard(store.ledger)


def _more(store: JobStore) -> dict[str, Callable[[], object]]:
    """Filters that are rare, or meet nothing."""
    return {
        "find model, version": lambda: store.queries.find(model=MODELS[12], version=2),
        "find model, version (unknown)": lambda: store.queries.find(model=MODELS[0], version=9),
        "find failed of a model": lambda: store.queries.find(model=MODELS[9], state=[JobState.FAILED]),
        "find failed or expired": lambda: store.queries.find(state=[JobState.FAILED, JobState.EXPIRED]),
        "find failed of a rare model": lambda: store.queries.find(model=RARE, state=[JobState.FAILED]),
        "find parent": lambda: store.queries.find(parent_id=f"{900:032x}", limit=1000),
        "find metadata": lambda: store.queries.find(metadata={"user": "u7"}),
        "find metadata (unknown)": lambda: store.queries.find(metadata={"user": "nobody"}),
    }


def _dashboard(ledger: Ledger) -> dict[str, Callable[[], object]]:
    """What the dashboard's pages ask, of the largest batch and the longest run there are."""
    views, overview = JobViews(ledger), Overview(ledger)
    batches, training = BatchViews(ledger), TrainingQueries(ledger)
    listed = [job.id for job in views.page(JobFilter(kind=JobKind.BATCH)).jobs]
    runs = [job.id for job in views.page(JobFilter(kind=JobKind.TRAIN)).jobs]
    longest, now = runs[0] if runs else "", ledger.now()
    return {
        "page": lambda: views.page(JobFilter()),
        "page of batches": lambda: views.page(JobFilter(kind=JobKind.BATCH)),
        "page of failed batches": lambda: views.page(JobFilter(kind=JobKind.BATCH, state=JobState.FAILED)),
        "details of a large batch": lambda: views.details(LARGE),
        "now": overview.load,
        "a minute": lambda: overview.bucket(now - 60, now),
        "half an hour": lambda: overview.bucket(now - 86400, now - 86400 + 1800),
        "running by model": overview.running_by_model,
        "batches: about a page": lambda: batches.summaries([*listed, LARGE]),
        "batches: progress": lambda: batches.queries.progress(LARGE),
        "batches: squares": lambda: batches.cells(LARGE),
        "batches: running": lambda: batches.running(LARGE),
        "batches: a page of shards": lambda: batches.shards(LARGE, f"part-000000-{5_000_000:015d}"),
        "batches: errors by kind": lambda: batches.errors(LARGE),
        "training: about a page": lambda: training.runs_by_id(runs),
        "training: the longest curve": lambda: training.sampled_curve(longest),
        "training: a short curve": lambda: training.sampled_curve(runs[-1] if runs else ""),
        "training: checkpoints": lambda: training.checkpoints(longest),
        "training: evaluations": lambda: training.evaluations(MODELS[0], 1),
    }


def median_ms(action: Callable[[], object], rounds: int) -> float:
    """The median of `rounds` calls, in milliseconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    return statistics.median(taken)


def hot_path(store: JobStore, rounds: int) -> dict[str, float]:
    """What 2,000 jobs cost to add, to claim and to finish, in milliseconds; they are deleted again."""
    taken: dict[str, list[float]] = {"add": [], "claim": [], "finish": []}
    for _ in range(rounds):
        ids = new_ids(BATCH)
        jobs = [NewJob(id, JobKind.PREDICT, MODELS[0], 1, "cpu", input=b"\0" * 300) for id in ids]
        started = time.perf_counter()
        store.add(jobs)
        added = time.perf_counter()
        claimed = [job for start in range(0, BATCH, 256) for job in store.claim(ids[start : start + 256], "bench", 60)]
        took = time.perf_counter()
        store.finish([Finished(job.id, job.attempt, result=b"\0" * 100) for job in claimed])
        ended = time.perf_counter()
        for name, seconds in zip(taken, (added - started, took - added, ended - took), strict=True):
            taken[name].append(1000 * seconds)
        with store.ledger.write() as connection:
            connection.execute(text("DELETE FROM jobs WHERE worker = 'bench' AND id >= :first"), {"first": ids[0]})
    return {f"{name} {BATCH} jobs": statistics.median(values) for name, values in taken.items()}


def main(arguments: list[str] | None = None) -> int:
    """Fill, ask, print; 1 when a report took longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("database", help="sqlite:////path/ledger.db or postgresql+psycopg://user@host/name")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args(arguments)
    ledger = Ledger(given.database, create=True)
    try:
        upgrade(ledger)
        store = JobStore(ledger)
        if not store.queries.find(limit=1):
            fill(ledger, given.jobs)
        slow = 0
        for name, report in reports(store).items():
            took = median_ms(report, given.rounds)
            slow += took > LIMIT_MS
            sys.stdout.write(f"{name:<32}{took:>10.1f} ms{'  too slow' if took > LIMIT_MS else ''}\n")
            sys.stdout.flush()
        for name, took in hot_path(store, given.rounds).items():
            sys.stdout.write(f"{name:<32}{took:>10.1f} ms\n")
    finally:
        ledger.close()
    return int(slow > 0)


if __name__ == "__main__":
    raise SystemExit(main())
